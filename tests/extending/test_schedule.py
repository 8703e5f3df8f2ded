"""A learning-rate schedule from outside: linear warm-up, then a cosine towards the end of the budget."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ich_ray.errors import ConfigError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.training.loop import Parts, TrainingBudget, train
from ich_ray.training.schedule import SCHEDULES, Schedule, ScheduleStep
from tests.prepared import make_dataset


def cosine(parameters: Hyperparameters, step: ScheduleStep) -> float:
    """Of the image that comes next, so that the first step is one."""
    share = (step.images_seen + 1) / step.budget_images
    if share < 0.05:
        return parameters.learning_rate * share / 0.05
    return parameters.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * (share - 0.05) / 0.95)) / 2)


def test_a_training_follows_it_to_the_end_of_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(SCHEDULES, "registered", {})  # for this test alone
    SCHEDULES.register("cosine", Schedule(cosine, needs_budget=True))  # no patience: a retraining reaches the end
    dataset = make_dataset(tmp_path / "data")
    parameters, rates = Hyperparameters(batch_size=20, learning_rate=0.1, optimizer="sgd", filters=4), []
    roles, keys = (dataset.role("train"), dataset.role("validation")), {"seed": 0, "parts": Parts(schedule="cosine")}
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self, *a: (rates.append(self.param_groups[0]["lr"]), step(self, *a))[1]
    )
    whole = [(one.metrics, one.state()) for one in train(parameters, *roles, budget=TrainingBudget(400, 200), **keys)]
    assert len(rates) == 20
    assert rates[0] == pytest.approx(0.1 * (1 / 400) / 0.05)
    assert rates[1] == max(rates)
    assert rates[10] == pytest.approx(0.1 * (0.01 + 0.99 * (1 + math.cos(math.pi * (201 / 400 - 0.05) / 0.95)) / 2))
    assert rates[19] < 0.002
    (resumed,) = train(parameters, *roles, budget=TrainingBudget(400, 200), resume=whole[0][1], **keys)
    assert resumed.metrics == whole[1][0]
    with pytest.raises(ConfigError, match="'budget': 400"):  # its first half was annealed for another end
        next(train(parameters, *roles, budget=TrainingBudget(800, 200), resume=whole[0][1], **keys))
