"""What a trial saves when the features of its frozen layers are there already, and after how many trials they pay.

A ResNet whose `layer4` and head are trained, as report A's, for some steps: through all layers, and on features that
were computed once before. Both in one process on one thread, in turns, and only processor time is counted: what else
the machine does then falls on both. Prints the ratio (layers / features) with its quartiles over the turns, the cost of
the features in passes of one trial, their size beside the images, and the largest difference of a validation logit.

    python benchmarks/frozen_trunk.py [--architecture resnet50] [--size 128] [--turns 6] [--images 32]
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

from ich_ray.data.feature_store import FeaturesInMemory
from ich_ray.data.folds import development_rows
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network
from ich_ray.training import loop
from ich_ray.training.data_parallel import ALONE
from ich_ray.training.frozen_features import as_features
from ich_ray.training.inference import batch_logits, in_batches

if TYPE_CHECKING:
    from ich_ray.data.dataset import PreparedDataset

sys.path.insert(0, str(Path(__file__).parents[1]))
from ich_ray.data.dataset import SliceSet
from tests.prepared import make_dataset


class Loop:
    """A training that stands still between turns."""

    def __init__(
        self, parameters: Hyperparameters, dataset: PreparedDataset, features: FeaturesInMemory | None
    ) -> None:
        roles = dataset.role("train"), dataset.role("validation")
        keys = {"budget": loop.TrainingBudget(10**9, 10**9), "seed": 0, "device": torch.device("cpu"), "shard": ALONE}
        self._run = loop._Run(parameters, *roles, loop.Parts(), **keys)
        self._run.start(None, "host", 1, features)

    def turn(self, images: int) -> float:
        """Processor seconds a training image."""
        started = time.process_time()
        self._run.until(self._run.images_seen + images)
        return (time.process_time() - started) / images

    def logits(self) -> torch.Tensor:
        """Of the validation slices, as training stands."""
        positions = np.arange(len(self._run.validation))
        batches = in_batches(self._run.validation_inputs, positions, 64)
        return torch.from_numpy(batch_logits(self._run.validated, batches))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--images", type=int, default=32, help="training images a turn")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    parameters = Hyperparameters(architecture=asked.architecture, unfreeze_from="layer4", batch_size=16)
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder) / "data", patients=24, size=asked.size)
        rows = development_rows(dataset)
        torch.manual_seed(0)
        network = build_network(parameters, dataset.image_shape)
        started = time.process_time()
        array = as_features(network, parameters, SliceSet(dataset, rows))
        once = (time.process_time() - started) / len(rows)
        features = FeaturesInMemory(rows, array)
        loops = Loop(parameters, dataset, None), Loop(parameters, dataset, features)
        spent = [[loop.turn(asked.images) for loop in loops] for _ in range(asked.turns + 1)][1:]
        apart = (loops[0].logits() - loops[1].logits()).abs().max()
    layers, quick = (statistics.median(column) for column in zip(*spent, strict=True))
    ratios = [slow / fast for slow, fast in spent]
    low, _, high = statistics.quantiles(ratios, n=4)
    shown, paid = asked.images * (asked.turns + 1), once / (layers - quick)
    larger = array[0].nbytes / np.prod(dataset.image_shape)
    print(f"{asked.architecture} from layer4, {asked.size} px, one thread, {asked.turns} turns of {asked.images}")
    print(f"training image: {1000 * layers:.1f} ms of CPU time through all layers, {1000 * quick:.1f} on features")
    print(f"ratio: {statistics.median(ratios):.2f} (quartiles {low:.2f} to {high:.2f})")
    print(f"features: {1000 * once:.1f} ms a slice once, paid back after {paid:.2f} passes of one trial")
    print(f"size: {array[0].nbytes / 1024:.0f} KiB a slice, {larger:.1f} x the image")
    print(f"largest difference of a validation logit after {shown} images: {apart:.1e}")


if __name__ == "__main__":
    main()
