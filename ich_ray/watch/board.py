"""What the page of `ich-ray watch` shows, as JSON: all of it, or what has changed since a version.

The row of a trial is written once and kept, so that a page of 10,000 trials costs as much as what changes on it.
"""

from __future__ import annotations

import html
import json
import time
from dataclasses import asdict
from heapq import nlargest
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ich_ray.html_report.best_so_far import TrialCourse, course, work
from ich_ray.results import fault_note
from ich_ray.search.space.space import Budget
from ich_ray.watch.standing import expected_of_trial, failures, images_left, machines

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ich_ray.html_report.best_so_far import WorkDone
    from ich_ray.results import SearchResult
    from ich_ray.search_records import SearchRecord
    from ich_ray.trial_records import TrialResult
    from ich_ray.watch.followed import FollowedSearch, State

__all__ = ["Board", "compact_json"]

# Of the columns of a row, in front of its parameters.
_COLUMNS = (
    *("number", "state", "reason", "value", "last", "images", "images_per_s", "memory", "device_use", "attempts"),
    *("lost", "machine", "started", "ended", "gpu_hours"),
)
# More lines can neither be told apart nor drawn in time.
_MOST_CURVES, _MOST_PEERS, _MOST_POINTS = 200, 30, 120
_MOST_DAMAGED, _MOST_FAILURES, _MOST_MACHINES = 20, 50, 500
# As many as the report shows.
_MOST_LINES = 400


class Board:
    """The page's content at the last `update`.

    Attributes:
        version: of the content; grows by one whenever something on the page has changed.
    """

    def __init__(self, followed: FollowedSearch, price: float | None = None) -> None:
        self._followed, self._price = followed, price
        self.version = 0
        self._courses: dict[int, TrialCourse] = {}
        self._rows: dict[int, str] = {}
        self._changed_at: dict[int, int] = {}
        self._complete_from = 0  # before this version a page lacks more than changed rows
        self._parameters: list[str] = []
        self._head: dict[str, Any] = {}
        self._faulty: dict[int, TrialResult] = {}  # those that failed or lost an attempt
        self._expected: tuple[SearchRecord, float] | None = None
        self._told: tuple[Any, ...] = ()

    def update(self, changed: Iterable[int], problem: str = "") -> bool:
        """Take over what has changed; whether that is anything a page would show.

        Args:
            changed: numbers of trials.
            problem: why the search could not be read just now; what was known of it stays.
        """
        followed, numbers = self._followed, [*changed]
        now = time.time()
        state = followed.state(now)
        told = (followed.record, state, problem, {**followed.damaged}, self._quarantined(now))
        if not numbers and told == self._told:
            return False
        self._told = told
        self.version += 1
        for number in numbers:
            self._take(number, followed.trials.get(number))
        if self._learn_parameters(followed.trials[number] for number in numbers if number in followed.trials):
            numbers = [*followed.trials]
            self._complete_from = self.version
        for number in numbers:
            if trial := followed.trials.get(number):
                self._rows[number] = compact_json(self._row(trial, self._courses[number]))
                self._changed_at[number] = self.version
        self._head = self._about(state, problem, now)
        return True

    def _take(self, number: int, trial: TrialResult | None) -> None:
        self._faulty.pop(number, None)
        if trial is None:
            for kept in (self._courses, self._rows, self._changed_at):
                kept.pop(number, None)
            self._complete_from = self.version
            return
        self._courses[number] = course(trial)
        if trial.lost or trial.state == "failed":
            self._faulty[number] = trial

    def _quarantined(self, now: float) -> int:
        return sum(note.until > now for note in self._followed.record.quarantined)

    def message(self, since: int | None) -> str:
        """All that a page needs which has shown version `since`; None for a new page."""
        whole = since is None or not self._complete_from <= since <= self.version
        first = -1 if whole or since is None else since
        rows = (self._rows[number] for number, at in self._changed_at.items() if at > first)
        head = {**self._head, "version": self.version, "whole": whole, "now": time.time()}
        return f'{compact_json(head)[:-1]}, "trials": [{",".join(rows)}]}}'

    def trial(self, number: int) -> dict[str, Any] | None:
        """All that is known of one trial, None where there is none of this number."""
        trial = self._followed.trials.get(number)
        if trial is None:
            return None
        metric = trial.objective.metric
        reports = [
            {
                "images": report.images_seen,
                "value": report.metrics.get(metric),
                "seconds": report.elapsed_s,
                "time": report.time,
                "metrics": report.metrics,
                "usage": report.usage.model_dump() if report.usage else {},
            }
            for report in _spread(trial.reports)
        ]
        return {
            "number": number,
            "state": trial.state,
            "reason": trial.reason,
            "detail": trial.detail,
            "parameters": trial.parameters,
            "machine": self._courses[number].machine if number in self._courses else "",
            "setup": str(trial.setup) if trial.setup else "",
            "attempts": trial.attempts,
            "started": trial.started,
            "ended": trial.ended,
            "gpu_hours": trial.cost_gpu_s / 3600,
            "at_chance": trial.at_chance,
            "usage": trial.usage.figures(),
            "lost": [
                {"place": one.place, "cause": one.cause, "detail": one.detail, "images": one.images_seen,
                 "time": one.time}
                for one in trial.lost
            ],
            "grown": [{"workers": note.workers, "images": note.images_seen, "time": note.time} for note in trial.grown],
            "reports": reports,
        }  # fmt: skip

    def as_result(self) -> SearchResult:
        return self._followed.as_result()

    def _learn_parameters(self, trials: Iterable[TrialResult]) -> bool:
        """Whether there are parameters that no row has had so far."""
        written = self._followed.record.space.get("parameters")
        known = dict.fromkeys(self._parameters or (written if isinstance(written, dict) else ()))
        before = len(self._parameters)
        known.update(dict.fromkeys(name for trial in trials for name in trial.parameters))
        self._parameters = [*known]
        return len(self._parameters) > before

    def _row(self, trial: TrialResult, did: TrialCourse) -> list[Any]:
        used = trial.usage
        last = trial.reports[-1].metrics.get(trial.objective.metric) if trial.reports else None
        rate = did.images_per_s if trial.state == "running" and did.images_per_s is not None else used.images_per_s
        own = [
            *(trial.number, trial.state, trial.reason, did.value, last, did.images),
            *(rate, used.peak_memory_bytes, used.device_use, trial.attempts, len(trial.lost), did.machine),
            *(trial.started, trial.ended, trial.cost_gpu_s / 3600),
        ]
        return [*own, *(trial.parameters.get(name) for name in self._parameters)]

    def _expected_of_trial(self, record: SearchRecord) -> float:
        if self._expected is None or self._expected[0] is not record:
            self._expected = record, expected_of_trial(record)
        return self._expected[1]

    def _about(self, state: State, problem: str, now: float) -> dict[str, Any]:
        record, courses, faulty = self._followed.record, self._courses, self._faulty.values()
        objective, (budget, rungs) = record.objective, _budget(record.space)
        done = work(courses, objective, record.pauses)
        best = self._best_completed(objective.sign)
        return {
            **self._asked(record),
            "state": state,
            "problem": problem,
            "damaged": [f"{name}: {why}" for name, why in list(self._followed.damaged.items())[:_MOST_DAMAGED]],
            "budget": budget * objective.networks,
            "rungs": rungs,
            "columns": [*_COLUMNS, *self._parameters],
            "own_columns": len(_COLUMNS),
            "best": best[0] if best else None,
            "steps": [asdict(step) for step in done.steps],
            "images": done.images,
            "hours": done.hours,
            "gpu_hours": sum(one.gpu_s for one in courses.values()) / 3600,
            **self._left(done, state, budget),
            "last_written": max((one.ended for one in courses.values()), default=0.0) or record.created,
            "faults": fault_note(record, faulty),
            "machines": self._machines(state, now),
            "failures": [asdict(one) for one in failures(faulty)[:_MOST_FAILURES]],
            "curves": self._curves(best),
        }

    def _best_completed(self, sign: int) -> list[int]:
        """Numbers of the best trials that completed, the best one first, of equals the earlier."""
        valued = (
            (sign * one.value, -number)
            for number, one in self._courses.items()
            if one.state == "completed" and one.value is not None
        )
        return [-number for _, number in nlargest(_MOST_PEERS, valued)]

    def _asked(self, record: SearchRecord) -> dict[str, Any]:
        objective = record.objective
        return {
            "name": record.name,
            "leak": record.leak,
            "metric": objective.metric,
            "mode": objective.mode,
            "judged": objective.judged,
            "chance": record.prevalence if objective.metric == "average_precision" else None,
            "wanted": record.wanted,
            "price": self._price,
        }

    def _left(self, done: WorkDone, state: State, budget: int) -> dict[str, float | None]:
        """What is still to do, where a driver does it: seconds and accelerator hours at the pace of the last while."""
        if state != "running" or not done.images_per_s or self._followed.record.asked_last("pause"):
            return {"images_per_s": None, "left_s": None, "left_gpu_hours": None}
        record = self._followed.record
        images = images_left(record, self._courses.values(), self._expected_of_trial(record), budget)
        left_s = images / done.images_per_s
        return {
            "images_per_s": done.images_per_s,
            "left_s": left_s,
            "left_gpu_hours": left_s * done.gpus / 3600 if done.gpus else None,
        }

    def _machines(self, state: State, now: float) -> list[dict[str, Any]]:
        lost = [attempt for trial in self._faulty.values() for attempt in trial.lost]
        found = machines(self._followed.record, self._courses.values(), lost, state, now)
        return [asdict(one) for one in found[:_MOST_MACHINES]]

    def _curves(self, best: Sequence[int]) -> list[dict[str, Any]]:
        """The running trials, the newest ones where they are too many, and the best of those that completed."""
        running = sorted(number for number, one in self._courses.items() if one.state == "running")
        trials = [self._followed.trials[number] for number in [*reversed(best), *running[-_MOST_CURVES:]]]
        return [{"trial": trial.number, "state": trial.state, "points": _points(trial)} for trial in trials]

    def parameters(self, search: SearchResult) -> dict[str, Any]:
        """Importances and parallel coordinates, as the report computes them."""
        from ich_ray.html_report.importance import importances
        from ich_ray.html_report.parallel_coordinates import axis
        from ich_ray.html_report.style import metric_name
        from ich_ray.html_report.trials import choices, rungs, scale, varied

        space = search.record.space
        levels = rungs(space)
        compared_at = levels[0] if levels else max((trial.images_seen for trial in search.trials), default=0)
        mattered = importances(search, compared_at)
        shown = [trial for trial in search.ranked() if trial.value is not None][:_MOST_LINES]
        axes = [axis(name, shown, scale(space, name), choices(space, name, shown)) for name in varied(shown)]
        values = [trial.value or 0.0 for trial in shown]
        return {
            "images": mattered.images,
            "trials": mattered.trials,
            "problem": mattered.problem,
            "importances": list(mattered.found.items()),
            "metric": metric_name(search.objective.metric),
            # What goes to plotly is escaped; the page shows text as text.
            "axes": [
                {"title": html.unescape(one.title), "ticks": [(at, html.unescape(text)) for at, text in one.ticks]}
                for one in axes
            ],
            "lines": [
                {"trial": trial.number, "state": trial.state, "value": trial.value,
                 "places": [one.places[trial.number] for one in axes]}
                for trial in reversed(shown)
            ],
            "low": min(values, default=0.0),
            "high": max(values, default=0.0),
        }  # fmt: skip


def _budget(space: dict[str, Any]) -> tuple[int, list[int]]:
    """Images of a trial that is never stopped, and where trials are compared; none of another version's space."""
    try:
        budget = Budget.model_validate(space.get("budget", {}))
    except ValidationError:
        return 0, []
    return budget.images, budget.rungs()


def _points(trial: TrialResult) -> list[tuple[int, float | None]]:
    metric = trial.objective.metric
    return [(report.images_seen, report.metrics.get(metric)) for report in _spread(trial.reports)]


def _spread(reports: Sequence[Any]) -> Sequence[Any]:
    """So many of them as a line can show, evenly, the last one among them."""
    step = -(-len(reports) // _MOST_POINTS) or 1
    return reports[::-step][::-1]


def compact_json(value: Any) -> str:
    """Of a value as the page reads it, without spaces; none that JavaScript could not read."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
