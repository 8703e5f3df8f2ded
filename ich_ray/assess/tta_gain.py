"""The gain of test-time augmentation, on the calibration patients and never on test patients.

Logits with and without it are each calibrated by themselves, on the same slices by the same method, as averaged logits
spread less. The scalings are not fitted again in each resample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ich_ray.assess.interval_estimates import CONFIDENCE, Cases, as_estimate, enough_patients
from ich_ray.bundle.card import TtaFigure, TtaGain
from ich_ray.bundle.logit_scaling import fit_scaling
from ich_ray.statistics.bootstrap import PatientDraws, interval
from ich_ray.statistics.metrics import Ranking, losses

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.bundle.logit_scaling import Method
    from ich_ray.data.dataset import SliceSet

__all__ = ["format_change", "format_gain", "measure_tta"]

_FIGURES = ("log_loss", "average_precision", "roc_auc")


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
    labels, draws = slices.labels.astype(np.float64), PatientDraws(slices.patients)
    each = [fit_scaling(method, labels, logits, shift)(logits) for logits in (plain, averaged)]
    without, with_tta = (_figures(labels, probabilities, draws) for probabilities in each)
    difference = with_tta - without  # the figure itself, then that of each resample
    drawable = enough_patients(Cases(labels, each[0], np.arange(len(labels)), calibrated=True), draws)
    found = {}
    for column, name in enumerate(_FIGURES):
        drawn = difference[1:, column] if drawable else np.empty(0)
        value = float(difference[0, column])
        bounds = as_estimate(interval(value, drawn, CONFIDENCE))
        found[name] = TtaFigure(
            without=float(without[0, column]),
            with_tta=float(with_tta[0, column]),
            difference=value,
            low=bounds.low,
            high=bounds.high,
        )
    return TtaGain(**found)


def _figures(
    labels: NDArray[np.float64], probabilities: NDArray[np.float64], draws: PatientDraws
) -> NDArray[np.float64]:
    """`_FIGURES` of all slices and then of each resample, `[1 + resamples, 3]`."""
    ranking, loss = Ranking(labels, probabilities), losses(labels, probabilities)
    sums = draws.sums(np.column_stack([loss, np.ones(len(loss))]))
    means = np.append(loss.mean(), sums[:, 0] / sums[:, 1])
    ranks = [ranking.statistics(), *(ranking.statistics(weights) for weights in draws.weights())]
    return np.column_stack([means, np.array(ranks)])


def format_gain(gain: TtaGain) -> str:
    """All figures without and with test-time augmentation, on a line."""
    figures = ", ".join(f"{name.replace('_', ' ')} {format_change(getattr(gain, name))}" for name in _FIGURES)
    return f"{figures} (in brackets the difference, 95 % over patients)"


def format_change(figure: TtaFigure) -> str:
    """A figure without and with it, and the difference with its interval, or "no interval"."""
    known = figure.low is not None and figure.high is not None
    bounds = f"{figure.low:+.4f} to {figure.high:+.4f}" if known else "no interval"
    return f"{figure.without:.4f} -> {figure.with_tta:.4f} ({figure.difference:+.4f}, {bounds})"
