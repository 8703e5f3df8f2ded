"""What `doctor` makes of the answers of a cluster's machines, and what it leaves behind; planted, without a Ray."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ich_ray.cluster import doctor
from ich_ray.cluster.checks import skew_s
from ich_ray.cluster.device_facts import Devices
from ich_ray.cluster.doctor import _Answer
from ich_ray.cluster.machine_facts import Facts, look

VERSIONS = {"ich_ray": "0.1.0", "ray": "2.60.0", "torch": "2.14.0", "python": "3.11.7"}
FACTS = {"machine": "", "versions": VERSIONS, "began": 40.0, "answered": 50.0, "speed": {"latency_s": 0.1,
         "write_mb_per_s": 50.0}, "storage": ""}  # fmt: skip
SOUND = _Answer(10.0, 60.0, (VERSIONS, FACTS))


def asked(
    monkeypatch: pytest.MonkeyPatch, first: Mapping[str, _Answer], second: Mapping[str, _Answer]
) -> dict[str, Facts]:
    """What is known of machines that answer like this in the two rounds."""
    rounds = [first, second]
    nodes = [
        {"NodeID": node, "NodeManagerAddress": f"10.0.0.{node[0]}", "Alive": True, "Resources": {"GPU": 1.0}}
        for node in first
    ]

    def ask(questions: Mapping[str, Callable[[], Any]]) -> dict[str, _Answer]:
        answers = rounds.pop(0)
        return {node: answers[node] for node in questions}

    monkeypatch.setattr("ray.nodes", lambda: nodes)
    monkeypatch.setattr("ich_ray.ray_internals.get_dashboard_url", lambda: "127.0.0.1:8265")
    monkeypatch.setattr(doctor, "_ask", ask)
    machines, dashboard = doctor._ask_all("/shared/x", "w")
    assert (rounds, dashboard) == ([], "127.0.0.1:8265")
    return {machine.machine: machine for machine in machines}


def test_a_machine_that_is_silent_or_has_another_package_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    old = VERSIONS | {"ich_ray": "0.0.9"}
    first = {
        "1": SOUND,
        "2": _Answer(10.0, 11.0, (old, "must be able to look at its files, got AttributeError")),
        "3": _Answer(10.0, 190.0, None, "nothing within 180 s"),
        "4": _Answer(10.0, 60.0, (old, {**FACTS, "speed": {"of": "another record"}})),
    }
    found = asked(monkeypatch, first, {"1": _Answer(70.0, 71.0, (70.2, ({}, 80.0), 70.9))})
    assert {name: (facts.versions.get("ich_ray"), facts.silent[:27]) for name, facts in found.items()} == {
        "10.0.0.1": ("0.1.0", ""),
        "10.0.0.2": ("0.0.9", "must be able to look at its"),
        "10.0.0.3": (None, "nothing within 180 s"),
        "10.0.0.4": ("0.0.9", "an answer of another versio"),
    }
    assert found["10.0.0.1"].speed.read_mb_per_s == 80.0  # type: ignore[union-attr]


def test_files_that_are_not_seen_are_told_by_the_machine_and_two_of_one_address_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blind = _Answer(70.0, 71.0, (70.2, ({"1another": "FileNotFoundError: x"}, None), 70.9))
    found = asked(
        monkeypatch,
        {"1": SOUND, "1another": SOUND, "2": SOUND},
        {"1": blind, "1another": _Answer(70.0, 71.0, (70.2, ({}, 9.0), 70.9)), "2": _Answer(70.0, 99.0, None, "lost")},
    )
    assert {name: (facts.unread, facts.unanswered) for name, facts in found.items()} == {
        "10.0.0.1 (1)": ({"10.0.0.1 (1another)": "FileNotFoundError: x"}, {}),
        "10.0.0.1 (1another)": ({}, {}),
        "10.0.0.2": ({}, {"storage": "lost"}),
    }


def test_the_quicker_round_trip_tells_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is 20 s behind: the first answer waited 40 s for a worker to start, and would not show it."""
    behind = _Answer(10.0, 60.0, (VERSIONS, FACTS | {"began": 30.0, "answered": 35.0}))
    found = asked(monkeypatch, {"1": behind}, {"1": _Answer(70.0, 71.0, (50.1, None, 50.9))})
    assert skew_s(found["10.0.0.1"]) == pytest.approx(-19.9)


def test_each_reads_the_large_file_of_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[list[str], str]] = []
    monkeypatch.setattr(doctor, "read_others", lambda _, names, large_of: reads.append((names, large_of)) or ({}, 1.0))
    for node in ("a", "b", "c", "none"):
        doctor._look_again(str(tmp_path), ["a", "b", "c"], node)
    doctor._look_again(str(tmp_path), ["a"], "a")
    assert reads == [
        (["b", "c"], "b"),
        (["a", "c"], "c"),
        (["a", "b"], "a"),
        (["a", "b", "c"], "a"),
        ([], "a"),
    ]


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_behind_by_one_that_is_interrupted(
    ended_by: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def ended(*_: Any) -> None:
        seen.append([path.name for folder in tmp_path.iterdir() for path in folder.iterdir()])
        signal.raise_signal(ended_by)

    monkeypatch.setattr(doctor, "look", ended)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(KeyboardInterrupt):
        doctor.doctor(storage=tmp_path)
    assert seen == [["witness"]]
    assert [*tmp_path.iterdir()] == []


def test_storage_that_hangs_is_named_and_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forever = threading.Event()
    monkeypatch.setattr("ich_ray.cluster.machine_facts.ask_devices", lambda _: Devices())
    monkeypatch.setattr("ich_ray.cluster.machine_facts._STORAGE_WITHIN_S", 0.05)
    monkeypatch.setattr("ich_ray.cluster.machine_facts.write_own", lambda *_: forever.wait())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    try:
        assert look("m", str(tmp_path)).storage == "nothing within 0.05 s"
        (told,) = [str(each) for each in doctor.doctor(storage=tmp_path) if each.check == "storage"]
        assert told.startswith("error   storage   this: must read and write it, got nothing within 0.05 s; mount it")
        monkeypatch.setattr(doctor, "_WITHIN_S", 0.05)
        monkeypatch.setattr(doctor, "write_bytes", lambda *_: forever.wait())
        (told,) = [str(each) for each in doctor.doctor(storage=tmp_path) if each.check == "storage"]
        assert told.startswith(f"error   storage   {tmp_path}: must be writable from this machine, got nothing within")
    finally:
        forever.set()


def test_a_cache_that_is_named_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ich_ray.cluster.machine_facts.ask_devices", lambda _: Devices())
    monkeypatch.delenv("ICH_RAY_CACHE", raising=False)
    assert look("m").cache is None
    monkeypatch.setenv("ICH_RAY_CACHE", str(tmp_path / "new" / "cache"))
    found = look("m")
    assert (found.cache, found.cache_folder) == ("", str(tmp_path / "new" / "cache"))
    assert found.cache_free_bytes > 0  # type: ignore[operator]
    assert [*tmp_path.iterdir()] == []
    monkeypatch.setenv("ICH_RAY_CACHE", "/proc/cache")
    assert look("m").cache.startswith("/proc: ")  # type: ignore[union-attr]
