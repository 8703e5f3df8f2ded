"""A learning-rate schedule from outside: after the warm-up a straight line to the end of the budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ich_ray.errors import ConfigError
from ich_ray.model.fields import OptimizationFields
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.schedule import SCHEDULES, Schedule, ScheduleStep
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.training.loop import TrainingBudget, train
from tests.prepared import make_dataset

SPACE = {
    "name": "straight",
    "budget": {"images": 400, "report_every": 200, "first_rung": 200},
    "parameters": {"schedule": {"choice": ["linear", "cosine"]}, "warmup": 0.05},
}


def linear(parameters: OptimizationFields, step: ScheduleStep) -> float:
    return parameters.learning_rate * (1 - step.share_after(parameters.warmup))


def test_a_training_follows_it_to_the_end_of_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(SCHEDULES, "registered", {})  # for this test alone
    SCHEDULES.register("linear", Schedule(linear, needs_budget=True))  # no patience: a retraining reaches the end
    assert parse_space(SPACE, "straight.yaml").parameters[0].values == ("linear", "cosine")
    dataset = make_dataset(tmp_path / "data")
    given = {"batch_size": 20, "learning_rate": 0.1, "optimizer": "sgd", "filters": 4}
    parameters, rates = Hyperparameters.model_validate({**given, "schedule": "linear", "warmup": 0.05}), []
    roles = (dataset.role("train"), dataset.role("validation"))
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self, *a: (rates.append(self.param_groups[0]["lr"]), step(self, *a))[1]
    )
    stream = train(parameters, *roles, budget=TrainingBudget(400, 200), seed=0)
    whole = [(one.metrics, one.state()) for one in stream]
    assert rates == pytest.approx([0.001, *(0.1 * (1 - part / 19) for part in range(19))])
    (resumed,) = train(parameters, *roles, budget=TrainingBudget(400, 200), resume=whole[0][1], seed=0)
    assert resumed.metrics == whole[1][0]
    with pytest.raises(ConfigError, match="'budget': 400"):  # its first half was annealed for another end
        next(train(parameters, *roles, budget=TrainingBudget(800, 200), resume=whole[0][1], seed=0))
