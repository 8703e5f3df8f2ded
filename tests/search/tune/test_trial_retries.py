from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ich_ray.search.tune.trial_retries import TrialRetries


def test_a_trial_has_all_its_retries_again_with_each_new_report() -> None:
    retries = TrialRetries(3)
    trial: Any = SimpleNamespace(config={"number": 7}, max_failures=3, num_failures=0)
    retries.on_trial_result(0, [], trial, {"images_seen": 100})
    assert trial.max_failures == 3
    trial.num_failures = 2
    retries.on_trial_result(0, [], trial, {"images_seen": 100})
    assert trial.max_failures == 3, "a report that was there before"
    retries.on_trial_result(0, [], trial, {"lost": "device"})
    assert trial.max_failures == 3
    retries.on_trial_result(0, [], trial, {"images_seen": 200})
    assert trial.max_failures == 5


def test_a_trial_that_has_ended_has_none() -> None:
    trial: Any = SimpleNamespace(config={"number": 7}, max_failures=0, num_failures=0)
    TrialRetries(3).on_trial_result(0, [], trial, {"images_seen": 100})
    assert trial.max_failures == 0
