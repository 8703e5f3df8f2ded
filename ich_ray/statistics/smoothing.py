"""Gaussian smoothing of logits along a series: what neighbors say, without anything trained.

The baseline of every sequence model. Distances are counted in places of the series; at its ends, weights are of what is
there. Slices at one place have the mean of their logits.

Array shapes: logits and targets float `[n, labels]`, targets NaN where unknown and `any` last; `place` int64 `[n]` is
the number of the place of each slice, `starts` int64 `[series + 1]` where the places of each series begin, as those of
`data.series_order.SeriesOrder`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.statistics.metrics import log_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["SIGMAS", "fit_sigmas", "smoothed"]

# In places; published fits are 0.55 to 2.9.
SIGMAS = tuple(step / 8 for step in range(33))
# Of a label with fewer positive slices the width is that of `any`.
FEWEST_POSITIVES = 20
_REACH = 4.0  # standard deviations, beyond which a weight is below 1/2,900 of the first


def smoothed(
    logits: NDArray[np.floating], place: NDArray[np.int64], starts: NDArray[np.int64], sigmas: Sequence[float]
) -> NDArray[np.float32]:
    """Logits of slices, each the weighted mean over the places of its series; float32 `[n, labels]`.

    Args:
        logits: of slices.
        place: of each slice.
        starts: of series.
        sigmas: of each label, in places; 0 for none.
    """
    of_places = _of_places(logits, place, starts)
    columns = [_smooth(of_places[:, label], starts, sigma) for label, sigma in enumerate(sigmas)]
    return np.stack(columns, 1)[place].astype(np.float32)


def fit_sigmas(
    logits: NDArray[np.floating],
    targets: NDArray[np.floating],
    place: NDArray[np.int64],
    starts: NDArray[np.int64],
) -> tuple[float, ...]:
    """The width for each label, of `SIGMAS`, with the least log loss on these slices.

    Args:
        logits: that mean probabilities.
        targets: of slices.
        place: of each slice.
        starts: of series.
    """
    of_places = _of_places(logits, place, starts)
    columns = zip(of_places.T, targets.T, strict=True)
    *subtypes, of_any = (_fitted(values, known, place, starts) for values, known in columns)
    widest = of_any or 0.0
    return (*(widest if sigma is None else sigma for sigma in subtypes), widest)


def _fitted(
    logits: NDArray[np.float64], targets: NDArray[np.floating], place: NDArray[np.int64], starts: NDArray[np.int64]
) -> float | None:
    """None where too few slices are positive, or none is negative."""
    known = ~np.isnan(targets)
    if (targets == 1).sum() < FEWEST_POSITIVES or not (targets == 0).any():
        return None

    def loss(sigma: float) -> float:
        scores = _smooth(logits, starts, sigma)[place[known]]
        return log_loss(targets[known], np.exp(-np.logaddexp(0, -scores)))  # a sigmoid that does not overflow

    return min(SIGMAS, key=loss)


def _of_places(
    logits: NDArray[np.floating], place: NDArray[np.int64], starts: NDArray[np.int64]
) -> NDArray[np.float64]:
    total = np.zeros((int(starts[-1]), logits.shape[1]))
    np.add.at(total, place, logits)
    return total / np.bincount(place, minlength=len(total))[:, None]


def _smooth(values: NDArray[np.float64], starts: NDArray[np.int64], sigma: float) -> NDArray[np.float64]:
    if sigma <= 0:
        return values
    series = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    longest = int(np.diff(starts).max(initial=1))
    total, weights = values.copy(), np.ones(len(values))
    for distance in range(1, min(longest, math.ceil(_REACH * sigma) + 1)):
        weight = math.exp(-(distance**2) / (2 * sigma**2))
        together = series[distance:] == series[:-distance]
        total[:-distance] += weight * together * values[distance:]
        total[distance:] += weight * together * values[:-distance]
        weights[:-distance] += weight * together
        weights[distance:] += weight * together
    return np.asarray(total / weights)
