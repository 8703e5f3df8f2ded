from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from ich_ray.search.tune import watchdog as module
from ich_ray.search.tune.watchdog import Watchdog, end_process, state_of


class Watched:
    """A watchdog with a clock of its own and trials that Ray does not know."""

    def __init__(self) -> None:
        self.now, self.lost = 0.0, list[dict[str, str]]()
        self.dog = Watchdog(lambda _, told: self.lost.append(told), 300.0, lambda: self.now)

    def pass_by(self, seconds: float) -> set[int]:
        """Let time go by in looks of ten seconds; who is silent then."""
        silent = set[int]()
        for _ in range(int(seconds / 10)):
            self.now += 10
            silent = self.dog.silent()
        return silent

    def start(self, number: int) -> None:
        self.dog.on_trial_start(0, [], trial(number))

    def report(self, number: int, **said: Any) -> None:
        self.dog.on_trial_result(0, [], trial(number), {"node": "a", "admitted": 1.0, **said})

    def send_again(self, number: int) -> None:
        """A report of an attempt before, as a trial that goes on from a whole state does at once."""
        self.dog.on_trial_result(0, [], trial(number), {"images_seen": 100, "metrics": {}, "checkpoint": {}})


def trial(number: int, actor: object = None) -> Any:
    return SimpleNamespace(config={"number": number}, temporary_state=SimpleNamespace(ray_actor=actor))


def test_a_trial_may_be_silent_for_the_least_time_and_for_five_of_its_reports() -> None:
    watched = Watched()
    watched.start(1)
    for _ in range(3):
        watched.pass_by(20)
        watched.report(1)
    assert watched.dog.limit_s(1) == 300
    for _ in range(2):
        watched.pass_by(100)
        watched.report(1)
    assert watched.dog.limit_s(1) == 300, "after the first one 20, 20, 100, 100: half of them 60"
    watched.pass_by(100)
    watched.report(1)
    assert watched.dog.limit_s(1) == 500
    assert watched.pass_by(500) == set()
    assert watched.pass_by(10) == {1}


def test_no_report_of_any_trial_is_normal_for_as_long_as_for_the_slowest_of_them() -> None:
    watched = Watched()
    assert watched.dog.longest_limit_s() == 3600, "before the first report, and where nothing runs"
    watched.start(1)
    watched.pass_by(20)
    watched.report(1)
    assert watched.dog.longest_limit_s() == 300
    watched.start(2)
    watched.pass_by(100)
    watched.report(2)
    assert watched.dog.longest_limit_s() == 500
    watched.dog.on_trial_complete(0, [], trial(2))
    assert watched.dog.longest_limit_s() == 300


def test_before_its_first_report_the_slowest_first_report_of_all_counts() -> None:
    watched = Watched()
    watched.start(1)
    assert watched.dog.limit_s(1) == 3600, "nobody knows yet"
    watched.pass_by(200)
    watched.report(1)
    watched.start(2)
    assert watched.dog.limit_s(2) == 1000
    assert watched.pass_by(1000) == set()
    assert watched.pass_by(10) == {1, 2}


def test_a_report_that_is_sent_again_is_no_first_report_and_tells_no_pace() -> None:
    watched = Watched()
    for number in (1, 2):
        watched.start(number)
    watched.pass_by(20)
    watched.send_again(1)
    assert (watched.dog.limit_s(1), watched.dog.limit_s(2)) == (3600, 3600), "nobody knows yet"
    assert watched.pass_by(900) == set()
    watched.report(1)
    assert (watched.dog.limit_s(1), watched.dog.limit_s(2)) == (4500, 4500), "900 s from when it was sent again"
    assert watched.pass_by(3600) == {2}, "4,520 s"


def test_a_report_that_is_sent_again_is_a_sign_of_life() -> None:
    watched = Watched()
    watched.start(1)
    watched.report(1)
    watched.dog.on_trial_recover(0, [], trial(1))
    watched.start(1)
    watched.pass_by(300)
    watched.send_again(1)
    assert watched.pass_by(300) == set()
    assert watched.pass_by(10) == {1}


def test_who_waits_in_the_queue_or_has_ended_is_not_silent() -> None:
    watched = Watched()
    for number in (1, 2, 3):
        watched.start(number)
        watched.report(number)
    watched.dog.on_trial_recover(0, [], trial(1))
    watched.dog.on_trial_complete(0, [], trial(2))
    watched.dog.on_trial_error(0, [], trial(3))
    assert watched.pass_by(9000) == set()
    watched.start(1)
    assert watched.pass_by(310) == {1}


def test_a_driver_that_stood_still_calls_nobody_silent() -> None:
    watched = Watched()
    watched.start(1)
    watched.report(1)
    watched.now += 7200
    assert watched.dog.silent() == set()
    assert watched.pass_by(310) == {1}


def test_what_a_worker_says_of_a_fault_is_no_report() -> None:
    watched = Watched()
    watched.start(1)
    watched.report(1, lost="device")
    watched.report(1, failure="error")
    assert watched.dog.limit_s(1) == 3600


def test_a_process_that_sends_a_report_again_is_not_ended_by_the_answer_of_its_machine(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.ray, "wait", lambda _, timeout: ([], []))
    watched = Watched()
    watched.start(1)
    watched.report(1)
    watched.pass_by(310)
    watched.dog.on_step_end(0, [trial(1)])
    assert asked == ["state_of 4711 on a"]
    watched.send_again(1)
    monkeypatch.setattr(module.ray, "wait", lambda asked, timeout: (asked, []))
    watched.dog.on_step_end(0, [trial(1)])
    assert (watched.lost, asked) == ([], ["state_of 4711 on a"])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Machines that answer what stands in `answers`, or not at all; what was done to them."""
    done: list[str] = []
    monkeypatch.setattr(module, "process_of", lambda _: ("a", 4711))
    monkeypatch.setattr(module, "on_node", lambda node, what, pid: done.append(f"{what.__name__} {pid} on {node}"))
    monkeypatch.setattr(module.ray, "kill", lambda actor: done.append(f"kill {actor}"))
    return done


@pytest.mark.parametrize(
    ("answer", "said", "done"),
    [
        (("host-a", "there and stopped"), "there and stopped", []),
        (("host-a", "gone"), "gone", ["kill its actor"]),
        (None, "its machine does not answer", ["kill its actor"]),
    ],
)
def test_a_silent_process_is_asked_judged_and_then_ended(
    answer: Any, said: str, done: list[str], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready: list[Any] = []
    monkeypatch.setattr(module.ray, "wait", lambda _, timeout: (ready, []))
    monkeypatch.setattr(module.ray, "get", lambda _: answer)
    watched = Watched()
    one = trial(1, "its actor")
    watched.start(1)
    watched.report(1)
    watched.pass_by(310)
    watched.dog.on_step_end(0, [one])
    watched.dog.on_step_end(0, [one])
    assert asked == ["state_of 4711 on a"], "once"
    ready += [1] if answer else []
    watched.now += 0 if answer else 20
    watched.dog.on_step_end(0, [one])
    if not answer:
        assert watched.lost == []
        watched.now += 25
        watched.dog.on_step_end(0, [one])
        watched.now += 25
        watched.dog.on_step_end(0, [one])
    (told,) = watched.lost
    assert (told["lost"], told["node"]) == ("silent", "a")
    assert told["detail"].endswith(f"s, process 4711: {said}")
    assert asked == ["state_of 4711 on a", "end_process 4711 on a", *done]
    assert watched.pass_by(9000) == set()


def test_a_process_tells_what_it_does_and_only_workers_of_ray_are_ended() -> None:
    sleeper = "import time; print(flush=True); time.sleep(60)"
    for name, ended in (("/home/me/ich_ray/bin/python", False), ("ray::Trial", True)):
        with subprocess.Popen([name, "-c", sleeper], executable=sys.executable, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert state_of(process.pid)[1] in ("there and waiting", "there and running")
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            assert state_of(process.pid)[1] == "there and stopped"
            end_process(process.pid)
            if not ended:
                assert state_of(process.pid)[1] == "there and stopped"
                process.kill()
            assert process.wait(10) == -signal.SIGKILL
            assert state_of(process.pid)[1] == "gone"


def test_a_trial_without_a_process_is_left_to_tune() -> None:
    assert not ray.is_initialized()
    assert module.process_of(trial(1)) is None
