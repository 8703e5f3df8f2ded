"""Ends processes of trials that say nothing any more, as in a deadlock.

Or in a read that never returns, or stopped: Tune waits for a report for ever. A Tune callback in the driver: it looks
at the time since the last report of each running trial, asks the machine what its process does, has the attempt judged
like one that a fault has ended, and only then has the process killed there, from outside, as none of these answers.
"""

from __future__ import annotations

import math
import os
import platform
import signal
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.tune import Callback

from ich_ray.machines import on_node
from ich_ray.progress import say
from ich_ray.ray_internals import process_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ray.tune.experiment import Trial

__all__ = ["SILENT", "Watchdog"]

# The cause of a lost attempt.
SILENT = "silent"
_TIMES = 5
# Before any trial, or any on its machine, has made its first report, which may wait for a copy of the dataset, nobody
# knows how long that takes: so many times the least.
_TIMES_UNKNOWN = 12
# Longer between two looks, and it was the driver that stood still.
_STOOD_STILL_S = 30.0
# A machine that does not say by then what its process does is asked no more: Ray ends the process.
_ANSWER_WITHIN_S = 60.0


@dataclass
class _Pace:
    """The reports of a trial that runs: when the last one came, and the time that each took."""

    last: float
    first_s: float | None = None
    later_s: list[float] = field(default_factory=list)
    has_reported: bool = False

    def usual_s(self) -> float:
        """The first report stands for what a new fold or attempt takes."""
        return max(self.first_s or 0.0, statistics.median(self.later_s) if self.later_s else 0.0)


@dataclass(frozen=True)
class _Question:
    """What a machine was asked about a process."""

    trial: Trial
    node: str
    pid: int
    quiet_s: float
    asked: float
    answer: Any


class Watchdog(Callback):
    """Looks for trials that have fallen silent.

    Args:
        lost: told of each before its process is ended, with what a worker would have said of a fault.
        least_s: without a report before a trial counts as silent, whatever is usual.
        now: a clock that does not go back.
    """

    def __init__(
        self,
        lost: Callable[[Trial, dict[str, str]], None],
        least_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lost, self._least_s, self._now = lost, least_s, now
        self._running: dict[int, _Pace] = {}
        self._slowest_first_s: float | None = None
        self._nodes: set[str] = set()
        self._asked: dict[int, _Question] = {}
        self._looked = now()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        pace = self._running.setdefault(trial.config["number"], _Pace(0.0))
        pace.last, pace.has_reported = self._now(), False

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Trial],  # noqa: ARG002
        trial: Trial,
        result: dict[str, Any],
        **info: Any,  # noqa: ARG002
    ) -> None:
        pace = self._running.get(trial.config["number"])
        if pace is None or "lost" in result or "failure" in result:
            return
        took, pace.last = self._now() - pace.last, self._now()
        if "admitted" not in result:  # of an attempt before, sent again at once: nothing was trained for it
            pace.last = math.inf if took < 0 else pace.last
            self._asked.pop(trial.config["number"], None)
            return
        self._nodes.add(result.get("node", ""))
        if took < 0:  # it was to be ended, and has reported before that
            return
        if pace.has_reported:
            pace.later_s.append(took)
        else:
            pace.first_s, pace.has_reported = took, True
            self._slowest_first_s = max(took, self._slowest_first_s or 0.0)
        self._asked.pop(trial.config["number"], None)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        """Its pace is known from now on, and it is not looked at until it starts."""
        if pace := self._running.get(trial.config["number"]):
            pace.last = math.inf
        self._asked.pop(trial.config["number"], None)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        self._forget(trial)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        self._forget(trial)

    def _forget(self, trial: Trial) -> None:
        self._running.pop(trial.config["number"], None)
        self._asked.pop(trial.config["number"], None)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:  # noqa: ARG002
        silent = self.silent()
        for trial in trials if silent else ():
            number = trial.config["number"]
            if number in silent and number not in self._asked:
                self._ask(trial)
        for question in [*self._asked.values()]:
            self._read(question)

    def silent(self) -> set[int]:
        """Numbers of the trials that have said nothing for too long."""
        now = self._now()
        stood_still_s, self._looked = now - self._looked, now
        if stood_still_s > _STOOD_STILL_S:  # reports of this time are still to be read
            for pace in self._running.values():
                pace.last += stood_still_s
        quiet_s = {number: now - pace.last for number, pace in self._running.items()}
        # No limit is below the least, and a median of many reports takes its time.
        return {number for number, quiet in quiet_s.items() if quiet > self._least_s and quiet > self.limit_s(number)}

    def limit_s(self, number: int) -> float:
        """How long a running trial may say nothing."""
        pace = self._running[number]
        if pace.has_reported:
            return max(self._least_s, _TIMES * pace.usual_s())
        if self._slowest_first_s is None:
            return _TIMES_UNKNOWN * self._least_s
        return max(self._least_s, _TIMES * max(self._slowest_first_s, pace.usual_s()))

    def longest_limit_s(self) -> float:
        """How long there may be no report of any trial; where none runs, as before the first report."""
        limits = [self.limit_s(number) for number in self._running]
        return max(limits, default=_TIMES_UNKNOWN * self._least_s)

    def _ask(self, trial: Trial) -> None:
        number, now = trial.config["number"], self._now()
        found = process_of(trial)
        if found is None:
            return  # Ray knows nothing of it either, and Tune will hear of that
        node, pid = found
        quiet_s = now - self._running[number].last
        if node not in self._nodes and quiet_s <= _TIMES_UNKNOWN * self._least_s:
            return
        self._asked[number] = _Question(trial, node, pid, quiet_s, now, on_node(node, state_of, pid))

    def _read(self, question: _Question) -> None:
        number = question.trial.config["number"]
        if ray.wait([question.answer], timeout=0)[0]:
            host, state = _answer(question.answer)
        elif self._now() - question.asked > _ANSWER_WITHIN_S:
            host, state = "", "its machine does not answer"
        else:
            return
        self._asked.pop(number)
        self._running[number].last = math.inf
        detail = f"no report for {question.quiet_s:.0f} s, process {question.pid}: {state}"
        say(f"trial {number}: {detail}; it is ended")
        host = host or question.node[:8]
        self._lost(question.trial, {"lost": SILENT, "detail": detail, "node": question.node, "host": host})
        on_node(question.node, end_process, question.pid)
        actor = question.trial.temporary_state.ray_actor
        if not state.startswith("there") and actor is not None:
            ray.kill(actor)


def _answer(reference: Any) -> tuple[str, str]:
    try:
        host, state = ray.get(reference)
    except ray.exceptions.RayError as error:
        return "", f"its machine does not answer ({type(error).__name__})"
    return host, state


# What /proc calls the state of a process.
_STATES = {"R": "running", "S": "waiting", "D": "waiting for a disk or device", "T": "stopped", "t": "traced"}


def state_of(pid: int) -> tuple[str, str]:
    """The name of this machine, and what a process of it does."""
    try:
        sign = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return platform.node(), "gone"
    if sign in "ZX":
        return platform.node(), "gone"
    return platform.node(), f"there and {_STATES.get(sign, 'alive')}"


def end_process(pid: int) -> None:
    """Kill a worker of Ray on this machine, and nothing else that has its number by now."""
    try:
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
            os.kill(pid, signal.SIGKILL)
    except OSError:
        return
