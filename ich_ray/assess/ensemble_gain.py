"""The gain of an ensemble over its first network, on the calibration patients, and what it costs.

Each is calibrated on some of these patients and measured on the others, fold by fold: averaged logits spread less, and
what was fitted on the patients who are measured would flatter either.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.assess.cross_fitting import cross_fitted, fold_count
from ich_ray.assess.paired_changes import FIGURES, Change, format_changes, paired_changes
from ich_ray.bundle.card import EnsembleFigure, EnsembleGain
from ich_ray.bundle.logit_scaling import fit_scaling
from ich_ray.data.shown_rectangles import WHOLE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.bundle.bundle import Bundle
    from ich_ray.bundle.logit_scaling import Method
    from ich_ray.data.dataset import SliceSet

__all__ = ["ensemble_changes", "format_ensemble_gain", "measure_ensemble"]

_TIMED_SLICES, _TIMES = 64, 3


def measure_ensemble(
    bundle: Bundle, slices: SliceSet, logits: NDArray[np.float32], method: Method, shift: float
) -> EnsembleGain | None:
    """Figures of `any` by the first network alone and by the mean of all.

    Args:
        bundle: an ensemble.
        slices: of patients who trained nothing.
        logits: those of `any` that the ensemble gives these slices, `[n]`.
        method: how each is calibrated.
        shift: of the training class weights.

    Returns:
        None where fewer than two patients have a positive slice, or fewer than two a negative one.
    """
    labels, patients = slices.labels.astype(np.float64), slices.patients
    folds = fold_count(labels, patients)
    if folds < 2:
        return None
    alone = bundle.without_members()
    fit = partial(fit_scaling, method, prior_shift=shift)
    before, after = (cross_fitted(labels, each, patients, folds, fit) for each in (alone.slice_logits(slices), logits))
    changes = paired_changes(labels, before, after, patients)
    figures = {
        name: EnsembleFigure(
            single=one.before, ensemble=one.after, difference=one.difference, low=one.low, high=one.high
        )
        for name, one in changes.items()
    }
    single_ms, ensemble_ms = (_ms_per_slice(one) for one in (alone, bundle))
    return EnsembleGain(
        networks=len(bundle.networks), folds=folds, **figures, single_ms=single_ms, ensemble_ms=ensemble_ms
    )


def _ms_per_slice(bundle: Bundle) -> float:
    """The median of a few batches of random images, the first left out."""
    shape = (_TIMED_SLICES, *bundle.card.input_shape)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    shown = np.tile(np.array(WHOLE, np.float32), (len(images), 1)) if bundle.card.parameters.shows_part else None
    seconds = []
    for _ in range(1 + _TIMES):
        started = time.perf_counter()
        bundle.label_logits(images, shown)
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[1:]) / len(images)


def ensemble_changes(gain: EnsembleGain) -> dict[str, Change]:
    """The figures of a gain of the single network and of the ensemble."""
    figures: dict[str, EnsembleFigure] = {name: getattr(gain, name) for name in FIGURES}
    return {name: Change(one.single, one.ensemble, one.difference, one.low, one.high) for name, one in figures.items()}


def format_ensemble_gain(gain: EnsembleGain) -> str:
    """All figures of the single network and of the ensemble, and their cost, on a line."""
    cost = f"{gain.single_ms:.3g} -> {gain.ensemble_ms:.3g} ms a slice"
    return f"{format_changes(ensemble_changes(gain))}, {cost}"
