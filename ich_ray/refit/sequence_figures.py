"""What a sequence model adds to no model and to Gaussian smoothing, by slice and by study.

Each way is fitted on patients whom nobody trained on: a logit is `weights @ logits + bias`, of the network's own alone,
of these smoothed, or of these and the sequence model's. A study is as probable as the most probable slice of the series
that answers for it, or as the study head says of that series: the rule, and the labels, of `evaluate`. Knows arrays;
nothing of files, images or networks.

Array shapes: logits and targets are `[n, labels]`, `any` last, targets NaN where unknown; groups and places `[n]`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from ich_ray.data.series_order import ordered_series
from ich_ray.statistics.aggregation import patients_by_label
from ich_ray.statistics.metrics import POSITIVE_PATIENTS_OF_A_LABEL, Ranking, log_loss
from ich_ray.statistics.smoothing import fit_sigmas, smoothed

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["WAYS", "ReadSlices", "Weights", "compared", "cross_fitted", "fit_blends", "fit_weights"]

WAYS = ("none", "smoothing", "sequence")
_FOLDS = 5
# As wide as those of temperatures: a weight above 20 is of labels that the logits part perfectly. None is negative,
# which would turn a ranking round.
_WEIGHTS, _BIASES = (0.0, 20.0), (-30.0, 30.0)
# Weights that add up to less make one probability of all slices, which cannot be ranked any more.
_LEAST_WEIGHT = 0.05


@dataclass(frozen=True, eq=False)
class ReadSlices:
    """Slices as two networks read them.

    Attributes:
        targets: of each slice.
        own: logits of the network.
        sequence: logits of the sequence model at the place of each slice.
        head: of its study head, for the series of each slice.
        series: a number of that of each slice.
        studies: a number of that of each slice, -1 where it names none.
        study_targets: `any` of the study of each slice, `[n]`, NaN where unknown.
        answering: whether the series of a slice answers for its study, `[n]`.
        places_mm: along the series, NaN where it is not known.
        patients: who they are of, `[n]`.
    """

    targets: NDArray[np.float32]
    own: NDArray[np.float32]
    sequence: NDArray[np.float32]
    head: NDArray[np.float32]
    series: NDArray[np.int64]
    studies: NDArray[np.int64]
    study_targets: NDArray[np.float32]
    answering: NDArray[np.bool_]
    places_mm: NDArray[np.float64]
    patients: NDArray[np.object_]

    def at(self, kept: NDArray[np.bool_]) -> ReadSlices:
        """Some of them, of whole patients."""
        return ReadSlices(**{each.name: getattr(self, each.name)[kept] for each in fields(self)})


@dataclass(frozen=True)
class Weights:
    """logit = weights @ logits + bias."""

    weights: tuple[float, ...]
    bias: float

    def __call__(self, logits: NDArray[Any]) -> NDArray[np.float64]:
        """Of logits `[n, weights]`."""
        moved: NDArray[np.float64] = np.asarray(logits, np.float64) @ np.array(self.weights) + self.bias
        return moved


def fit_weights(targets: NDArray[Any], logits: NDArray[Any]) -> Weights:
    """The weights with the least log loss on targets `[n]`, of logits `[n, k]`; unknown ones left out.

    Targets are drawn in a little, as Platt ("Probabilistic outputs for support vector machines", 1999) does: labels of
    few patients that the logits part perfectly would ask for weights without end. Where the logits say nothing of
    them, weights would all be 0: they are even then, and only the bias is fitted, so that the ranking stays.
    """
    found = _fitted(targets, logits)
    return found if sum(found.weights) >= _LEAST_WEIGHT else _even(targets, logits)


def _even(targets: NDArray[Any], logits: NDArray[Any]) -> Weights:
    """The mean of the logits, moved as fits best."""
    count = logits.shape[1]
    mean = np.asarray(logits, np.float64).mean(1, keepdims=True)
    return Weights((1 / count,) * count, _fitted(targets, mean, fixed=True).bias)


def _fitted(targets: NDArray[Any], logits: NDArray[Any], *, fixed: bool = False) -> Weights:
    """The same without a least weight; with `fixed` all weights are 1."""
    known = np.isfinite(targets)
    if not known.any():
        return Weights((1 / logits.shape[1],) * logits.shape[1], 0.0)
    labels, columns = np.asarray(targets, np.float64)[known], np.asarray(logits, np.float64)[known]
    positive = labels.sum()
    truth = np.where(labels == 1, (positive + 1) / (positive + 2), 1 / (len(labels) - positive + 2))

    def loss(numbers: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        moved = columns @ numbers[:-1] + numbers[-1]
        error = (expit(moved) - truth) / len(truth)
        return float(np.mean(np.logaddexp(0, moved) - truth * moved)), np.append(error @ columns, error.sum())

    begin = np.append(np.full(columns.shape[1], 1 / columns.shape[1]), 0.0)
    bounds = [*[(1.0, 1.0) if fixed else _WEIGHTS] * columns.shape[1], _BIASES]
    found = minimize(loss, begin, jac=True, bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-9})
    *weights, bias = map(float, found.x)
    return Weights(tuple(weights), bias)


def fit_blends(read: ReadSlices) -> list[Weights]:
    """How the logits of network and sequence model are weighed, for each label.

    A label that few patients have, or that all of them have, is weighed as `any` is; where few have or lack `any`, the
    two logits count alike, and their bias alone is fitted.
    """
    both = np.stack([read.own, read.sequence], 2)
    fit = fit_weights if _is_told(read, -1) and _is_lacked(read) else _even
    of_any = fit(read.targets[:, -1], both[:, -1])
    own = [
        fit_weights(read.targets[:, label], both[:, label]) if _is_told(read, label) else of_any
        for label in range(both.shape[1] - 1)
    ]
    return [*own, of_any]


def _is_told(read: ReadSlices, label: int) -> bool:
    targets = read.targets[:, label]
    positive = patients_by_label(targets, read.patients)[1]
    return positive >= POSITIVE_PATIENTS_OF_A_LABEL and bool((targets == 0).any())


def _is_lacked(read: ReadSlices) -> bool:
    """Whether enough patients have slices without haemorrhage."""
    return patients_by_label(read.targets[:, -1], read.patients)[0] >= POSITIVE_PATIENTS_OF_A_LABEL


def compared(fitted_on: ReadSlices, read: ReadSlices) -> dict[str, dict[str, float | None]]:
    """Figures of `any` for each of `WAYS`, fitted on some patients and measured on others."""
    return _figures(read, *_answers(fitted_on, read))


def cross_fitted(read: ReadSlices) -> dict[str, dict[str, float | None]]:
    """The same figures of patients who fit the ways: of each fifth of them, fitted on the others.

    Empty where the patients are too few to part.
    """
    names = np.unique(read.patients)
    fold = np.random.default_rng(0).permutation(len(names)) % _FOLDS
    folds = fold[np.searchsorted(names, read.patients)]
    slices, studies = ({way: np.full((len(folds), 2), math.nan) for way in WAYS} for _ in range(2))
    for number in range(_FOLDS):
        inside = folds == number
        labels = read.targets[~inside, -1]
        if not inside.any() or not 0 < labels.sum() < len(labels):
            return {}
        told = _answers(read.at(~inside), read.at(inside))
        for kept, found in zip((slices, studies), told, strict=True):
            for way in WAYS:
                kept[way][inside] = found[way]
    return _figures(read, slices, studies)


def _answers(
    fitted_on: ReadSlices, read: ReadSlices
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """What each way says of `any` of each slice, and of its study, as `_said`."""
    sigma = _sigma(fitted_on)
    slices, studies = {}, {}
    first = _first_slices(fitted_on)
    for way in WAYS:
        one, other = (_columns(part, way, sigma) for part in (fitted_on, read))
        slices[way] = _said(fit_weights(fitted_on.targets[:, -1], one), other)
        told, asked = (
            _of_studies(part, part.head[:, -1:] if way == "sequence" else columns)
            for part, columns in ((fitted_on, one), (read, other))
        )
        studies[way] = _said(fit_weights(fitted_on.study_targets[first], told[first]), asked)
    return slices, studies


def _said(weights: Weights, logits: NDArray[Any]) -> NDArray[np.float64]:
    """The logit of each row, and beside it what ranks it, `[n, 2]`.

    That is the logit without its bias, by weights that add up to 1. A fold with many positives is moved down by the
    bias of the others, who have few: ranked among other folds by that, logits that say nothing would seem to mislead.
    """
    whole = sum(weights.weights)
    ranked = Weights(tuple(one / whole for one in weights.weights), 0.0)
    return np.stack([weights(logits), ranked(logits)], 1)


def _sigma(read: ReadSlices) -> float:
    """The width that smoothes best; of logits that mean probabilities."""
    order = ordered_series(read.series, read.places_mm)
    own = fit_weights(read.targets[:, -1], read.own[:, -1:])
    return fit_sigmas(own(read.own[:, -1:])[:, None], read.targets[:, -1:], order.place, order.starts)[0]


def _columns(read: ReadSlices, way: str, sigma: float) -> NDArray[np.float64]:
    """The logits that a way weighs, `[n, k]`."""
    logits = read.own[:, -1:].astype(np.float64)
    if way == "smoothing":
        order = ordered_series(read.series, read.places_mm)
        return smoothed(logits, order.place, order.starts, (sigma,)).astype(np.float64)
    return logits if way == "none" else np.concatenate([logits, read.sequence[:, -1:]], 1)


def _of_studies(read: ReadSlices, values: NDArray[Any]) -> NDArray[np.float64]:
    """Of each column the highest of the answering slices of the study of each slice, `[n, k]`; NaN without a study."""
    asked = read.answering & (read.studies >= 0)
    found = np.full((read.studies.max(initial=-1) + 2, values.shape[1]), -np.inf)
    np.maximum.at(found, read.studies[asked], values[asked])
    found[-1] = math.nan  # where -1 points to
    return found[read.studies]


def _first_slices(read: ReadSlices) -> NDArray[np.int64]:
    """One of each study."""
    studies, first = np.unique(read.studies, return_index=True)
    return first[studies >= 0]


def _figures(
    read: ReadSlices, slices: dict[str, NDArray[np.float64]], studies: dict[str, NDArray[np.float64]]
) -> dict[str, dict[str, float | None]]:
    first = _first_slices(read)
    return {
        way: {
            **_measured("", read.targets[:, -1], slices[way]),
            **_measured("study_", read.study_targets[first], studies[way][first]),
        }
        for way in WAYS
    }


def _measured(prefix: str, labels: NDArray[Any], said: NDArray[np.float64]) -> dict[str, float | None]:
    """Of those whose label is known; None where a figure is not defined."""
    known = ~np.isnan(labels)
    truth, (logits, ranked) = labels[known], said[known].T
    ap, auc = Ranking(truth, ranked).statistics() if known.any() else (math.nan, math.nan)
    loss = log_loss(truth, expit(logits)) if known.any() else math.nan
    values = {"average_precision": ap, "roc_auc": auc, "log_loss": loss}
    return {prefix + name: float(value) if math.isfinite(value) else None for name, value in values.items()}
