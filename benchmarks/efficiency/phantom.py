"""Networks that really train on the phantom, as a problem: nobody knows its optimum, and its noise is its own.

The space and the budget of the computed problem, for plain CNNs. The patients are many, so that the validation patients
tell good networks from lucky ones.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from benchmarks.efficiency.computed import SOURCE
from benchmarks.efficiency.methods import METRIC
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import TrialFailure
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.training.loop import TrainingBudget, train

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.efficiency.course import Parameters

PATIENTS = 640  # 766 slices for validation, a fifth of them positive
SPACE = parse_space(
    {
        **SOURCE,
        "name": "phantom",
        "parameters": {
            **SOURCE["parameters"],
            "architecture": {"fixed": "plain_cnn"},
            "blocks": {"int": [1, 4]},
            "filters": {"choice": [8, 16]},
            "dense": {"fixed": 32},
        },
    },
    "phantom.yaml",
)


class RealTraining:
    """One network on one thread, validated at every report."""

    def __init__(self, data: PreparedDataset, parameters: Parameters, seed: int) -> None:
        self.parameters, self.images = parameters, 0
        self.values: list[float] = []
        self._steps = train(
            Hyperparameters(**parameters),
            data.role("train"),
            data.role("validation"),
            budget=TrainingBudget(SPACE.budget.images, SPACE.budget.report_every),
            seed=seed,
        )

    def report(self) -> float:
        try:
            progress = next(self._steps)
        except TrialFailure:
            return math.nan
        self.images = progress.images_seen
        self.values.append(progress.metrics[METRIC])
        return self.values[-1]

    @property
    def value(self) -> float:
        return self.values[-1] if self.values else 0.0


class Phantom:
    """The problem; the trainings of one search have different seeds."""

    space = SPACE

    def __init__(self, dataset: Path) -> None:
        torch.set_num_threads(1)
        self._data = PreparedDataset.open(dataset)

    def begin(self, parameters: Parameters, seed: tuple[int, ...]) -> RealTraining:
        first, *rest = seed
        return RealTraining(self._data, parameters, 100_000 * (first + 1) + rest[-1])

    def pace(self, parameters: Parameters) -> float:
        """As if all trained equally fast."""
        del parameters
        return 1.0
