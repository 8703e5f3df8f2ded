"""Does reading mapped blocks cost training anything? The loop on them against the same loop on tensors in memory.

Prints one ratio (mapped / in memory, 1.0 is free) from alternating runs of one process.

    python benchmarks/training.py [--size 128] [--images 6400]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ich_ray.model import training
from ich_ray.model.hyperparameters import Hyperparameters

if TYPE_CHECKING:
    from ich_ray.data.dataset import PreparedDataset, SliceSet

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.prepared import make_dataset


class InMemory:
    """All images as one tensor: what reading cannot beat."""

    where = "memory"

    def __init__(self, slices: SliceSet, device: torch.device) -> None:
        self._images = torch.from_numpy(slices.dataset.gather(slices.rows)).to(device)

    def take(self, positions):  # type: ignore[no-untyped-def]
        return self._images[torch.from_numpy(positions)]


def rate(dataset: PreparedDataset, images: int) -> float:
    roles = dataset.role("train"), dataset.role("validation")
    budget = training.Budget(images, images)
    return next(training.train(Hyperparameters(), *roles, budget=budget, seed=0)).images_per_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--images", type=int, default=6400)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    mapped_place = training.place
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder) / "dataset", patients=500, size=asked.size, blocks=8)
        ratios = []
        for _ in range(asked.rounds):
            training.place = mapped_place
            mapped = rate(dataset, asked.images)
            training.place = InMemory
            memory = rate(dataset, asked.images)
            ratios.append(mapped / memory)
            print(f"mapped {mapped:,.0f} img/s, in memory {memory:,.0f} img/s, ratio {mapped / memory:.3f}")
    print(f"median ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
