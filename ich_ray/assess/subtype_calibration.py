"""Probabilities and thresholds of the subtypes, where enough calibration patients have one.

A subtype that few have decides nothing of its own: its logits are read as those of `any` are, less the class weights it
was trained with, and it has no operating point.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.assess.operating_points import OperatingPointSpec, operating_points
from ich_ray.bundle.card import SubtypeCalibration
from ich_ray.bundle.logit_scaling import LogitScaling, bound_note, fit_scaling
from ich_ray.data.folds import trained_and_validated
from ich_ray.data.sampling import stratified
from ich_ray.statistics.aggregation import patients_by_label
from ich_ray.statistics.metrics import POSITIVE_PATIENTS_OF_A_LABEL, log_loss
from ich_ray.vocabulary import SUBTYPES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from ich_ray.bundle.card import Card
    from ich_ray.bundle.logit_scaling import Method
    from ich_ray.bundle.operating_point import OperatingPoint
    from ich_ray.data.dataset import PreparedDataset, SliceSet
    from ich_ray.vocabulary import Subtype

__all__ = ["fit_subtypes", "subtype_shifts"]


def subtype_shifts(dataset: PreparedDataset, card: Card) -> dict[Subtype, float]:
    """What takes the class weights of the training of a bundle out of the logits of each subtype.

    They are those of the slices that trained it: a sample of them keeps the share of `any`, not that of a rare subtype.
    """
    from ich_ray.training.loss import prior_shift  # loads PyTorch

    if card.sequence is not None:  # the blend was fitted without them
        return dict.fromkeys(SUBTYPES, 0.0)
    parameters, retraining = card.parameters, card.retraining
    slices, _ = trained_and_validated(dataset, retraining.patients if retraining else "train")
    if parameters.training_slices and retraining:
        slices = stratified(slices, parameters.training_slices, retraining.seed)
    shifts: dict[Subtype, float] = {}
    for name in SUBTYPES:
        held = slices.targets([name])[:, 0]
        positives, negatives = int((held == 1).sum()), int((held == 0).sum())
        shifts[name] = prior_shift(parameters.loss, positives, negatives) if min(positives, negatives) else 0.0
    return shifts


def fit_subtypes(
    slices: SliceSet,
    logits: NDArray[np.float32],
    of_any: LogitScaling,
    method: Method,
    shifts: Mapping[Subtype, float],
    before: Mapping[Subtype, LogitScaling] | None = None,
    *,
    conservative: bool = False,
) -> dict[Subtype, SubtypeCalibration]:
    """Fit `method` and the usual operating points to the logits of each subtype.

    Args:
        slices: of patients who trained nothing.
        logits: of subtypes in the order of `SUBTYPES`, `[n, subtypes]`; finite.
        of_any: the scaling of `any` on these slices.
        method: how to fit.
        shifts: of the training class weights.
        before: the scalings to compare with; the plain sigmoid where there is none.
        conservative: see `OperatingPointSpec`.
    """
    targets = slices.targets(SUBTYPES)
    return {
        name: _fitted(
            slices,
            name,
            (targets[:, label], logits[:, label]),
            LogitScaling(shifts[name], of_any.temperature, of_any.bias),
            (before or {}).get(name, LogitScaling()),
            method,
            OperatingPointSpec(conservative=conservative),
        )
        for label, name in enumerate(SUBTYPES)
    }


def _fitted(
    slices: SliceSet,
    name: Subtype,
    data: tuple[NDArray[np.float32], NDArray[np.float32]],
    as_any: LogitScaling,
    before: LogitScaling,
    method: Method,
    wanted: OperatingPointSpec,
) -> SubtypeCalibration:
    targets, logits = data
    known = ~np.isnan(targets)
    labels, logits, patients = targets[known], logits[known], slices.patients[known]
    held = patients_by_label(labels, patients)
    enough = min(held.values()) >= POSITIVE_PATIENTS_OF_A_LABEL
    scaling = fit_scaling(method, labels, logits, as_any.prior_shift) if enough else as_any
    points: dict[str, OperatingPoint] = {}
    if enough:
        points, found = operating_points(labels, scaling(logits), patients, wanted)
        at_bound = bound_note(scaling)
        notes = [f"{name}: {note}" for note in (*([at_bound] if at_bound else ()), *found)]
    else:
        few, what = (held[1], "with") if held[1] < POSITIVE_PATIENTS_OF_A_LABEL else (held[0], "without")
        notes = [
            f"{name}: {POSITIVE_PATIENTS_OF_A_LABEL} calibration patients {what} it must be there, got {few}: it is "
            "scaled as any is, and has no operating point"
        ]
    return SubtypeCalibration(
        slices=len(labels),
        positives=int(labels.sum()),
        patients=held[1],
        scaled_by="own" if enough else "any",
        temperature=scaling.temperature,
        prior_shift=scaling.prior_shift,
        bias=scaling.bias,
        log_loss_before=_loss(labels, before(logits)),
        log_loss_after=_loss(labels, scaling(logits)),
        operating_points=points,
        notes=tuple(notes),
    )


def _loss(labels: NDArray[np.float32], probabilities: NDArray[np.float64]) -> float | None:
    value = log_loss(labels, probabilities)
    return value if math.isfinite(value) else None
