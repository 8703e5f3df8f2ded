"""What a second process adds to the training of one network on CPUs, as a share of the first: its parallel efficiency.

The same training in one process and in two, by turns of a few batches, each on one thread: the loop of a search with
its images and optimizer, gradients and batch statistics summed over both by gloo. Two figures are told. By processor
time, of two processes that of the longer one: what a machine with nothing else to do comes close to, as waiting for
each other costs none. By the clock: what was had, which other work on these cores shifts either way. Prints the medians
over the turns with their quartiles. docs/sizing.md has them beside the efficiencies of its courses.

    python benchmarks/growth_efficiency.py [--architecture resnet18] [--size 128] [--batch 32] [--turns 15] ...
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import distributed

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.data_parallel import WORKERS, in_processes
from ich_ray.data.dataset import PreparedDataset
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.training import loop
from ich_ray.training.data_parallel import ALONE, Shard
from tests.prepared import make_dataset

Spent = tuple[float, float]  # processor seconds, seconds


class Loop:
    """A training that stands still between turns."""

    def __init__(self, parameters: Hyperparameters, dataset: PreparedDataset, shard: Shard) -> None:
        roles = dataset.role("train"), dataset.role("validation")
        keys = {"budget": loop.TrainingBudget(10**9, 10**9), "seed": 0, "device": torch.device("cpu"), "shard": shard}
        self._run = loop._Run(parameters, *roles, loop.Parts(), **keys)
        self._run.start(None, "host", 1)

    def turn(self, images: int) -> Spent:
        processor, clock = time.process_time(), time.monotonic()
        self._run.until(self._run.images_seen + images)
        return time.process_time() - processor, time.monotonic() - clock


def work(rank: int, folder: str, asked: argparse.Namespace) -> None:
    parameters = Hyperparameters(architecture=asked.architecture, batch_size=asked.batch, dropout=0.0)
    dataset = PreparedDataset.open(folder)
    alone = Loop(parameters, dataset, ALONE) if rank == 0 else None
    together = Loop(parameters, dataset, Shard(rank, WORKERS))
    images, turns = asked.batch * asked.batches, []
    for _ in range(asked.turns + 1):
        distributed.barrier()
        one = alone.turn(images) if alone else (0.0, 0.0)
        distributed.barrier()
        turns.append((one, together.turn(images)))
    found: list[list[tuple[Spent, Spent]]] = [[] for _ in range(WORKERS)]
    distributed.all_gather_object(found, turns[1:])  # in the first pages are read and buffers made
    if rank == 0:
        report(asked, [[own[0] for own in found[0]], *([both[1] for both in of] for of in found)])


def report(asked: argparse.Namespace, spent: list[list[Spent]]) -> None:
    """Of one process, then of each of the two, what every turn took."""
    images = asked.batch * asked.batches
    print(
        f"{asked.architecture}, {asked.size} px, batch {asked.batch}, {asked.turns} turns of {images} images, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}"
    )
    for place, name in enumerate(("processor time", "by the clock")):
        alone, *both = ([turn[place] for turn in of] for of in spent)
        longer = [max(pair) for pair in zip(*both, strict=True)]
        times = [one / two for one, two in zip(alone, longer, strict=True)]
        low, middle, high = statistics.quantiles(times, n=4)
        one, two = (images / statistics.median(of) for of in (alone, longer))
        print(
            f"{name}: one process {one:.1f} images/s, two {two:.1f}, {middle:.2f} times as fast ({low:.2f} to "
            f"{high:.2f}); the second one adds {middle - 1:.2f} of the first"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--batches", type=int, default=2, help="of a turn")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder) / "dataset", patients=60, size=asked.size)
        in_processes(work, f"{folder}/dataset", asked)


if __name__ == "__main__":
    main()
