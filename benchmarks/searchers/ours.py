"""Ours, as `ich-ray search` runs it; only that its time is over after so many images instead of hours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import yaml

from benchmarks.searchers.task import BUDGET, FIXED, PARAMETERS, Task, noted, write_found
from ich_ray.search.ledger import Verdict
from ich_ray.search.run import run_search
from ich_ray.search.time_budget import Limits
from ich_ray.search.tune.trial import train_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.search.tune.trial import TrialSettings
    from ich_ray.training.loop import Progress

MORE_THAN_ENOUGH = 100_000  # trials


@dataclass(frozen=True)
class ImageLimits(Limits):
    """Over when the images of a task have been shown."""

    task: Task | None = None

    def exhausted(self, used_gpu_s: float) -> Verdict | None:
        del used_gpu_s
        assert self.task
        return Verdict("pruned", "images", "the images of the comparison were shown") if self.task.spent() else None


@dataclass(frozen=True)
class NotedTrainer:
    """The trainer of every real search, noted."""

    task: Task

    def __call__(
        self, parameters: Hyperparameters, dataset: PreparedDataset, settings: TrialSettings, seed: int, resume: Any
    ) -> Iterator[Progress]:
        from ich_ray.training.state import TrainingState

        begun = TrainingState.load(resume) if resume else None
        return noted(self.task, str(seed), train_model(parameters, dataset, settings, seed, resume), begun)


def search(task: Task) -> None:
    space = Path(task.folder) / "space.yaml"
    own = {"images": task.trial_images, "report_every": task.report_every, "first_rung": task.first_rung}
    space.write_text(yaml.safe_dump({"name": "field", "budget": BUDGET | own, "parameters": FIXED | PARAMETERS}))
    with mock.patch("ich_ray.search.checked_request.Limits", partial(ImageLimits, task=task)):
        found = run_search(
            task.dataset,
            space,
            Path(task.folder) / "search",
            trials=MORE_THAN_ENOUGH,
            concurrent=task.slots,
            resume=(Path(task.folder) / "search").exists(),
            seed=task.seed,
            _trainer=NotedTrainer(task),
        )
    ended = [str(trial.seed) for trial in found.trials if trial.state != "running"]
    whole = [trial for trial in found.ranked() if trial.state == "completed"]
    write_found(task, whole[0].parameters if whole else None, ended)
