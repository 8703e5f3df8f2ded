from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ich_ray.errors import IchRayError, Interrupted
from ich_ray.search.ledger import Ledger
from ich_ray.search.tune.driver import Driver, check_own_ends
from ich_ray.trial_records import TrialResult
from tests.records import make_record


def test_a_search_that_machines_have_ended_is_no_success() -> None:
    ended = ["", "device_error", "worker_died", "diverged"]
    trials = [TrialResult(number=number, parameters={}, reason=reason) for number, reason in enumerate(ended)]
    check_own_ends("s", trials)
    with pytest.raises(IchRayError, match=r"s: most trials must end by themselves, got 2 of 3 that failed for reasons"):
        check_own_ends("s", trials[:3])


@pytest.mark.parametrize("is_done", [False, True], ids=["interrupted", "paused"])
def test_a_run_that_ends_while_nothing_runs_is_only_gone_on_with_after_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_done: bool
) -> None:
    """Ctrl-C may come between two trials."""
    told: list[str] = []
    driver: Any = object.__new__(Driver)
    driver.ledger, driver.slots = Ledger.create(tmp_path / "s", make_record(trials=2)), SimpleNamespace(concurrent=1)
    driver.sampler = SimpleNamespace(wanted=2, is_idle=True, is_done=False, waiting=[], withdrawn=set())
    driver.ledger_callback = SimpleNamespace(rests=lambda: told.append("rests"))
    driver.steering = SimpleNamespace(begin=lambda: None, wait=lambda: told.append("waits"))
    driver._takes_requests = True

    def run(self: Driver, todo: int) -> set[int]:
        told.append("runs")
        driver.sampler.is_done = is_done
        return set()

    monkeypatch.setattr(Driver, "_tune", run)
    monkeypatch.setattr(Driver, "exhausted", lambda self: None)
    with pytest.raises(Interrupted, match="got interrupted after 0"):
        driver._run_trials()
    assert told == ["waits", "runs", *(["rests", "waits"] if is_done else [])]
