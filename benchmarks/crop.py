"""What are `crop: head` and `scale: mm` worth at one resolution, and what do they cost a training step?

Series of the continuous phantom in fields of view that are 1.2 to 1.8 times as large, so that the head fills a third of
its image, or two thirds. The same draw is trained on patient folds, each with a seed of its own, with and without; of
both the average precision on the patients held out, and the differences. Then the real loop, steps that take turns:
processor time of each over that of the step beside it that shows whole images at the same resolution.

    python benchmarks/crop.py [--patients 60] [--size 128] [--resolution 48] [--images 16000] [--folds 3] [--turns 20]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.augmentation import Loop, ratios
from ich_ray.ct import continuous_phantom
from ich_ray.ct.phantom_files import write_series
from ich_ray.data.folds import HeldOut
from ich_ray.data.prepare.run import prepare
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.training.loop import TrainingBudget, train

if TYPE_CHECKING:
    from ich_ray.data.dataset import PreparedDataset

SHOWN: dict[str, dict[str, Any]] = {
    "whole images": {},
    "crop: head": {"crop": "head"},
    "scale: mm": {"scale": "mm"},
    "crop: head, scale: mm": {"crop": "head", "scale": "mm"},
}
DRAWN = Hyperparameters(
    blocks=3, filters=16, dropout=0.2, loss="unweighted", schedule="cosine", warmup=0.05, augment=0.5
)


def phantom_in_large_fields(folder: Path, patients: int, size: int) -> PreparedDataset:
    """Heads keep their size in mm, and have fewer pixels."""
    everyone = []
    for number in range(patients):
        patient = continuous_phantom._Patient.draw(number, 0)
        times = float(np.random.default_rng(number).uniform(1.2, 1.8))
        everyone.append(replace(patient, head=replace(patient.head, fov_mm=times * patient.head.fov_mm)))
    files = write_series(folder / "dicom", everyone, 256)
    return prepare(files.images, files.labels, folder / "dataset", size=size)


def trained(dataset: PreparedDataset, fold: int, images: int, drawn: Hyperparameters) -> float:
    """Average precision on the patients of a fold, of a training on the others."""
    view = HeldOut(dataset, fold)
    *_, last = train(
        drawn, view.role("train"), view.role("validation"), budget=TrainingBudget(images, images), seed=fold
    )
    return last.metrics["average_precision"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=60)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--resolution", type=int, default=48)
    parser.add_argument("--images", type=int, default=16000)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=20, help="0 to leave steps out")
    parser.add_argument("--shown", choices=list(SHOWN), action="append", help="all if none is named")
    asked = parser.parse_args()
    contenders = {name: SHOWN[name] for name in ("whole images", *(asked.shown or [*SHOWN][1:]))}
    torch.set_num_threads(1)
    drawn = DRAWN.model_copy(update={"resolution": asked.resolution})
    with tempfile.TemporaryDirectory() as folder:
        dataset = phantom_in_large_fields(Path(folder), asked.patients, asked.size)
        boxes = dataset.head_boxes[dataset.role("train").rows]
        filled = np.median((boxes[:, 2:] - boxes[:, :2]).max(1))
        print(f"{len(dataset)} slices of {asked.patients} patients; the head fills {filled:.2f} of the side")
        told: dict[str, list[float]] = {}
        for name, changes in contenders.items():
            parameters = drawn.model_copy(update=changes)
            told[name] = [trained(dataset, fold, asked.images, parameters) for fold in range(asked.folds)]
            gains = [one - whole for one, whole in zip(told[name], told["whole images"], strict=True)]
            figures = " ".join(f"{value:.3f}" for value in told[name])
            print(f"  {name:22} AP {figures}, mean {statistics.mean(told[name]):.3f}, "
                  f"difference {' '.join(f'{gain:+.3f}' for gain in gains)}", flush=True)  # fmt: skip
        for augment in (0.0, 1.0) if asked.turns else ():
            loops = {name: Loop(dataset, drawn, augment=augment, **changes) for name, changes in contenders.items()}
            for name, values in ratios(loops, "whole images", asked.turns).items():
                low, middle, high = statistics.quantiles(values, n=4)
                print(f"  a step, augment {augment:g}, {name:22} {middle:.2f} (quartiles {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
