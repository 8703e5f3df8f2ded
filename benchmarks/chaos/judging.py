"""What each fault has cost a search that has ended: trials, reports, images, time, and whether it was named."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from benchmarks.chaos.attempts import attempts_of
from benchmarks.chaos.training import undisturbed
from ich_ray.results import open_search
from ich_ray.search.audit.search_audit import audit
from ich_ray.search.space.parameter_sets import PARAMETER_SETS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from benchmarks.chaos.attempts import Attempt
    from benchmarks.chaos.faults import Fault
    from ich_ray.trial_records import TrialResult

# Each way in which a search says that an attempt has ended.
_ENDS = "its process died|its machine is gone|fault on |no report for |it goes back to the queue"
NAMED = rf"trial {{number}}: (?:leaves |.*(?:{_ENDS}))"
SLACK_S = 1.0


@dataclass
class Cost:
    """What a fault has cost.

    Attributes:
        trials: numbers of those whose attempt it has ended.
        images: lost of each of them: computed, and computed again.
        again_s: from the last step of an attempt to the next report of its trial, the longest; of a driver, to the next
            report of any.
        problems: what must not be.
        named: whether the output says so of each; None where nothing was to be said.
    """

    trials: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    again_s: float = 0.0
    problems: list[str] = field(default_factory=list)
    named: bool | None = None


@dataclass(frozen=True)
class _Lost:
    """An attempt at a trial that another one came after, the images that were not kept of it, and when that began."""

    number: int
    attempt: Attempt
    images: int
    again: float


@dataclass(frozen=True)
class Judged:
    """A search that has ended: the cost of each fault, and what must not be and is of no fault alone.

    Attributes:
        attempts: at all of its trials.
        unexplained: those of them that ended for no fault that was planted.
    """

    costs: dict[int, Cost]
    problems: list[str]
    attempts: int
    unexplained: int


def judge(out: Path, attempts: Path, faults: Sequence[Fault], said: str, space: dict[str, int]) -> Judged:
    """Compare a search with one that nothing has disturbed.

    Args:
        out: its folder.
        attempts: the folder of what was computed.
        faults: planted meanwhile.
        said: the output of all its drivers, in bytes of UTF-8 as they were written.
        space: `images` and `report_every` of its budget.
    """
    found = open_search(out)
    checked = audit(out)
    problems = [f"{check.invariant}: {breach}" for check in checked.breached for breach in check.breaches]
    problems += [] if checked.state == "ended" else [f"its state is {checked.state}"]
    costs, unexplained, count = {fault.number: Cost() for fault in faults}, 0, 0
    there = attempts_of(attempts, out.name)
    for trial in found.trials:
        made = there.get(trial.seed, [])
        count += len(made)
        last = None  # before it all was well
        for lost in _lost(made, trial):
            cause = _cause(lost, faults)
            cost = costs[cause.number] if cause else Cost()
            _add(cost, lost, trial, space["report_every"])
            _look_for_name(cost, lost, cause, faults, said)
            last, unexplained = cause or last, unexplained + (cause is None)
            problems += [] if cause else cost.problems
        (costs[last.number].problems if last else problems).extend(_wrong(trial, space))
    for fault in faults:
        if fault.kind == "driver killed":
            later = [one.time for trial in found.trials for one in trial.reports if one.time > fault.time]
            costs[fault.number].again_s = min(later, default=fault.time) - fault.time
    return Judged(costs, problems, count, unexplained)


def _add(cost: Cost, lost: _Lost, trial: TrialResult, report_every: int) -> None:
    cost.trials.append(trial.number)
    cost.images.append(lost.images)
    # Of the newest report the state may still be on its way; what was trained since is lost with it.
    reported = max((report.images_seen for report in trial.reports if report.time <= lost.again), default=0)
    again = reported - (lost.attempt.computed - lost.images)
    cost.problems += [f"trial {trial.number}: {lost.images} images were lost"] * (lost.images > 2 * report_every)
    cost.problems += [f"trial {trial.number}: reports of {again} images were made again"] * (again > report_every)
    later = [report.time for report in trial.reports if report.time > lost.again]
    cost.again_s = max(cost.again_s, (later[0] if later else lost.again) - min(lost.attempt.last, lost.again))


def _wrong(trial: TrialResult, space: dict[str, int]) -> Iterable[str]:
    """What of a trial is not as it would have been without any fault."""
    if trial.state == "failed":
        yield f"trial {trial.number}: failed, {trial.reason} ({trial.detail})"
    parameters = PARAMETER_SETS["network"].made(trial.parameters)
    expected = undisturbed(parameters, trial.seed, space["images"], space["report_every"])
    for report in trial.reports:
        if report.metrics["average_precision"] != expected.get(report.images_seen):
            yield f"trial {trial.number}: another value at {report.images_seen} images than without faults"
            return


def _lost(made: Sequence[Attempt], trial: TrialResult) -> Iterable[_Lost]:
    for one, other in pairwise(made):
        yield _Lost(trial.number, one, one.computed - other.resumed, other.started)
    if made and (trial.state == "failed" or made[-1].computed > trial.images_seen):
        ended = trial.ended or made[-1].last
        yield _Lost(trial.number, made[-1], made[-1].computed - trial.images_seen, ended)


def _cause(lost: _Lost, faults: Sequence[Fault]) -> Fault | None:
    """The fault that ended an attempt: the last one that met it and that was not over before its last step.

    None where nothing was planted: a machine with too much to do may take a process for silent, or a machine for lost.
    """
    attempt = lost.attempt
    met = [
        fault
        for fault in faults
        if (fault.pid == attempt.pid or fault.node == attempt.node or not (fault.pid or fault.node))
        and fault.time <= lost.again
        and fault.until + SLACK_S >= attempt.last
    ]
    # Of several the one that came first after its last step, as what follows met nothing that was alive.
    after = [fault for fault in met if fault.time >= attempt.last - SLACK_S]
    return after[0] if after else met[-1] if met else None


def _look_for_name(cost: Cost, lost: _Lost, cause: Fault | None, faults: Sequence[Fault], said: str) -> None:
    """Whether the output says that the attempt has ended; a driver that was killed before the next one says nothing."""
    kills = [one.time for one in faults if one.kind == "driver killed"]
    if any(lost.attempt.started <= kill <= lost.again for kill in kills):
        return
    later = said.encode()[cause.offset if cause else 0 :].decode(errors="replace")
    is_there = re.search(NAMED.format(number=lost.number), later) is not None
    cost.named = is_there and cost.named is not False
    cost.problems += [f"trial {lost.number}: the output does not say that its attempt was lost"] * (not is_there)


def as_line(fault: Fault, cost: Cost, search: Judged) -> dict[str, Any]:
    """What is written of a fault."""
    return {
        **fault.as_dict(),
        "trials": cost.trials,
        "images": cost.images,
        "again_s": round(cost.again_s, 1),
        "named": cost.named,
        "problems": cost.problems,
        "survived": not cost.problems and not search.problems,
    }
