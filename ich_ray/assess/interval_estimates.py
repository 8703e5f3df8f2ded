"""Every figure of a group of cases, with its interval and its floor.

A case is a slice, or a patient. Knows labels, probabilities, fixed thresholds and whose case each is; chooses nothing
and opens no file. All groups of an evaluation use the same draws of patients, so that a group in which few patients
have a case gets the wide interval that it deserves. Where draws cannot tell anything (see statistics/bootstrap.py) a
share gets an exact one and any other figure none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ich_ray.statistics.bootstrap import FEWEST_PATIENTS, Interval, PatientDraws, can_tell, interval, share_interval
from ich_ray.statistics.calibration_error import ece, recalibration, recalibration_terms, stepped
from ich_ray.statistics.metrics import Confusion, Ranking, at_chance, brier, confusion, floors, log_loss, losses
from ich_ray.storage import Count, Line, Record, Share

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from ich_ray.bundle.operating_point import OperatingPoint

__all__ = [
    "CONFIDENCE",
    "RATIOS",
    "Cases",
    "Counts",
    "Estimate",
    "Figures",
    "GroupFigures",
    "PointFigures",
    "StatedFigures",
    "as_estimate",
    "enough_patients",
    "measure",
    "ranked_draws",
]

CONFIDENCE = 0.95
# What is measured of decisions, by the names of metrics.METRICS.
RATIOS = ("sensitivity", "specificity", "ppv", "npv", "f2", "accuracy")


class Estimate(Record):
    """A figure with its interval; None where undefined, bounds also where nothing can be said of them."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


class Counts(Record):
    """Decisions against labels."""

    tp: Count
    fp: Count
    fn: Count
    tn: Count


class StatedFigures(Record):
    """What sensitivity and specificity would mean at another prevalence.

    Attributes:
        prevalence: the one that was stated, at which `ppv` and `npv` are.
    """

    prevalence: Share
    ppv: Estimate
    npv: Estimate


class PointFigures(Record):
    """An operating point on the cases of a group; PPV and NPV at the prevalence of these cases."""

    threshold: float
    confusion: Counts
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    npv: Estimate
    f2: Estimate
    accuracy: Estimate
    stated: StatedFigures | None = None


class Figures(Record):
    """What is measured of any cases.

    Attributes:
        metrics: those that need no threshold.
        floors: what knowing only the prevalence of the cases would give, beside each figure.
        at_chance: average precision is at most the `chance_bound` of that prevalence (statistics/metrics.py).
    """

    patients: Count
    positives: Count
    prevalence: Share
    metrics: dict[Line, Estimate]
    operating_points: dict[Line, PointFigures]
    floors: dict[Line, float]
    at_chance: bool


class GroupFigures(Figures):
    """A group of `cases`: slices, or patients."""

    cases: Count

    def figures(self) -> dict[str, Any]:
        """What it shares with whatever else is measured."""
        return {name: getattr(self, name) for name in Figures.model_fields}


@dataclass(frozen=True)
class Cases:
    """What is measured.

    Attributes:
        labels: 0 or 1, `[n]`.
        probabilities: `[n]`.
        rows: where each case stands among the slices of the draws, `[n]`: this says whose it is.
        calibrated: whether the probabilities are meant as such for these labels.
    """

    labels: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    rows: NDArray[np.int64]
    calibrated: bool


def measure(
    cases: Cases,
    points: Mapping[str, OperatingPoint],
    draws: PatientDraws,
    stated: float | None = None,
    *,
    ranked: NDArray[np.float64] | None = None,
) -> GroupFigures:
    """All figures of a group.

    Args:
        cases: the group.
        points: thresholds by name, fixed before.
        draws: of the patients of the whole evaluation.
        stated: another prevalence to give PPV and NPV for.
        ranked: `ranked_draws` of these cases, if they are at hand.
    """
    labels = cases.labels
    prevalence = float(labels.mean()) if len(labels) else 0.0
    found = _ranked(cases, ranked_draws(cases, draws) if ranked is None else ranked) | (
        _probable(cases, draws) if cases.calibrated else {}
    )
    if not enough_patients(cases, draws):
        found = {name: _alone(figure.value) for name, figure in found.items()}
    return GroupFigures(
        cases=len(labels),
        patients=len(np.unique(draws.of_slice[cases.rows])),
        positives=int(labels.sum()),
        prevalence=prevalence,
        metrics={name: as_estimate(figure) for name, figure in found.items()},
        operating_points={name: _decided(cases, point.threshold, draws, stated) for name, point in points.items()},
        floors=floors(prevalence),
        at_chance=at_chance(found["average_precision"].value, prevalence),
    )


def enough_patients(cases: Cases, draws: PatientDraws) -> bool:
    """Whether enough patients have a positive case, and enough a negative one, to draw them again."""
    whose, positive = draws.of_slice[cases.rows], cases.labels > 0.5
    return min(len(np.unique(whose[positive])), len(np.unique(whose[~positive]))) >= FEWEST_PATIENTS


def _alone(value: float) -> Interval:
    return Interval(value, math.nan, math.nan)


def ranked_draws(cases: Cases, draws: PatientDraws) -> NDArray[np.float64]:
    """Average precision and ROC AUC of each resample, `[resamples, 2]`: most of what an evaluation takes."""
    ranking = Ranking(cases.labels, cases.probabilities)
    return np.array([ranking.statistics(weights) for weights in draws.weights(cases.rows)])


def _ranked(cases: Cases, drawn: NDArray[np.float64]) -> dict[str, Interval]:
    values = Ranking(cases.labels, cases.probabilities).statistics()
    names = ("average_precision", "roc_auc")
    return {
        name: interval(value, column, CONFIDENCE) for name, value, column in zip(names, values, drawn.T, strict=True)
    }


def _probable(cases: Cases, draws: PatientDraws) -> dict[str, Interval]:
    """Figures of the probabilities themselves: sums, or made of sums, over slices.

    The calibration error has no interval: any resample raises it, so that in 5 of 30 runs of a perfect model it lay
    below its own interval. Its band of a perfect model (`ece_null_band`) says what it is worth.
    """
    labels, probabilities = cases.labels, cases.probabilities
    slope, intercept = recalibration(labels, probabilities)
    terms = recalibration_terms(labels, probabilities, slope, intercept)
    simple = [np.ones(len(labels)), losses(labels, probabilities), (probabilities - labels) ** 2]
    sums = draws.sums(np.column_stack([*simple, terms]), cases.rows)
    slopes, intercepts = stepped(sums[:, 3:], slope, intercept)
    with np.errstate(invalid="ignore"):
        loss, square = (sums[:, 1:3] / sums[:, :1]).T
    return {
        "log_loss": interval(log_loss(labels, probabilities), loss, CONFIDENCE),
        "brier": interval(brier(labels, probabilities), square, CONFIDENCE),
        "ece": _alone(ece(labels, probabilities)),
        "calibration_slope": interval(slope, slopes, CONFIDENCE),
        "calibration_intercept": interval(intercept, intercepts, CONFIDENCE),
    }


def _decided(cases: Cases, threshold: float, draws: PatientDraws, stated: float | None) -> PointFigures:
    positive, called = cases.labels > 0.5, cases.probabilities >= threshold
    cells = np.column_stack([positive & called, ~positive & called, positive & ~called, ~positive & ~called])
    decisions = confusion(cases.labels, cases.probabilities, threshold)
    counts = Counts(tp=int(decisions.tp), fp=int(decisions.fp), fn=int(decisions.fn), tn=int(decisions.tn))
    values, drawn = _ratios(decisions), _ratios(Confusion(*draws.sums(cells, cases.rows).T))
    whose = draws.of_slice[cases.rows]
    shares = {
        "sensitivity": whose[positive],
        "specificity": whose[~positive],
        "ppv": whose[called],
        "npv": whose[~called],
        "accuracy": whose,
    }
    found = {name: share_interval(values[name], drawn[name], of, CONFIDENCE) for name, of in shares.items()}
    of_f2 = drawn["f2"] if enough_patients(cases, draws) else np.empty(0)
    found["f2"] = interval(values["f2"], of_f2, CONFIDENCE)
    restated = None
    if stated is not None:
        drawable = all(can_tell(drawn[name], shares[name]) for name in ("sensitivity", "specificity"))
        restated = _at_prevalence(stated, found, drawn if drawable else None)
    estimates = {name: as_estimate(figure) for name, figure in found.items()}
    return PointFigures(threshold=threshold, confusion=counts, **estimates, stated=restated)


def _ratios(decisions: Confusion) -> dict[str, Any]:
    """Floats of counts, or arrays `[resamples]` of arrays of counts."""
    return {name: decisions.f_beta(2) if name == "f2" else getattr(decisions, name) for name in RATIOS}


def _at_prevalence(prevalence: float, found: dict[str, Interval], drawn: dict[str, Any] | None) -> StatedFigures:
    """PPV and NPV by Bayes' theorem from sensitivity and specificity.

    Both rise with either, so where draws cannot tell (`drawn` is None) their bounds follow from the bounds of the two.
    """
    sensitivity, specificity = np.array(found["sensitivity"]), np.array(found["specificity"])
    ppv, npv = (Interval(*map(float, figure)) for figure in _bayes(sensitivity, specificity, prevalence))
    if drawn is not None:
        of_ppv, of_npv = _bayes(drawn["sensitivity"], drawn["specificity"], prevalence)
        ppv, npv = interval(ppv.value, of_ppv, CONFIDENCE), interval(npv.value, of_npv, CONFIDENCE)
    return StatedFigures(prevalence=prevalence, ppv=as_estimate(ppv), npv=as_estimate(npv))


def _bayes(sensitivity: Any, specificity: Any, prevalence: float) -> tuple[Any, Any]:
    found, missed = sensitivity * prevalence, (1 - sensitivity) * prevalence
    alarms, cleared = (1 - specificity) * (1 - prevalence), specificity * (1 - prevalence)
    with np.errstate(divide="ignore", invalid="ignore"):
        return found / (found + alarms), cleared / (cleared + missed)


def as_estimate(figure: Interval) -> Estimate:
    """A figure as it is written: None in place of NaN."""
    value, low, high = (part if math.isfinite(part) else None for part in figure)
    return Estimate(value=value, low=low, high=high)
