"""What a sequence trial costs beside a trial of the network whose features it reads, at equal slices.

The real loops train a network on images and each sequence model on features of as many numbers as that network has, in
series of 32 slices; they take turns, and only processor time on one thread is counted: what else the machine does then
falls on all. Prints the processor time a slice of each sequence model in that of the network, the median over the turns
with its quartiles. With `--widths` a step on so many features instead, in that on the first number of them.

    python benchmarks/sequence_training.py [--size 128] [--turns 12] [--architectures plain_cnn resnet18]
                                           [--widths 512 2048]
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

from ich_ray.data.series_order import ordered_series
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network
from ich_ray.model.pooled_features import FeatureNetwork
from ich_ray.model.sequence_parameters import SEQUENCE_MODELS, SequenceParameters
from ich_ray.training import loop, sequence_loop
from ich_ray.training.data_parallel import ALONE
from ich_ray.training.sequence_set import SequenceSet

if TYPE_CHECKING:
    from ich_ray.data.dataset import PreparedDataset

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.prepared import make_dataset

SLICES, SERIES, LABELS = 32, 256, 6
BUDGET = loop.TrainingBudget(10**9, 10**9)


def series_of(width: int) -> SequenceSet:
    """Noise: what a step costs does not depend on what it learns."""
    random, count = np.random.default_rng(0), SLICES * SERIES
    targets = (random.random((count, LABELS)) < 0.2).astype(np.float32)
    return SequenceSet(
        features=random.normal(size=(count, width)).astype(np.float16),
        order=ordered_series(np.repeat(np.arange(SERIES), SLICES), np.tile(np.arange(SLICES) * 5.0, SERIES)),
        targets=targets,
        study_targets=targets.reshape(SERIES, SLICES, LABELS).max(1) * (np.arange(SERIES) % 2)[:, None],
        studies=np.arange(SERIES),
        patients=np.full(count, "p", object),
        labels=tuple("abcdef"),
        fingerprint="",
    )


class NetworkTraining:
    """A training of a network that stands still between turns."""

    def __init__(self, parameters: Hyperparameters, dataset: PreparedDataset) -> None:
        roles = dataset.role("train"), dataset.role("validation")
        self._run = loop._Run(
            parameters, *roles, loop.Parts(), budget=BUDGET, seed=0, device=torch.device("cpu"), shard=ALONE
        )
        self._run.start(None, "host", 1)
        self.turn()  # pages are read, buffers made

    def turn(self) -> float:
        """Processor seconds a slice."""
        started, images = time.process_time(), self._run.parameters.batch_size
        self._run.until(self._run.images_seen + images)
        return (time.process_time() - started) / images


class SequenceTraining:
    """A training of a sequence model that stands still between turns."""

    def __init__(self, parameters: SequenceParameters, given: SequenceSet) -> None:
        self._run = sequence_loop._SequenceRun(parameters, given, None, BUDGET, 0, torch.device("cpu"))
        self._run.start(None, 1, None)
        self.turn()

    def turn(self) -> float:
        """Processor seconds a slice."""
        started, series = time.process_time(), self._run.parameters.batch_size
        self._run.until(self._run.images_seen + series)
        return (time.process_time() - started) / (series * SLICES)


def measure(architecture: str, size: int, turns: int) -> None:
    parameters = Hyperparameters(architecture=architecture, blocks=4, filters=32, labels="all")
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder) / "data", patients=60, size=size)
        width = FeatureNetwork(build_network(parameters, dataset.image_shape), dataset.image_shape).width
        network, given = NetworkTraining(parameters, dataset), series_of(width)
        models = {
            f"{name}, hidden {hidden}": SequenceTraining(
                SequenceParameters(model=name, hidden=hidden, layers=2, projection=hidden, batch_size=32), given
            )
            for name in SEQUENCE_MODELS.names()
            for hidden in (128, 256)
        }
        ratios: dict[str, list[float]] = {name: [] for name in models}
        of_network = []
        for _ in range(turns):
            spent = network.turn()
            of_network.append(spent)
            for name, training in models.items():
                ratios[name].append(training.turn() / spent)
    print(f"{architecture} at {size} px: {1000 * statistics.median(of_network):.2f} ms a slice; {width} features")
    for name, values in ratios.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"  {name:26} {middle:.4f} ({low:.4f} to {high:.4f}): 1 to {1 / middle:,.0f}")


def measure_widths(widths: list[int], turns: int) -> None:
    for name in SEQUENCE_MODELS.names():
        parameters = SequenceParameters(model=name, hidden=256, layers=2, projection=256, batch_size=32)
        trainings = [SequenceTraining(parameters, series_of(width)) for width in widths]
        spent = np.array([[training.turn() for training in trainings] for _ in range(turns)])
        for width, values in zip(widths[1:], (spent[:, 1:] / spent[:, :1]).T, strict=True):
            low, middle, high = statistics.quantiles(values, n=4)
            print(f"{name}, {width:,} features / {widths[0]:,}: {middle:.2f} ({low:.2f} to {high:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--architectures", nargs="+", default=["plain_cnn", "resnet18"])
    parser.add_argument("--widths", type=int, nargs="+", default=[])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.widths:
        measure_widths(asked.widths, asked.turns)
        return
    for architecture in asked.architectures:
        measure(architecture, asked.size, asked.turns)


if __name__ == "__main__":
    main()
