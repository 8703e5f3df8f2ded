"""Figures of the labels that a network answers beside `any`: each subtype by its own probability.

A case is a slice whose label is known, positive with the subtype and negative without it, whatever else it shows. All
figures use the draws of patients of the whole evaluation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.assess.interval_estimates import (
    CONFIDENCE,
    Cases,
    Estimate,
    GroupFigures,
    as_estimate,
    enough_patients,
    measure,
    ranked_draws,
)
from ich_ray.statistics.bootstrap import Interval, interval
from ich_ray.statistics.metrics import (
    POSITIVE_PATIENTS_OF_A_LABEL,
    mean_or_nan,
    weighted_log_loss,
    weighted_losses,
)
from ich_ray.vocabulary import LABELS, SUBTYPES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from ich_ray.bundle.card import SubtypeCalibration
    from ich_ray.data.dataset import SliceSet
    from ich_ray.statistics.bootstrap import PatientDraws
    from ich_ray.vocabulary import Subtype

__all__ = ["LabelFigures", "measure_labels"]


@dataclass(frozen=True)
class LabelFigures:
    """What is measured of the labels.

    Attributes:
        labels: by subtype.
        metrics: over all labels: the competition's log loss, means over the subtypes where they are defined, and how
            many these are.
        notes: what cannot be said of a subtype, and why.
    """

    labels: dict[Subtype, GroupFigures]
    metrics: dict[str, Estimate]
    notes: tuple[str, ...]


def measure_labels(
    slices: SliceSet,
    probabilities: NDArray[np.float64],
    calibrations: Mapping[Subtype, SubtypeCalibration],
    draws: PatientDraws,
) -> LabelFigures:
    """All figures of the labels of some slices, with their intervals.

    Args:
        slices: in the order of the draws.
        probabilities: of all labels, `[n, labels]`, `any` last.
        calibrations: of the subtypes, whose operating points were fixed before.
        draws: of the patients of these slices.
    """
    targets = slices.targets(LABELS)
    found, drawn, enough, notes = {}, [], [], []
    for label, name in enumerate(SUBTYPES):
        rows = np.flatnonzero(~np.isnan(targets[:, label]))
        cases = Cases(targets[rows, label].astype(np.float64), probabilities[rows, label], rows, calibrated=True)
        points = calibrations[name].operating_points if name in calibrations else {}
        drawn.append(ranked_draws(cases, draws))
        found[name] = measure(cases, points, draws, ranked=drawn[-1])
        if cases.labels.any():
            enough.append(enough_patients(cases, draws))
        notes += _few(slices, name, np.isnan(targets[slices.labels == 1, label]).all())
    of_any = Cases(targets[:, -1].astype(np.float64), probabilities[:, -1], np.arange(len(targets)), calibrated=True)
    metrics = {"weighted_log_loss": _weighted(targets, probabilities, of_any, draws)}
    means = _means(np.array(drawn))
    for column, metric in enumerate(("average_precision", "roc_auc")):
        values = [group.metrics[metric].value for group in found.values()]
        mean = mean_or_nan(math.nan if value is None else value for value in values)
        figure = interval(mean, means[:, column], CONFIDENCE)
        metrics[f"{metric}_subtypes"] = figure if all(enough) else Interval(mean, math.nan, math.nan)
    measured = sum(group.metrics["roc_auc"].value is not None for group in found.values())
    estimates = {name: as_estimate(figure) for name, figure in metrics.items()}
    return LabelFigures(found, estimates | {"subtypes_measured": Estimate(value=measured)}, tuple(notes))


def _few(slices: SliceSet, name: Subtype, unknown: bool) -> list[str]:
    """What cannot be said of a subtype."""
    if unknown:
        return [f"{name}: it is not known of any test slice with haemorrhage, and has no figures."]
    patients = slices.positive_patients(name)
    if patients >= POSITIVE_PATIENTS_OF_A_LABEL:
        return []
    undefined = "" if patients else ": its average precision and ROC AUC are undefined, and left out of the means"
    return [f"{name}: {patients} test patients have it, too few to judge it by{undefined}."]


def _weighted(
    targets: NDArray[np.float32], probabilities: NDArray[np.float64], of_any: Cases, draws: PatientDraws
) -> Interval:
    """The competition's log loss, where each label is known of a slice with haemorrhage; else it is another figure."""
    if np.isnan(targets[of_any.labels == 1]).all(0).any():
        return Interval(math.nan, math.nan, math.nan)
    loss = weighted_log_loss(targets, probabilities)
    sums = draws.sums(np.column_stack([np.ones(len(targets)), weighted_losses(targets, probabilities)]))
    figure = interval(loss, sums[:, 1] / sums[:, 0], CONFIDENCE)
    return figure if enough_patients(of_any, draws) else Interval(loss, math.nan, math.nan)


def _means(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over the subtypes in each resample, `[resamples, 2]`, of `ranked_draws` of each.

    A subtype that no patient drawn has is left out of the mean of that resample, which is rare where enough have it.
    """
    defined = np.isfinite(drawn)
    total = np.where(defined, drawn, 0.0).sum(0)
    return np.asarray(np.divide(total, defined.sum(0), out=np.full(total.shape, math.nan), where=defined.any(0)))
