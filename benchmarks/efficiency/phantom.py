"""Networks that really train on the phantom, as a problem: nobody knows its optimum, and its noise is its own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from benchmarks.efficiency.methods import METRIC
from benchmarks.searchers.task import FIXED, PARAMETERS
from ich_ray.ct.phantom import write_phantom
from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.prepare import prepare
from ich_ray.errors import TrialFailure
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.training import Budget, train
from ich_ray.search.space import parse_space

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from benchmarks.efficiency.course import Parameters

# Networks see little in their first 1,000 images and are near their end after 10,000.
BUDGET = {"images": 13_500, "report_every": 500, "first_rung": 1500, "reduction": 3, "min_peers": 3}
SPACE: Mapping[str, Any] = {"name": "phantom", "budget": BUDGET, "parameters": {**FIXED, **PARAMETERS}}
PATIENTS, SIZE = 160, 32


def make(folder: Path) -> Path:
    """The dataset: 160 patients, about 1,290 slices of 32x32x3."""
    made = write_phantom(folder / "dicom", PATIENTS, seed=0, size=256)
    prepare(made.images, made.labels, folder / "data", size=SIZE)
    return folder / "data"


class RealTraining:
    """One network on one thread, validated at every report."""

    def __init__(self, data: PreparedDataset, parameters: Parameters, seed: int) -> None:
        self.parameters, self.images = parameters, 0
        self.values: list[float] = []
        self._steps = train(
            Hyperparameters(**parameters),
            data.role("train"),
            data.role("validation"),
            budget=Budget(BUDGET["images"], BUDGET["report_every"]),
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

    space = parse_space(dict(SPACE), "phantom.yaml")

    def __init__(self, dataset: Path) -> None:
        torch.set_num_threads(1)
        self._data = PreparedDataset.open(dataset)

    def begin(self, parameters: Parameters, seed: tuple[int, ...]) -> RealTraining:
        first, *rest = seed
        return RealTraining(self._data, parameters, 100_000 * (first + 1) + rest[-1])

    def tested(self, parameters: Parameters, seed: int) -> float:
        """Average precision on the test patients at the end of a training."""
        budget = Budget(BUDGET["images"], BUDGET["images"])
        drawn, data = Hyperparameters(**parameters), self._data
        (end,) = train(drawn, data.role("train"), data.role("test"), budget=budget, seed=seed)
        return float(end.metrics[METRIC])
