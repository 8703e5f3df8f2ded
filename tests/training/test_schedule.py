"""The rate over a training."""

from __future__ import annotations

import pytest

from ich_ray.errors import ConfigError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.training.schedule import INVERSE_TIME, SCHEDULES, ScheduleStep


@pytest.mark.parametrize(
    ("images_seen", "rate"), [(0, 0.1), (50, 0.1 / 1.25), (100, 0.1 / 1.5), (200, 0.1 / 2), (1000, 0.1 / 6)]
)
@pytest.mark.parametrize("budget", [1000, 10**9])
def test_inverse_time_decays_with_epochs_whatever_the_budget(images_seen: int, rate: float, budget: int) -> None:
    parameters = Hyperparameters(learning_rate=0.1, decay=0.5)
    schedule = SCHEDULES[INVERSE_TIME]
    assert schedule.rate_at(parameters, ScheduleStep(images_seen, budget, slices=100)) == pytest.approx(rate)
    assert (schedule.needs_budget, schedule.retraining_factor, schedule.patience) == (False, 2, 5)


def test_an_unknown_schedule_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"schedules: must be one of inverse_time.*, got 'inverse_tim'.*inverse_time"):
        SCHEDULES["inverse_tim"]
