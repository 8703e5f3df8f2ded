from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ich_ray.results import open_search
from ich_ray.search.cluster_resources import FailedLaunch
from ich_ray.search.ledger import Ledger
from ich_ray.search.tune import unstarted_machines
from ich_ray.search.tune.unstarted_machines import UnstartedMachines
from tests.records import make_record


class Search:
    """A driver whose autoscaler says what is planted."""

    def __init__(self, folder: Path) -> None:
        self.now, self.waits, self.asked = 0.0, True, 0
        self.planted: list[FailedLaunch] = []
        self.trials: list[Any] = []
        self.ledger = Ledger.create(folder, make_record())
        self.callback = self.again()

    def again(self) -> UnstartedMachines:
        return UnstartedMachines(self.ledger, lambda: self.waits, self._ask, lambda: self.now)

    def _ask(self) -> list[FailedLaunch]:
        self.asked += 1
        return self.planted

    def step(self, seconds: float) -> list[tuple[str, str, float]]:
        self.now += seconds
        self.callback.on_step_end(0, self.trials)
        return [(note.kind, note.reason, note.time) for note in open_search(self.ledger.files.root).record.unstarted]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(unstarted_machines, "say", lines.append)
    return lines


def test_a_kind_of_machine_that_cannot_be_had_is_noted_once_and_for_as_long(tmp_path: Path, said: list[str]) -> None:
    search = Search(tmp_path / "s")
    search.planted = [FailedLaunch("gpu", "Quota: limit 0, asked 1", 100.0)]
    assert search.step(59) == []
    noted = [("gpu", "Quota: limit 0, asked 1", 100.0)]
    assert search.step(1) == noted
    assert said == ["no machine of the kind gpu can be started: Quota: limit 0, asked 1; trials wait, or run elsewhere"]
    search.planted = [FailedLaunch("gpu", "Quota: limit 0, asked 2", 160.0)]
    for _ in range(5):
        assert search.step(60) == noted
    search.planted = []
    assert search.step(600) == noted, "it may only not have been tried"
    assert search.step(60) == []
    assert (len(search.ledger.record.amendments), len(said)) == (2, 1)


def test_it_is_asked_seldom_and_only_while_trials_are_left_to_start(tmp_path: Path, said: list[str]) -> None:
    search = Search(tmp_path / "s")
    for _ in range(600):
        search.step(1)
    assert search.asked == 10
    search.waits = False
    search.step(1000)
    assert search.asked == 10


def test_trials_that_were_drawn_for_machines_to_come_wait_for_them_too(tmp_path: Path, said: list[str]) -> None:
    search = Search(tmp_path / "s")
    search.waits, search.planted = False, [FailedLaunch("gpu", "Quota: 0", 1.0)]
    search.trials = [SimpleNamespace(status="PENDING", temporary_state=SimpleNamespace(ray_actor=None))]
    assert search.step(60) == [("gpu", "Quota: 0", 1.0)]
    search.trials[0].status = "RUNNING"
    assert search.step(60) == [], "nobody waits any more"
    assert search.asked == 1


def test_the_next_driver_forgets_what_is_over_and_does_not_say_again_what_is_not(
    tmp_path: Path, said: list[str]
) -> None:
    search = Search(tmp_path / "s")
    search.planted = [FailedLaunch("gpu", "Quota: 0", 1.0), FailedLaunch("cpu", "Capacity: none", 2.0)]
    assert len(search.step(60)) == 2
    search.callback, search.planted = search.again(), search.planted[1:]
    for _ in range(11):
        left = search.step(60)
    assert left == [("cpu", "Capacity: none", 2.0)]
    assert len(said) == 2


def test_an_autoscaler_that_says_something_else_each_time_does_not_fill_the_record(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unstarted_machines, "_MOST_WRITES", 5)
    search = Search(tmp_path / "s")
    for at in range(9):
        search.planted = [FailedLaunch(f"kind {at}", "no", float(at))]
        search.now += 60
        search.callback.on_step_end(0, [])
    assert len(search.ledger.record.amendments) == 5
