"""What do augmentation and reduction to a resolution add to a training step?

The real loop trains one network on one prepared dataset in ways that take turns, step by step, and each step's
processor time is divided by that of the step beside it that only shows images as they were prepared. Prints the median
of the ratios with their quartiles. Threads that wait for each other spend processor time too: where other work shares
the cores, one thread says more than two.

- augmented and erased at the prepared size, against a step on images as prepared;
- reduced, and reduced and augmented, against a step on images that were prepared at that size.

    python benchmarks/augmentation.py [--size 128] [--resolution 96] [--turns 20] [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.training import loop
from ich_ray.training.data_parallel import ALONE

if TYPE_CHECKING:
    from ich_ray.data.dataset import PreparedDataset

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.prepared import make_dataset

# With the most that a step may take, times one on images as prepared.
NETWORKS = {
    "plain_cnn": (Hyperparameters(blocks=4, filters=32), 1.3),
    "resnet18": (Hyperparameters(architecture="resnet18"), 1.1),
}


class Loop:
    """A training that stands still between steps."""

    def __init__(self, dataset: PreparedDataset, parameters: Hyperparameters, **changes: float) -> None:
        roles = dataset.role("train"), dataset.role("validation")
        keys = {"budget": loop.TrainingBudget(10**9, 10**9), "seed": 0, "device": torch.device("cpu"), "shard": ALONE}
        self._run = loop._Run(parameters.model_copy(update=changes), *roles, loop.Parts(), **keys)
        self._run.start(None, "host", 1)
        self.step()  # pages are read, buffers made

    def step(self) -> float:
        started = time.process_time()
        self._run.until(self._run.images_seen + self._run.parameters.batch_size)
        return time.process_time() - started


def ratios(compared: dict[str, Loop], base: str, turns: int) -> dict[str, list[float]]:
    """Of each step to that of `base` in the same turn; the order is reversed from turn to turn."""
    found: dict[str, list[float]] = {name: [] for name in compared if name != base}
    for turn in range(turns):
        order = list(compared)[:: 1 if turn % 2 else -1]
        spent = {name: compared[name].step() for name in order}
        for name, values in found.items():
            values.append(spent[name] / spent[base])
    return found


def measure(architecture: str, size: int, resolution: int, turns: int) -> None:
    parameters, limit = NETWORKS[architecture]
    with tempfile.TemporaryDirectory() as folder:
        large = make_dataset(Path(folder) / "large", patients=200, size=size)
        small = make_dataset(Path(folder) / "small", patients=200, size=resolution)
        at, to = f"{size} px", f"{size} to {resolution} px"
        whole = {
            "as prepared": Loop(large, parameters),
            f"augment 1, {at}": Loop(large, parameters, augment=1.0),
            f"augment 1 and erase 0.5, {at}": Loop(large, parameters, augment=1.0, erase=0.5),
        }
        reduced = {
            "as prepared": Loop(small, parameters),
            to: Loop(large, parameters, resolution=resolution),
            f"augment 1 and erase 0.5, {to}": Loop(large, parameters, resolution=resolution, augment=1.0, erase=0.5),
        }
        found = ratios(whole, "as prepared", turns) | ratios(reduced, "as prepared", turns)
    threads = torch.get_num_threads()
    print(f"{architecture}, batches of {parameters.batch_size}, threads: {threads}, {turns} turns; limit {limit}")
    for name, values in found.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"  {name} / as prepared: {middle:.3f} (quartiles {low:.3f} to {high:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--resolution", type=int, default=96)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--architecture", choices=list(NETWORKS), action="append", help="both if none is named")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    for architecture in asked.architecture or NETWORKS:
        measure(architecture, asked.size, asked.resolution, asked.turns)


if __name__ == "__main__":
    main()
