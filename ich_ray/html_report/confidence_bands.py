"""Confidence bands for plots, from labels, probabilities and patients.

Bands of curves draw patients again, like the intervals of `evaluate`, and hold at each place of the axis on its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.stats import binom

from ich_ray.assess.interval_estimates import CONFIDENCE
from ich_ray.statistics.bootstrap import PatientDraws
from ich_ray.statistics.metrics import Ranking

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["Band", "perfect_shares", "precision_recall_band", "roc_band"]

_GRID = np.linspace(0, 1, 101)
_RESAMPLES = 300  # a band drawn from more looks the same


class Band(NamedTuple):
    """The lower and upper end of an interval at each `x`, `[n]` each."""

    x: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def precision_recall_band(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], patients: NDArray[np.object_]
) -> Band:
    """PPV at the highest threshold that reaches each sensitivity."""

    def curve(tp: NDArray[np.float64], fp: NDArray[np.float64]) -> NDArray[np.float64]:
        places = np.searchsorted(tp, np.maximum(_GRID[1:], 1e-12) * tp[-1] * (1 - 1e-12))
        with np.errstate(invalid="ignore"):
            return np.asarray(tp[places] / (tp[places] + fp[places]), np.float64)

    return _band(labels, probabilities, patients, _GRID[1:], curve)


def roc_band(labels: NDArray[np.int64], probabilities: NDArray[np.float64], patients: NDArray[np.object_]) -> Band:
    """Sensitivity at the lowest threshold that stays within each share of false alarms."""

    def curve(tp: NDArray[np.float64], fp: NDArray[np.float64]) -> NDArray[np.float64]:
        places = np.searchsorted(fp, _GRID * fp[-1] * (1 + 1e-12), side="right")
        return np.asarray(np.append(0.0, tp)[places] / tp[-1], np.float64)

    return _band(labels, probabilities, patients, _GRID, curve)


def _band(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    patients: NDArray[np.object_],
    x: NDArray[np.float64],
    curve: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]],
) -> Band:
    ranking = Ranking(labels, probabilities)
    drawn = []
    for weights in PatientDraws(patients, resamples=_RESAMPLES).weights():
        tp, fp = ranking.counts(weights)
        if tp[-1] > 0 and fp[-1] > 0:
            drawn.append(curve(tp, fp))
    if not drawn:
        return Band(np.empty(0), np.empty(0), np.empty(0))
    low, high = np.nanquantile(np.stack(drawn), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return Band(x, low, high)


def perfect_shares(predicted: NDArray[np.float64], counts: NDArray[np.int64]) -> Band:
    """The interval of a bin's share of positives if its mean probability `predicted` is true.

    The bin has `counts` slices. Binomial, so a little too wide where the probabilities of a bin differ, and too narrow
    where slices of a patient go wrong together.
    """
    tail = (1 - CONFIDENCE) / 2
    low, high = (binom.ppf(share, counts, predicted) / counts for share in (tail, 1 - tail))
    return Band(predicted, np.asarray(low, np.float64), np.asarray(high, np.float64))
