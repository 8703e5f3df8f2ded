"""An augmentation from outside: left and right change places, by the toss of a coin for each image of the stream."""

from __future__ import annotations

from pathlib import Path

import torch

from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.training.augmentation import stream_random
from ich_ray.training.loop import Parts, TrainingBudget, train
from tests.prepared import make_dataset


def mirrored(images: torch.Tensor, positions: torch.Tensor, seed: int) -> torch.Tensor:
    """Half of the images: which, depends on their places in the stream and on nothing else."""
    tossed = stream_random(seed, positions, 1)[:, 0] < 0.5
    return torch.where(tossed[:, None, None, None], images.flip(3), images)


def test_a_trial_trains_on_it(tmp_path: Path) -> None:
    images = torch.arange(8, dtype=torch.uint8).view(2, 1, 1, 4)
    assert mirrored(images, torch.tensor([0, 1]), seed=3).tolist() == [[[[0, 1, 2, 3]]], [[[7, 6, 5, 4]]]]
    data = make_dataset(tmp_path / "data", patients=20)
    roles, budget = (data.role("train"), data.role("validation")), TrainingBudget(200, 100)

    def trained(**more: object) -> list[dict[str, float]]:
        steps = train(Hyperparameters(filters=4), *roles, budget=budget, seed=3, **more)  # type: ignore[arg-type]
        return [progress.metrics for progress in steps]

    augmented = trained(parts=Parts(augmentation=mirrored))
    assert augmented == trained(parts=Parts(augmentation=mirrored))
    assert augmented != trained()
