"""How good a ranking, a probability or a decision is.

Knows labels, scores and weights; knows nothing of files, networks, roles or patients. NumPy only, so that the training
loop needs nothing else; the tests hold every figure equal to scikit-learn's.

An undefined figure (a PPV without positive calls, an average precision without positives) is NaN, never 0: a zero would
read as a bad model where there is no measurement. Whoever writes JSON turns NaN into null.

Shapes: labels are 0 or 1, `[n]`; scores and probabilities are floats, `[n]`; weights count how often a slice is drawn,
`[n]`. A slice is called positive when its probability is at least the threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ich_ray.vocabulary import SUBTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

__all__ = [
    "METRICS",
    "Confusion",
    "Metric",
    "Ranking",
    "at_chance",
    "average_precision",
    "best_f_beta",
    "brier",
    "chance_bound",
    "confusion",
    "f_beta",
    "floors",
    "log_loss",
    "losses",
    "mean_or_nan",
    "ranking_note",
    "roc_auc",
    "weighted_log_loss",
    "weighted_losses",
]

# Below this many independent positives two standard errors of average precision may exceed 0.03: more than good trials
# differ by.
POSITIVES_TO_RANK = 1000
# A subtype with fewer decides nothing of its own: no objective, operating point or scaling.
POSITIVE_PATIENTS_OF_A_LABEL = 10


def _ratio(part: float, whole: float) -> float:
    """NaN without a denominator; element by element of arrays."""
    if isinstance(whole, np.ndarray):
        return np.divide(part, whole, out=np.full(whole.shape, math.nan), where=whole > 0)
    return part / whole if whole > 0 else math.nan


@dataclass(frozen=True)
class Confusion:
    """Counts (or sums of weights) of decisions; a ratio without a denominator is NaN.

    Counts may be arrays of one shape, such as `[resamples]`; so are the ratios then.
    """

    tp: float
    fp: float
    fn: float
    tn: float

    @property
    def sensitivity(self) -> float:
        """TP / (TP + FN), also called recall."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float:
        """TN / (TN + FP)."""
        return _ratio(self.tn, self.tn + self.fp)

    @property
    def ppv(self) -> float:
        """TP / (TP + FP), also called precision."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def npv(self) -> float:
        """TN / (TN + FN)."""
        return _ratio(self.tn, self.tn + self.fn)

    @property
    def accuracy(self) -> float:
        return _ratio(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn)

    def f_beta(self, beta: float = 2.0) -> float:
        """(1 + b²) TP / ((1 + b²) TP + b² FN + FP), van Rijsbergen, Information Retrieval (1979), chapter 7.

        Zero when positives exist and none is found; NaN only when there is neither a positive nor a positive call.
        """
        square = beta * beta
        return _ratio((1 + square) * self.tp, (1 + square) * self.tp + square * self.fn + self.fp)


def f_beta(ppv: float, sensitivity: float, beta: float = 2.0) -> float:
    """The same F-beta from its two ratios: (1 + b²) P R / (b² P + R); NaN when both are 0."""
    square = beta * beta
    return _ratio((1 + square) * ppv * sensitivity, square * ppv + sensitivity)


def confusion(
    labels: NDArray[Any], probabilities: NDArray[Any], threshold: float, weights: NDArray[Any] | None = None
) -> Confusion:
    """Decisions at `threshold` against the labels; whole counts when no weights are given."""
    truth, called = np.asarray(labels) > 0.5, np.asarray(probabilities) >= threshold
    cell = truth * 2 + called
    tn, fp, fn, tp = np.bincount(cell, weights=weights, minlength=4).tolist()
    return Confusion(tp=tp, fp=fp, fn=fn, tn=tn)


class Ranking:
    """Labels sorted once by falling score, so that each set of weights costs a cumulative sum.

    Equal scores are one step of the curve, as one threshold cannot part them.
    """

    def __init__(self, labels: NDArray[Any], scores: NDArray[Any]) -> None:
        scores = np.asarray(scores, np.float64)
        self._order = np.argsort(-scores, kind="stable")
        self._truth = np.asarray(labels, np.float64)[self._order]
        ordered = scores[self._order]
        self._ends = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1) if len(ordered) else np.arange(0)
        self.thresholds = ordered[self._ends]
        # For each positive: how many slices and positives its step of equal scores ends with, and begins after.
        self._positive = np.flatnonzero(self._truth > 0.5)
        ends, starts = self._ends + 1, np.append(0, self._ends[:-1] + 1) if len(self._ends) else self._ends
        step = np.searchsorted(self._ends, self._positive)
        self._called, self._above = ends[step], starts[step]
        self._hits = np.searchsorted(self._positive, self._called)
        self._hits_above = np.searchsorted(self._positive, self._above)

    def counts(self, weights: NDArray[Any] | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """True and false positives when everything down to each distinct score is called positive."""
        if weights is None:
            hits, total = np.cumsum(self._truth), np.arange(1.0, len(self._truth) + 1)
        else:
            drawn = np.asarray(weights, np.float64)[self._order]
            hits, total = np.cumsum(drawn * self._truth), np.cumsum(drawn)
        tp = hits[self._ends]
        return tp, total[self._ends] - tp

    def threshold(self, step: int) -> float:
        """A threshold that calls positive all down to the distinct score number `step`.

        It lies half-way between that score and the next lower one (0 below the lowest), so that rounding in the sixth
        digit changes no decision.
        """
        last = float(self.thresholds[step])
        below = float(self.thresholds[step + 1]) if step + 1 < len(self.thresholds) else 0.0
        middle = (last + below) / 2
        return middle if below < middle < last else last

    def statistics(self, weights: NDArray[Any] | None = None) -> tuple[float, float]:
        """Average precision and the area under the ROC curve.

        AP is the sum of (R_k - R_(k-1)) P_k over falling thresholds, without interpolation; the ROC area is
        trapezoidal, so that ties count half (Hanley & McNeil 1982). Both are NaN without a positive, the ROC area also
        without a negative.
        """
        drawn = np.ones(len(self._order)) if weights is None else np.asarray(weights, np.float64)[self._order]
        hits, total = np.append(0.0, np.cumsum(drawn[self._positive])), np.append(0.0, np.cumsum(drawn))
        if hits[-1] <= 0:
            return math.nan, math.nan
        found, tp, called = drawn[self._positive], hits[self._hits], total[self._called]
        precision = np.divide(tp, called, out=np.zeros_like(tp), where=called > 0)
        negatives = total[-1] - hits[-1]
        above = called - tp + total[self._above] - hits[self._hits_above]  # twice the negatives above, ties half
        area = float(np.dot(found, negatives - above / 2))
        return float(np.dot(found, precision) / hits[-1]), _ratio(area, hits[-1] * negatives)


def average_precision(labels: NDArray[Any], scores: NDArray[Any], weights: NDArray[Any] | None = None) -> float:
    """The step-wise area under the precision-recall curve; NaN without a positive."""
    return Ranking(labels, scores).statistics(weights)[0]


def roc_auc(labels: NDArray[Any], scores: NDArray[Any], weights: NDArray[Any] | None = None) -> float:
    """The probability that a positive outranks a negative, ties counting half; NaN without both."""
    return Ranking(labels, scores).statistics(weights)[1]


def losses(labels: NDArray[Any], probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """-log of the probability given to what happened, by slice; 0 and 1 are moved by one float64 epsilon."""
    tiny = np.finfo(np.float64).eps
    probability = np.clip(np.asarray(probabilities, np.float64), tiny, 1 - tiny)
    return np.asarray(-np.log(np.where(np.asarray(labels) > 0.5, probability, 1 - probability)))


def _mean(values: NDArray[np.float64], weights: NDArray[Any] | None) -> float:
    if weights is None:
        return _ratio(float(values.sum()), len(values))
    return _ratio(float(values @ weights), float(np.sum(weights)))


def log_loss(labels: NDArray[Any], probabilities: NDArray[Any], weights: NDArray[Any] | None = None) -> float:
    """The mean of `losses`, in nats."""
    return _mean(losses(labels, probabilities), weights)


# Of the labels in the RSNA 2019 competition: 1 for each subtype, 2 for `any`, the last one.
_ANY_WEIGHT = 2.0


def weighted_log_loss(targets: NDArray[Any], probabilities: NDArray[Any]) -> float:
    """The log loss of the RSNA 2019 competition: the mean over slices of a weighted mean over labels.

    A label that is unknown (NaN) is left out of the mean of its slice; NaN without a slice.

    Args:
        targets: 0 or 1, NaN where unknown, `[n, labels]`, `any` last.
        probabilities: `[n, labels]`.
    """
    return _mean(weighted_losses(targets, probabilities), None)


def weighted_losses(targets: NDArray[Any], probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """The weighted mean of each slice, `[n]`, of which `weighted_log_loss` is the mean."""
    weights = ~np.isnan(targets) * np.append(np.ones(targets.shape[1] - 1), _ANY_WEIGHT)
    return np.asarray((losses(targets, probabilities) * weights).sum(1) / weights.sum(1))


def mean_or_nan(values: Iterable[float]) -> float:
    """The mean of those that are defined; NaN where none is."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def brier(labels: NDArray[Any], probabilities: NDArray[Any], weights: NDArray[Any] | None = None) -> float:
    """The mean squared difference of probability and label (Brier 1950, for one class)."""
    return _mean((np.asarray(probabilities, np.float64) - np.asarray(labels, np.float64)) ** 2, weights)


def best_f_beta(labels: NDArray[Any], probabilities: NDArray[Any], beta: float = 2.0) -> tuple[float, float]:
    """The threshold with the highest F-beta, and that F-beta.

    Of equals the highest threshold, which calls fewer slices positive (see `Ranking.threshold` for where it lies). Both
    are NaN without a positive.
    """
    ranking = Ranking(labels, probabilities)
    tp, fp = ranking.counts()
    if not len(tp) or tp[-1] <= 0:
        return math.nan, math.nan
    counts: Any = (tp, fp, tp[-1] - tp, fp[-1] - fp)
    values: Any = Confusion(*counts).f_beta(beta)
    best = int(np.argmax(values))
    return ranking.threshold(best), float(values[best])


@dataclass(frozen=True)
class Metric:
    """The title, meaning and judgment of a metric.

    Every figure that is reported has one in `METRICS`.

    Attributes:
        title: its name inside a sentence.
        words: what it is.
        better: whether more of it or less is better; None where a value between is right.
        floor: what a model that knows only the prevalence reaches: a figure at or under it is chance. None without one.
        is_objective: whether a search may optimize it: every report of a trial has it.
        label: the subtype that it is of, or `all` of them: only networks that answer several labels have it.
    """

    title: str
    words: str
    better: Literal["max", "min"] | None
    floor: Callable[[float], float] | None = None
    is_objective: bool = False
    label: str = ""


def _entropy(prevalence: float) -> float:
    return -sum(share * math.log(share) for share in (prevalence, 1 - prevalence) if share > 0)


# Floors: log loss is the entropy of the prevalence p and Brier p (1 - p), both of the constant forecast p; accuracy is
# that of the majority class; PPV, average precision (p) and F2 (5 p / (4 p + 1)) are of calling every slice positive.
METRICS: dict[str, Metric] = {
    "average_precision": Metric(
        "average precision (AP)", "area under the precision-recall curve", "max", lambda p: p, is_objective=True
    ),
    "roc_auc": Metric("ROC AUC", "share of pairs put in the right order", "max", lambda _: 0.5, is_objective=True),
    "f2": Metric(
        "F2",
        "of sensitivity and PPV, sensitivity weighing more",
        "max",
        lambda p: 5 * p / (4 * p + 1),
        is_objective=True,
    ),
    "log_loss": Metric("log loss", "error of the probabilities, lower is better", "min", _entropy, is_objective=True),
    "brier": Metric("Brier score", "error of the probabilities, lower is better", "min", lambda p: p * (1 - p)),
    "ece": Metric("ECE", "mean gap between probability and share of positives, in 15 bins", "min"),
    "calibration_slope": Metric("calibration slope", "1 is right, below 1 too extreme", None),
    "calibration_intercept": Metric("calibration intercept", "0 is right, below 0 too high", None),
    "sensitivity": Metric("sensitivity", "of slices with haemorrhage, the share flagged", "max"),
    "specificity": Metric("specificity", "of slices without, the share not flagged", "max"),
    "ppv": Metric("PPV", "of flagged slices, the share with haemorrhage", "max", lambda p: p),
    "npv": Metric("NPV", "of slices not flagged, the share without", "max"),
    "accuracy": Metric("accuracy", "share of right decisions", "max", lambda p: max(p, 1 - p)),
    # Of the reports of trials alone.
    "f2_threshold": Metric("F2 threshold", "the threshold with the highest F2 on these very slices", None),
    "train_loss": Metric("train loss", "mean loss while training", "min"),
}


METRICS |= {
    "weighted_log_loss": Metric(
        "weighted log loss",
        "of the six labels, `any` counting twice, as in the RSNA 2019 competition; lower is better",
        "min",
        is_objective=True,
        label="all",
    ),
    "average_precision_subtypes": Metric(
        "AP of subtypes", "mean over the subtypes where it is defined", "max", is_objective=True, label="all"
    ),
    "roc_auc_subtypes": Metric(
        "ROC AUC of subtypes", "mean over the subtypes where it is defined", "max", is_objective=True, label="all"
    ),
    "subtypes_measured": Metric("subtypes measured", "subtypes in these means", None),
    **{
        f"average_precision_{name}": Metric(
            f"AP ({name})", f"average precision of {name} haemorrhage", "max", is_objective=True, label=name
        )
        for name in SUBTYPES
    },
    **{
        f"roc_auc_{name}": Metric(
            f"ROC AUC ({name})",
            f"share of pairs put in the right order by {name}",
            "max",
            is_objective=True,
            label=name,
        )
        for name in SUBTYPES
    },
}


def floors(prevalence: float) -> dict[str, float]:
    """The floor of each metric that has one, at a prevalence."""
    return {name: metric.floor(prevalence) for name, metric in METRICS.items() if metric.floor}


def chance_bound(prevalence: float) -> float:
    """The highest average precision that still counts as chance: p + min(p / 2, (1 - p) / 4).

    Up to a prevalence of 1/3 that is 1.5 times the prevalence. Above, where 1.5 p nears 1 and would call a perfect
    ranking chance from p = 2/3 on, it is a quarter of the way from the prevalence to 1.
    """
    return prevalence + min(prevalence / 2, (1 - prevalence) / 4)


def at_chance(average_precision: float, prevalence: float) -> bool:
    """Whether an average precision is at most `chance_bound`; an undefined one is at chance too."""
    return not average_precision > chance_bound(prevalence)


def ranking_note(
    positives: int, ranking_positives: int, independent: float | None = None, where: str = "validation"
) -> str | None:
    """A warning when too few positives stand behind a ranking of models, else None.

    The standard error of average precision is at most 0.5 / sqrt(independent positives): the binomial bound of Boyd,
    Eng & Page, "Area under the precision-recall curve" (2013), at its widest. Slices of a patient are not independent:
    400 positives of 40 patients gave 0.066 in simulations, where 400 alone would say 0.025 and 40 say 0.079.

    Args:
        positives: slices with `any` in the whole dataset.
        ranking_positives: those among the slices that rank the trials.
        independent: how many independent ones these are worth (`effective_positives`), where it is known.
        where: the roles of these slices, in words.
    """
    worth = ranking_positives if independent is None else independent
    if worth >= POSITIVES_TO_RANK:
        return None
    verb = "positive is" if positives == 1 else "positives are"
    note = f"{positives:,} {verb} too few to rank models: {ranking_positives:,} of them lie in {where}"
    if not worth:
        return f"{note}, so that no average precision can be measured"
    error = 0.5 / math.sqrt(worth)
    if independent is None:
        return (
            f"{note}, where the standard error of average precision would be up to {error:.2f} were slices "
            "independent, and is more as those of a patient are not; at the least, trials closer than "
            f"{2 * error:.2f} cannot be told apart"
        )
    return (
        f"{note}, worth {independent:,.0f} independent ones as slices of a patient are alike, where the standard error "
        f"of average precision is up to {error:.2f}; trials closer than {2 * error:.2f} cannot be told apart, and "
        f"{POSITIVES_TO_RANK:,} independent {where} positives would part them at 0.03"
    )
