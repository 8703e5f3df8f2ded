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
    from ich_ray.results import TrialResult

# Each way in which a search says that an attempt has ended.
NAMED = r"trial {number}: .*(?:its process died|its machine is gone|fault on |no report for |it goes back to the queue)"
SLACK_S = 1.0


@dataclass
class Cost:
    """What a fault has cost.

    Attributes:
        trials: numbers of those whose attempt it has ended.
        images: lost of each of them: computed, and computed again.
        again_s: until the last of them had a new report.
        problems: what must not be.
        named: whether the output says so of each; None where nothing was to be said.
    """

    trials: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    again_s: float = 0.0
    problems: list[str] = field(default_factory=list)
    named: bool | None = None


@dataclass(frozen=True)
class Judged:
    """A search that has ended: the cost of each fault, and what must not be and is of no fault alone."""

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
        met = [(cause, attempt) for attempt, cause in _count(made, trial, faults, costs, space["report_every"])]
        alone = [attempt for cause, attempt in met if cause is None]
        unexplained += len(alone)
        problems += [
            f"trial {trial.number}: an attempt ended for no fault that was planted ({one.pid})" for one in alone
        ]
        last = next((cause for cause, _ in reversed(met) if cause), None)  # before it all was well
        (costs[last.number].problems if last else problems).extend(_wrong(trial, space))
    for fault in faults:
        _look_for_name(fault, costs[fault.number], faults, said)
        if fault.kind == "driver killed":
            later = [one.time for trial in found.trials for one in trial.reports if one.time > fault.time]
            costs[fault.number].again_s = min(later, default=fault.time) - fault.time
    return Judged(costs, problems, count, unexplained)


def _count(
    made: Sequence[Attempt], trial: TrialResult, faults: Sequence[Fault], costs: dict[int, Cost], report_every: int
) -> Iterable[tuple[Attempt, Fault | None]]:
    """Add what a trial has lost to the costs of the faults; its lost attempts, each with its fault."""
    for attempt, kept, again in _lost(made, trial):
        cause, lost = _cause(attempt, again, faults), attempt.computed - kept
        yield attempt, cause
        if cause is None:
            continue
        cost = costs[cause.number]
        cost.trials.append(trial.number)
        cost.images.append(lost)
        cost.problems += [f"trial {trial.number}: {lost} images were lost"] * (lost > report_every)
        later = [report.time for report in trial.reports if report.time > cause.time]
        cost.again_s = max(cost.again_s, (later[0] if later else trial.ended or cause.time) - cause.time)


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


def _lost(made: Sequence[Attempt], trial: TrialResult) -> Iterable[tuple[Attempt, int, float]]:
    """Attempts that others came after, the images that were kept of them, and when the next began."""
    for one, other in pairwise(made):
        yield one, other.resumed, other.started
    if made and (trial.state == "failed" or made[-1].computed > trial.images_seen):
        yield made[-1], trial.images_seen, trial.ended or made[-1].last


def _cause(attempt: Attempt, again: float, faults: Sequence[Fault]) -> Fault | None:
    """The fault that ended an attempt: the last one that met it and that was not over before its last step."""
    met = [
        fault
        for fault in faults
        if (fault.pid == attempt.pid or fault.node == attempt.node or not (fault.pid or fault.node))
        and fault.time <= again
        and fault.until + SLACK_S >= attempt.last
    ]
    # Of several the one that came first after its last step, as what follows met nothing that was alive.
    after = [fault for fault in met if fault.time >= attempt.last - SLACK_S]
    return after[0] if after else met[-1] if met else None


def _look_for_name(fault: Fault, cost: Cost, faults: Sequence[Fault], said: str) -> None:
    """Whether the output says of each trial that the fault has ended its attempt.

    A driver that is killed says nothing, nor does it of what came before in the same seconds.
    """
    kills = [one.time for one in faults if one.kind == "driver killed"]
    if not cost.trials or any(-20 < fault.time - kill < 5 or 0 <= kill - fault.time < 60 for kill in kills):
        return
    later = said.encode()[fault.offset :].decode(errors="replace")
    missing = [number for number in cost.trials if not re.search(NAMED.format(number=number), later)]
    cost.named = not missing
    cost.problems += [f"trial {number}: the output does not say that its attempt was lost" for number in missing]


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
