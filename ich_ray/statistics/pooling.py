"""One figure of several networks, each of which has judged patients of its own.

The networks of folds differ, and so do the scales of their logits: pooled as they are, a patient of one fold may
outrank one of another for no better reason. Three ways, compared by benchmarks/few_patients.py; and a test of two
trials on the same patients. Knows targets, logits and patients; nothing of files or searches. NumPy only.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from ich_ray.statistics.bootstrap import FEWEST_PATIENTS, PatientDraws
from ich_ray.statistics.metrics import Ranking, losses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["FoldPart", "Pooling", "chance_of_better", "chances_of_best", "pooled_metrics", "standardized"]

# pooled: the slices of all folds as one set; scaled: the same after `standardized`; mean: of the figures of the folds.
Pooling = Literal["pooled", "scaled", "mean"]
POOLING: Pooling = "pooled"

# What a scale changes; a log loss or a threshold is of probabilities, which logits without their scale are not.
_RANKED = ("average_precision", "roc_auc")
# Objectives that `chance_of_better` can tell apart.
PAIRED_METRICS = ("average_precision", "roc_auc", "log_loss")
_RESAMPLES = 500


class FoldPart(NamedTuple):
    """What one network said of slices of patients whom it had not seen.

    Attributes:
        targets: 0 or 1, NaN where unknown, `[n, labels]`, `any` last.
        logits: as those of probabilities, `[n, labels]`.
        patients: whose slice each is, `[n]`.
    """

    targets: NDArray[np.float32]
    logits: NDArray[np.float32]
    patients: NDArray[Any]


def pooled_metrics(
    parts: Sequence[FoldPart],
    measure: Callable[[NDArray[np.float32], NDArray[np.float32]], dict[str, float]],
    how: Pooling = POOLING,
) -> dict[str, float]:
    """The metrics of all parts together.

    Args:
        parts: at least one.
        measure: metrics by name, of targets and logits.
        how: see `Pooling`.
    """
    if how == "mean":
        each = [measure(part.targets, part.logits) for part in parts]
        return {name: _mean([metrics[name] for metrics in each]) for name in each[0]}
    targets = np.concatenate([part.targets for part in parts])
    metrics = measure(targets, np.concatenate([part.logits for part in parts]))
    if how == "scaled":
        scaled = measure(targets, np.concatenate([standardized(part.logits, part.patients) for part in parts]))
        metrics |= {name: value for name, value in scaled.items() if name.startswith(_RANKED)}
    return metrics


def standardized(logits: NDArray[np.float32], patients: NDArray[Any]) -> NDArray[np.float32]:
    """Logits less their mean, over their standard deviation.

    Both are of the other patients of the fold, and know no label.
    """
    names, of_slice = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    if len(names) < 2:
        return logits
    columns = np.asarray(logits, np.float64)
    centered = columns - columns.mean(0)  # so that squares do not cancel

    def others(values: NDArray[np.float64]) -> NDArray[np.float64]:
        own = np.stack([np.bincount(of_slice, column, len(names)) for column in values.T], 1)
        return np.asarray((values.sum(0) - own)[of_slice])

    count = others(np.ones((len(columns), 1)))
    mean = others(centered) / count
    variance = np.maximum(others(centered**2) / count - mean**2, 0)
    deviation = np.where(variance > 0, np.sqrt(variance), 1.0)
    return np.asarray((centered - mean) / deviation, np.float32)


def chance_of_better(
    one: Sequence[FoldPart], other: Sequence[FoldPart], metric: str, *, how: Pooling = POOLING, seed: int = 0
) -> float | None:
    """The share of resamples of patients in which `one` is at least as good as `other`.

    Both have judged the same slices in the same order, so that what is hard for both does not count. None where it
    cannot be told: for a metric not in `PAIRED_METRICS`, or with fewer positive patients than an interval takes.
    """
    values = _resampled([one, other], metric, how, seed)
    return None if values is None else float(np.mean(values[:, 0] >= values[:, 1]))


def chances_of_best(
    trials: Sequence[Sequence[FoldPart]], metric: str, *, how: Pooling = POOLING, seed: int = 0
) -> list[float] | None:
    """Of each trial the share of resamples of patients in which it is the best; equals share it.

    All have judged the same slices in the same order, see `chance_of_better`. None where it cannot be told.
    """
    values = _resampled(trials, metric, how, seed)
    if values is None:
        return None
    best = values == values.max(1, keepdims=True)
    return [float(share) for share in (best / best.sum(1, keepdims=True)).mean(0)]


def _resampled(
    trials: Sequence[Sequence[FoldPart]], metric: str, how: Pooling, seed: int
) -> NDArray[np.float64] | None:
    """The metric of each trial in each resample that defines it for all, `[resamples, trials]`; None of none."""
    labels, patients = _labels(trials[0]), np.concatenate([part.patients for part in trials[0]])
    slices = [sum(len(part.patients) for part in parts) for parts in trials]
    if slices != [len(patients)] * len(trials) or not all(np.array_equal(labels, _labels(one)) for one in trials):
        raise ValueError("all must have judged the same slices")
    if metric not in PAIRED_METRICS or len(np.unique(patients[labels > 0].astype(str))) < FEWEST_PATIENTS:
        return None
    each = [_weighted(parts, metric, how) for parts in trials]
    draws = PatientDraws(patients, resamples=_RESAMPLES, seed=seed)
    values = np.array([[one(weights) for one in each] for weights in draws.weights()])
    defined = values[np.isfinite(values).all(1)]
    return defined if len(defined) else None


def _labels(parts: Sequence[FoldPart]) -> NDArray[np.float32]:
    return np.concatenate([part.targets[:, -1] for part in parts])


def _weighted(parts: Sequence[FoldPart], metric: str, how: Pooling) -> Callable[[NDArray[np.float64]], float]:
    """The metric of `any`, higher for better, as a function of how often each slice counts."""
    if how == "mean":
        ends = np.cumsum([len(part.patients) for part in parts])[:-1]
        each = [_of_any([part], metric, how) for part in parts]
        return lambda weights: _mean([one(own) for one, own in zip(each, np.split(weights, ends), strict=True)])
    return _of_any(parts, metric, how)


def _of_any(parts: Sequence[FoldPart], metric: str, how: Pooling) -> Callable[[NDArray[np.float64]], float]:
    labels = _labels(parts)
    if metric == "log_loss":
        logits = np.concatenate([part.logits[:, -1] for part in parts]).astype(np.float64)
        lost = losses(labels, 0.5 + 0.5 * np.tanh(logits / 2))
        return lambda weights: -float(lost @ weights / weights.sum())
    of = standardized if how == "scaled" else lambda logits, _: logits
    ranking = Ranking(labels, np.concatenate([of(part.logits, part.patients)[:, -1] for part in parts]))
    return lambda weights: ranking.statistics(weights)[PAIRED_METRICS.index(metric)]


def _mean(values: Sequence[float]) -> float:
    """Of those that are defined."""
    there = [value for value in values if math.isfinite(value)]
    return sum(there) / len(there) if there else math.nan
