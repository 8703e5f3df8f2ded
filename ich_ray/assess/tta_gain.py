"""The gain of test-time augmentation, on the calibration patients and never on test patients.

Logits with and without it are each calibrated by themselves, on the same slices by the same method, as averaged logits
spread less. The scalings are not fitted again in each resample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ich_ray.assess.paired_changes import FIGURES, Change, format_changes, paired_changes
from ich_ray.bundle.card import TtaFigure, TtaGain
from ich_ray.bundle.logit_scaling import fit_scaling

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.bundle.logit_scaling import Method
    from ich_ray.data.dataset import SliceSet

__all__ = ["format_gain", "measure_tta", "tta_changes"]


def measure_tta(
    slices: SliceSet, plain: NDArray[np.float32], averaged: NDArray[np.float32], method: Method, shift: float
) -> TtaGain:
    """Figures of `any` by the logits of images as they are and by those averaged over views, `[n]` each.

    Args:
        slices: of patients who trained nothing.
        plain: logits of these slices, in their order; finite.
        averaged: the same with test-time augmentation.
        method: how each is calibrated.
        shift: of the training class weights.
    """
    labels = slices.labels.astype(np.float64)
    before, after = (fit_scaling(method, labels, logits, shift)(logits) for logits in (plain, averaged))
    changes = paired_changes(labels, before, after, slices.patients)
    figures = {
        name: TtaFigure(without=one.before, with_tta=one.after, difference=one.difference, low=one.low, high=one.high)
        for name, one in changes.items()
    }
    return TtaGain(**figures)


def tta_changes(gain: TtaGain) -> dict[str, Change]:
    """The figures of a gain without and with test-time augmentation."""
    figures: dict[str, TtaFigure] = {name: getattr(gain, name) for name in FIGURES}
    return {name: Change(one.without, one.with_tta, one.difference, one.low, one.high) for name, one in figures.items()}


def format_gain(gain: TtaGain) -> str:
    """All figures without and with test-time augmentation, on a line."""
    return format_changes(tta_changes(gain))
