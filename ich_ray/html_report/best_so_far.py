"""The best value so far over images, hours and accelerator hours, and how fast a search goes on now.

Arithmetic on reports; what a trial gives is kept from one time to the next, because ended trials change no more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from ich_ray.trial_records import Objective, TrialResult, TrialState

__all__ = ["Step", "TrialCourse", "WorkDone", "course", "work"]

# The rate is that of the last half hour.
_WINDOW_S = 1800.0


@dataclass(frozen=True)
class TrialCourse:
    """What a trial did, as far as its reports tell.

    Attributes:
        rows: one a report: time, images and accelerator seconds since the one before, and its value, NaN where it does
            not count: of a trial that failed, and with folds of one that has not completed.
        value: of its best report, None without one.
        machine: of its last report; empty before the first.
        images_per_s: of its last report, where that was measured.
        began: its training.
        ended: its last sign: the end, or else the last report.
    """

    rows: NDArray[np.float64]
    state: TrialState
    value: float | None
    images: int
    gpu_s: float
    machine: str
    images_per_s: float | None
    began: float
    ended: float


@dataclass(frozen=True)
class Step:
    """A new best value, and what all trials together had spent by then."""

    images: float
    hours: float
    gpu_hours: float
    value: float
    trial: int


@dataclass(frozen=True)
class WorkDone:
    """What all trials did.

    Attributes:
        steps: each new best value, the last one again at the end.
        images_per_s: of the last half hour in which anything was reported; None where that cannot be told.
        gpus: accelerators held at a time in the same half hour; None likewise.
        hours: from the first training to the last report.
        images: of all trials.
    """

    steps: tuple[Step, ...]
    images_per_s: float | None
    gpus: float | None
    hours: float
    images: float


def course(trial: TrialResult) -> TrialCourse:
    """What one trial did; its accelerator seconds are spread over its reports by their time in training."""
    reports = trial.reports
    last = reports[-1] if reports else None
    return TrialCourse(
        rows=_rows(trial),
        state=trial.state,
        value=trial.value,
        images=trial.images_seen,
        gpu_s=trial.cost_gpu_s,
        machine=trial.machine,
        images_per_s=last.usage.images_per_s if last and last.usage else None,
        began=reports[0].time - reports[0].elapsed_s if reports else math.inf,
        ended=trial.ended or (last.time if last else 0.0),
    )


def _rows(trial: TrialResult) -> NDArray[np.float64]:
    reports, metric = trial.reports, trial.objective.metric
    rows = np.full((len(reports), 4), np.nan)
    if not reports:
        return rows
    rows[:, 0] = [report.time for report in reports]
    rows[:, 1] = np.diff([report.images_seen for report in reports], prepend=0)
    elapsed = np.diff([report.elapsed_s for report in reports], prepend=0.0).clip(0)
    rows[:, 2] = elapsed * (trial.cost_gpu_s / elapsed.sum() if elapsed.sum() else 0.0)
    if trial.objective.networks > 1:
        rows[-1, 3] = np.nan if trial.state != "completed" or trial.value is None else trial.value
    elif trial.state != "failed":
        values = (report.metrics.get(metric) for report in reports)
        rows[:, 3] = [np.nan if value is None else value for value in values]
    return rows


def work(
    courses: Mapping[int, TrialCourse], objective: Objective, pauses: Sequence[tuple[float, float]] = ()
) -> WorkDone:
    """What all trials did together, in the order of time; their pace is none of a pause."""
    if not sum(len(one.rows) for one in courses.values()):
        return WorkDone((), None, None, 0.0, 0.0)
    rows = np.concatenate([one.rows for one in courses.values()])
    numbers = np.repeat([*courses], [len(one.rows) for one in courses.values()])
    order = np.argsort(rows[:, 0], kind="stable")
    rows, numbers = rows[order], numbers[order]
    images, gpu_s = rows[:, 1].cumsum(), rows[:, 2].cumsum()
    hours = (rows[:, 0] - min(one.began for one in courses.values())) / 3600
    signed = np.where(np.isnan(rows[:, 3]), -np.inf, objective.sign * rows[:, 3])
    best = np.maximum.accumulate(signed)
    new = np.flatnonzero(best > np.append(-np.inf, best[:-1]))
    at = [*new, len(rows) - 1] if len(new) else []
    holders = [*new, new[-1]] if len(new) else []
    value = objective.sign * best
    steps = tuple(
        Step(float(images[i]), float(hours[i]), float(gpu_s[i]) / 3600, float(value[i]), int(numbers[j]))
        for i, j in zip(at, holders, strict=True)
    )
    rate, gpus = _rates(rows, courses.values(), pauses)
    return WorkDone(steps, rate, gpus, float(hours[-1]), float(images[-1]))


def _rates(
    rows: NDArray[np.float64], courses: Iterable[TrialCourse], pauses: Sequence[tuple[float, float]]
) -> tuple[float | None, float | None]:
    """Images and accelerator seconds a second in the last window; its first report only says when it began."""
    lately = rows[rows[:, 0] >= rows[-1, 0] - _WINDOW_S]
    first, last = float(lately[0, 0]), float(lately[-1, 0])
    of_window = [(began, ended) for began, ended in pauses if began < last and first < ended < last]
    span = last - first
    if of_window:
        known = [*courses]
        span -= sum(_still_s(known, max(first, began), ended) for began, ended in of_window)
    if span <= 0:
        return None, None
    return float(lately[1:, 1].sum()) / span, float(lately[1:, 2].sum()) / span


def _still_s(courses: Iterable[TrialCourse], began: float, ended: float) -> float:
    """Seconds of a pause after the last trial had ended that was under way."""
    under_way = (one.ended for one in courses if one.began < ended)
    return max(0.0, ended - max([began, *under_way]))
