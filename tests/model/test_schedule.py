"""The rate over a training."""

from __future__ import annotations

import pytest

from ich_ray.errors import ConfigError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.schedule import SCHEDULES, ScheduleStep, needs_budget, rate_of


def rate(schedule: str, images_seen: int, budget: int = 1000, **more: float) -> float:
    parameters = Hyperparameters.model_validate({"learning_rate": 0.1, "schedule": schedule, **more})
    return rate_of(parameters, ScheduleStep(images_seen, budget, slices=100))


@pytest.mark.parametrize(("images_seen", "expected"), [(0, 0.1), (50, 0.08), (100, 0.1 / 1.5), (200, 0.05)])
@pytest.mark.parametrize("budget", [1000, 10**9])
def test_inverse_time_decays_with_epochs_whatever_the_budget(images_seen: int, expected: float, budget: int) -> None:
    assert rate("inverse_time", images_seen, budget, decay=0.5) == pytest.approx(expected)
    assert rate("constant", images_seen, budget, decay=0.5) == 0.1


@pytest.mark.parametrize(
    ("schedule", "warmup", "curve"),
    [
        ("cosine", 0.0, {0: 0.1, 250: 0.0855018, 500: 0.0505, 750: 0.0154982, 1000: 0.001}),
        ("cosine", 0.1, {0: 0.001, 50: 0.0505, 99: 0.09901, 100: 0.1, 325: 0.0855018, 550: 0.0505, 1000: 0.001}),
        ("flat_cosine", 0.0, {0: 0.1, 750: 0.1, 875: 0.0505, 1000: 0.001}),
        ("flat_cosine", 0.2, {0: 0.001, 100: 0.0505, 200: 0.1, 800: 0.1, 850: 0.0855018, 900: 0.0505, 1000: 0.001}),
        ("constant", 0.1, {0: 0.001, 25: 0.02575, 100: 0.1, 1000: 0.1}),
        ("inverse_time", 0.1, {0: 0.001, 50: 0.0404, 100: 0.1 / 1.5, 1000: 0.1 / 6}),
    ],
)
def test_the_rate_rises_in_the_warm_up_and_then_follows_its_schedule(
    schedule: str, warmup: float, curve: dict[int, float]
) -> None:
    assert {seen: rate(schedule, seen, warmup=warmup, decay=0.5) for seen in curve} == pytest.approx(curve)


@pytest.mark.parametrize("schedule", ["cosine", "flat_cosine"])
def test_a_curve_is_stretched_over_its_budget(schedule: str) -> None:
    for seen in (0, 30, 500, 900, 1000):
        assert rate(schedule, 7 * seen, 7000, warmup=0.05) == pytest.approx(rate(schedule, seen, warmup=0.05))


@pytest.mark.parametrize(
    ("schedule", "warmup", "needs"),
    [("inverse_time", 0, False), ("constant", 0, False), ("constant", 0.05, True), ("inverse_time", 0.05, True),
     ("cosine", 0, True), ("flat_cosine", 0, True)],
)  # fmt: skip
def test_what_ends_or_warms_up_needs_its_budget(schedule: str, warmup: float, needs: bool) -> None:
    assert needs_budget(Hyperparameters(schedule=schedule, warmup=warmup)) is needs


def test_a_retraining_reaches_the_end_of_a_cosine_and_goes_on_after_any_other() -> None:
    lengths = {name: (SCHEDULES[name].retraining_factor, SCHEDULES[name].patience) for name in SCHEDULES.names()}
    assert lengths == {"inverse_time": (2, 5), "constant": (2, 5), "cosine": (1, None), "flat_cosine": (1, None)}


def test_an_unknown_schedule_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"schedules: must be one of inverse_time.*, got 'inverse_tim'.*inverse_time"):
        SCHEDULES["inverse_tim"]
