"""What do neighbors of a slice add to gathering a batch, and to a training step?

Gathering: shuffled batches of one dataset, images of neighbors beside each slice against slices alone, in bytes of
processor time, so that a ratio of 1 means that neighbors cost their bytes and no more. A step: the real loop, steps of
64 images that take turns, the processor time of each over that of the step beside it without neighbors. Prints medians
of ratios with their quartiles.

    python benchmarks/neighbors.py [--images 4096] [--size 128] [--rounds 15] [--turns 20] [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.augmentation import NETWORKS, Loop, ratios
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.training.network_inputs import place_inputs
from tests.prepared import SLICES_A_PATIENT, make_dataset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ich_ray.data.dataset import PreparedDataset

BATCH = 64
SEEN = {
    "neighbors 1": {"neighbors": 1},
    "neighbors 1, first window": {"neighbors": 1, "neighbor_windows": "first"},
    "neighbors 2": {"neighbors": 2},
    "neighbors 2, first window": {"neighbors": 2, "neighbor_windows": "first"},
}


class Gathering:
    """Shuffled batches of the training slices."""

    def __init__(self, dataset: PreparedDataset, parameters: Hyperparameters) -> None:
        self._count = len(dataset.role("train"))
        self._inputs = place_inputs(parameters, dataset.role("train"), torch.device("cpu"), "host")
        self._rng = np.random.default_rng(0)
        self.bytes_per_s()  # pages are read

    def bytes_per_s(self) -> float:
        """Of one pass, in processor time."""
        order, taken = self._rng.permutation(self._count), 0
        started = time.process_time()
        for start in range(0, self._count, BATCH):
            taken += self._inputs.take(order[start : start + BATCH]).nbytes
        return taken / (time.process_time() - started)


def show(title: str, found: dict[str, Sequence[float]]) -> None:
    print(title)
    for name, values in found.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"  {name:26} {middle:.2f} (quartiles {low:.2f} to {high:.2f})")


def gathering(dataset: PreparedDataset, rounds: int) -> None:
    alone = Gathering(dataset, Hyperparameters())
    seeing = {name: Gathering(dataset, Hyperparameters.model_validate(changes)) for name, changes in SEEN.items()}
    found: dict[str, list[float]] = {name: [] for name in SEEN}
    rates = []
    for turn in range(rounds):
        rates.append(alone.bytes_per_s())
        for name in list(SEEN)[:: 1 if turn % 2 else -1]:
            found[name].append(seeing[name].bytes_per_s() / rates[-1])
    said = f"gathering, batches of {BATCH}: bytes a second over those of slices alone"
    show(f"{said} ({statistics.median(rates) / 1e9:.1f} GB/s)", {**found})


def stepping(dataset: PreparedDataset, turns: int) -> None:
    for architecture, (parameters, _) in NETWORKS.items():
        contenders = {"one slice": Loop(dataset, parameters)}
        for name, changes in SEEN.items():
            contenders[name] = Loop(dataset, parameters, **changes)
        found = ratios(contenders, "one slice", turns)
        title = f"{architecture}, threads: {torch.get_num_threads()}: a step over that of one slice"
        show(title, {**found})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--turns", type=int, default=20, help="0 to leave steps out")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        patients = options.images * 2 // SLICES_A_PATIENT
        dataset = make_dataset(Path(folder) / "data", patients, options.size, blocks=16)
        gathering(dataset, options.rounds)
        if options.turns:
            stepping(dataset, options.turns)


if __name__ == "__main__":
    main()
