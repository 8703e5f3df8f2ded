"""Does reading mapped blocks cost training anything? The loop on them against the same loop on tensors in memory.

Both train the same network in one process on one thread, in turns of a few batches, and only the processor time of the
training is counted: what else the machine does then falls on both. Prints the ratio (mapped / in memory, 1.0 is free)
with its quartiles over the turns, and the share of the mapped loop that goes into gathering batches, which is all that
a computation waits for.

    python benchmarks/training.py [--size 128] [--turns 40] [--images 128]
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
    import numpy as np
    from numpy.typing import NDArray

    from ich_ray.data.dataset import PreparedDataset, SliceSet
    from ich_ray.training.network_inputs import NetworkInputs

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.prepared import make_dataset


class InMemory:
    """All images as one tensor: what reading cannot beat."""

    where = "host"

    def __init__(self, slices: SliceSet) -> None:
        self._images = torch.from_numpy(slices.dataset.gather(slices.rows))

    def take(self, positions: NDArray[np.int64]) -> torch.Tensor:
        return self._images.index_select(0, torch.from_numpy(positions))

    def will_take(self, positions: NDArray[np.int64]) -> None:
        """They are in memory."""


class Timed:
    """Inputs, and the processor time spent on taking them."""

    where = "host"

    def __init__(self, inputs: NetworkInputs | InMemory) -> None:
        self._inputs, self.spent_s = inputs, 0.0

    def take(self, positions: NDArray[np.int64]) -> torch.Tensor:
        started = time.process_time()
        taken = self._inputs.take(positions)
        self.spent_s += time.process_time() - started
        return taken

    def will_take(self, positions: NDArray[np.int64]) -> None:
        started = time.process_time()
        self._inputs.will_take(positions)
        self.spent_s += time.process_time() - started


class Loop:
    """A training that stands still between turns."""

    def __init__(self, dataset: PreparedDataset, in_memory: bool) -> None:
        roles = dataset.role("train"), dataset.role("validation")
        keys = {"budget": loop.TrainingBudget(10**9, 10**9), "seed": 0, "device": torch.device("cpu"), "shard": ALONE}
        self._run = loop._Run(Hyperparameters(), *roles, loop.Parts(), **keys)
        self._run.start(None, "host", 1)
        self.inputs = Timed(InMemory(roles[0]) if in_memory else self._run.inputs)
        self._run.inputs = self.inputs

    def turn(self, images: int) -> float:
        started = time.process_time()
        self._run.until(self._run.images_seen + images)
        return time.process_time() - started


def quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} (quartiles {low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--images", type=int, default=128, help="of a turn")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder) / "dataset", patients=500, size=asked.size, blocks=8)
        mapped, memory = Loop(dataset, in_memory=False), Loop(dataset, in_memory=True)
        mapped.turn(asked.images)  # pages are read, buffers made
        memory.turn(asked.images)
        mapped.inputs.spent_s = memory.inputs.spent_s = 0.0
        pairs = []
        for turn in range(asked.turns):
            both = (mapped, memory) if turn % 2 else (memory, mapped)
            spent = {loop: loop.turn(asked.images) for loop in both}
            pairs.append((spent[mapped], spent[memory]))
    ours, theirs = (sum(column) for column in zip(*pairs, strict=True))
    seen = asked.turns * asked.images
    print(
        f"{asked.turns} turns of {asked.images} images of {asked.size} x {asked.size} x 3, one thread, processor time"
    )
    print(f"mapped {seen / ours:,.0f} img/s, in memory {seen / theirs:,.0f} img/s")
    print(f"time, mapped / in memory: {quartiles([one / other for one, other in pairs])}; 1.05 is the limit")
    waiting = (mapped.inputs.spent_s / ours, memory.inputs.spent_s / theirs)
    print(f"share of it for gathering batches: mapped {waiting[0]:.1%}, in memory {waiting[1]:.1%}")


if __name__ == "__main__":
    main()
