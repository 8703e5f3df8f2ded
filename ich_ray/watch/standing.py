"""Where a search stands: what is left of it, its machines, and what failed on them.

Pure functions of the ledger.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.errors import ConfigError
from ich_ray.search.plan.expected import expected_images, images_to_come
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.trial_records import OF_NODES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ich_ray.html_report.best_so_far import TrialCourse
    from ich_ray.search_records import LaunchNote, SearchRecord
    from ich_ray.trial_records import LostAttempt, TrialResult
    from ich_ray.watch.followed import State

__all__ = ["Failures", "MachineState", "expected_of_trial", "failures", "images_left", "machines"]

_UNKNOWN = "between two trials, or waiting for a machine"


@dataclass(frozen=True)
class MachineState:
    """A machine as the ledger knows it.

    Attributes:
        busy: trials that run on it by their last report.
        slots: the most that ever ran on it at a time.
        trials: that reported from it.
        lost: attempts that ended with a fault of it.
        why: the reason why slots are empty; empty where none is.
    """

    name: str
    busy: int
    slots: int
    trials: int
    images_per_s: float | None
    lost: int
    why: str


@dataclass(frozen=True)
class Failures:
    """How often something went wrong on a machine, and whether it was the trial's own fault."""

    kind: str
    machine: str
    count: int
    of_trials: bool


def expected_of_trial(record: SearchRecord) -> float:
    """Images that the plan expects of one trial; 0 where this version cannot read the space."""
    try:
        space = parse_space(record.space, "search.json")
        return expected_images(space, record.wanted) / max(record.wanted, 1)
    except ConfigError:
        return 0.0


def images_left(record: SearchRecord, courses: Iterable[TrialCourse], expected: float, budget: int) -> float:
    """Images until the last trial has ended, from what trials took so far and the plan expects."""
    done = [*courses]
    ended = [one.images for one in done if one.state != "running"]
    running = [one.images for one in done if one.state == "running"]
    return images_to_come(
        max(record.wanted, len(done)),
        expected,
        ended=len(ended),
        ended_images=sum(ended),
        begun_images=sum(running),
        running=running,
        budget=budget,
        networks=record.objective.networks,
    )


def machines(
    record: SearchRecord, courses: Iterable[TrialCourse], lost: Sequence[LostAttempt], state: State, now: float
) -> list[MachineState]:
    """Every machine that a trial has reported from or that was lost, busiest first.

    Then kinds of machines that cannot be had.
    """
    by_name: dict[str, list[TrialCourse]] = {attempt.host: [] for attempt in lost}
    trials = 0
    for one in courses:
        trials += 1
        if one.machine:
            by_name.setdefault(one.machine, []).append(one)
    counts = Counter(attempt.host for attempt in lost)
    waits = _waits(record, trials, lost, state, now)
    found = [_machine(name, of, counts[name], state, waits) for name, of in by_name.items()]
    missing = record.unstarted if waits.everywhere == _UNKNOWN else []
    return sorted(found, key=lambda machine: (-machine.busy, machine.name)) + [_unstarted(note) for note in missing]


def _unstarted(note: LaunchNote) -> MachineState:
    why = f"cannot be started since {_clock(note.time)}: {note.reason}"
    return MachineState(f"{note.kind} (to come)", busy=0, slots=0, trials=0, images_per_s=None, lost=0, why=why)


def _machine(name: str, courses: Sequence[TrialCourse], lost: int, state: State, waits: _Waits) -> MachineState:
    running = [one for one in courses if one.state == "running"] if state == "running" else []
    rates = [one.images_per_s for one in running if one.images_per_s is not None]
    slots = max(_most_at_once(courses), len(running))
    return MachineState(
        name=name,
        busy=len(running),
        slots=slots,
        trials=len(courses),
        images_per_s=sum(rates) if rates else None,
        lost=lost,
        why=waits.why(name, max((one.ended for one in courses), default=0.0)) if len(running) < slots or lost else "",
    )


def _most_at_once(courses: Sequence[TrialCourse]) -> int:
    """The most that trained at a time; a trial is added to the ledger before it has a slot, so that is no start."""
    spans = np.array([(one.began, one.ended) for one in courses if len(one.rows)]).reshape(-1, 2)
    times, changes = spans.ravel(order="F"), np.repeat([1, -1], len(spans))
    order = np.lexsort((changes, times))  # of one moment, ends first
    return int(changes[order].cumsum().max(initial=0))


@dataclass(frozen=True)
class _Waits:
    """Why a slot may be empty: for every machine, and for some."""

    everywhere: str
    quarantined: Mapping[str, str]
    gone: Mapping[str, tuple[float, str]]
    none_comes: bool

    def why(self, machine: str, last_report: float) -> str:
        if self.everywhere != _UNKNOWN:
            return self.everywhere
        if machine in self.quarantined:
            return self.quarantined[machine]
        at, cause = self.gone.get(machine, (0.0, ""))
        if at <= last_report:
            return self.everywhere
        return f"the machine went at {_clock(at)} ({cause}){'; no other one can be started' * self.none_comes}"


def _waits(record: SearchRecord, trials: int, lost: Iterable[LostAttempt], state: State, now: float) -> _Waits:
    if state != "running":
        everywhere = "the search has ended" if state == "ended" else "no driver is at work: resume the search"
    elif trials >= record.wanted and not record.unstarted:  # else some that were drawn wait for a machine
        everywhere = "nothing is left to start"
    elif record.asked_last("pause"):
        everywhere = "paused: `ich-ray control --unpause` goes on"
    else:
        everywhere = _UNKNOWN
    out = {
        note.host: f"in quarantine until {_clock(note.until)} ({note.cause} on {note.place})"
        for note in record.quarantined
        if note.until > now
    }
    gone: dict[str, tuple[float, str]] = {}
    for attempt in lost:
        if attempt.cause in OF_NODES and attempt.time > gone.get(attempt.host, (0.0, ""))[0]:
            gone[attempt.host] = attempt.time, attempt.cause
    return _Waits(everywhere, out, gone, bool(record.unstarted))


def _clock(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M UTC")


def failures(trials: Iterable[TrialResult]) -> list[Failures]:
    """What went wrong, by kind and machine, the most frequent first."""
    found: Counter[tuple[str, str, bool]] = Counter()
    for trial in trials:
        found.update((attempt.cause, attempt.place, False) for attempt in trial.lost)
        if trial.state == "failed":
            found[trial.reason, trial.machine, True] += 1
    return [Failures(kind, machine, count, own) for (kind, machine, own), count in found.most_common()]
