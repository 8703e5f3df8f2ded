"""Storage as machines tell of it: not one for all, slow everywhere, or slow on one."""

from __future__ import annotations

from typing import Any

import pytest

from ich_ray.cluster.machine_facts import Facts
from ich_ray.cluster.storage_checks import check_storage
from ich_ray.cluster.storage_speed import StorageSpeed


def machine(name: str, write: float = 100.0, **changes: Any) -> Facts:
    speed = StorageSpeed(latency_s=0.02, write_mb_per_s=write, read_mb_per_s=200.0)
    return Facts(**{"machine": name, "versions": {}, "storage": "", "speed": speed, **changes})


def test_good_storage_is_told_as_the_time_of_a_state() -> None:
    assert [str(each) for each in check_storage([machine("a"), machine("b", 50.0), machine("c", storage=None)])] == [
        "ok      storage   read and written from 2 of 3; a state of 100 MB takes 2.0 s to write, 0.5 s to read, a "
        "small file 20 ms on the slowest"
    ]
    assert [*check_storage([machine("a", storage=None)])] == []


def test_less_than_can_be_measured_is_not_shown_as_nothing() -> None:
    (told,) = check_storage([machine("a", 3000.0)])
    assert "a state of 100 MB takes under 0.1 s to write, 0.5 s to read, a small file 20 ms" in told.found


@pytest.mark.parametrize(
    ("odd", "state", "found"),
    [
        (
            machine("b", storage="nothing within 30 s", speed=None),
            "error",
            "b: must read and write it, got nothing within 30 s",
        ),
        (
            machine("b", unread={"a": "FileNotFoundError: x", "c": "FileNotFoundError: y"}),
            "error",
            "b: must read what a has just written there, got FileNotFoundError: x, and of 1 more",
        ),
        (
            machine("b", 10.0),
            "warning",
            "b: must be about as fast as on most machines, where a state of 100 MB takes 1.0 s to write, got 10.0 s",
        ),
    ],
)
def test_storage_that_is_not_the_same_everywhere_is_named_with_its_machine(odd: Facts, state: str, found: str) -> None:
    told = [each for each in check_storage([machine("a"), odd, machine("c")]) if each.state != "ok"]
    assert [(each.state, each.found, each.machines) for each in told] == [(state, found, ("b",))]
    assert told[0].remedy
    shown = [each.state for each in check_storage([machine("a"), odd, machine("c")])]
    assert ("ok" in shown) == (state == "warning")


def test_storage_that_is_slow_everywhere_is_told_with_what_reports_must_be() -> None:
    slow, good = check_storage([machine("a", 2.0), machine("b", 2.5)])
    assert (slow.state, good.state) == ("warning", "ok")
    assert slow.found == "a state of 100 MB should be written within 30 s, got 40 s on most machines"
    assert "`report_every`" in slow.remedy
