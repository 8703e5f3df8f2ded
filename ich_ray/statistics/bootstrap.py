"""How sure a figure is: patients, not slices, drawn again with replacement.

Slices of one patient resemble each other, so intervals that draw slices are too narrow (Field & Welsh, "Bootstrapping
clustered data", 2007). Knows whose slice each is and nothing of labels. What adds up over slices is summed once for
each patient, so that thousands of resamples are one matrix product; a ranking needs its weights resample by resample.

Drawing patients again cannot tell what no patient drawn shows. Where nothing is missed, or one patient holds all that
counts, a share of slices has an exact interval instead, and any other figure has none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.special import betaincinv

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = [
    "FEWEST_PATIENTS",
    "Interval",
    "PatientDraws",
    "can_tell",
    "effective_count",
    "exact_interval",
    "interval",
    "lower_bound",
    "share_interval",
]

# Even the whole range of n patients' values holds the median of all patients with a confidence of 1 - 2 / 2^n only
# (Thompson 1936): 94 % for five.
FEWEST_PATIENTS = 6
_POINT = 1e-9  # an interval narrower than this share of its ends is a point but for rounding


class Interval(NamedTuple):
    """A figure and its interval; NaN where undefined, bounds also where nothing can be said of them."""

    value: float
    low: float
    high: float


class PatientDraws:
    """How often each patient is in each resample.

    Args:
        patients: whose slice each is, `[n]`.
        resamples: how often all patients are drawn.
        seed: of the draws.
    """

    def __init__(self, patients: NDArray[Any], *, resamples: int = 1000, seed: int = 0) -> None:
        names, self.of_slice = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
        rng, self.patients = np.random.default_rng(seed), len(names)
        draws = (rng.integers(0, len(names), len(names)) for _ in range(resamples))
        self.times = np.stack([np.bincount(draw, minlength=len(names)) for draw in draws]).astype(np.float64)

    def __len__(self) -> int:
        return len(self.times)

    def sums(self, values: NDArray[Any], slices: NDArray[Any] | slice = slice(None)) -> NDArray[np.float64]:
        """Sums `[resamples, k]` over each resample of values `[m, k]` of `slices`, positions `[m]`."""
        of_slice, values = self.of_slice[slices], np.asarray(values, np.float64)
        by_patient = [np.bincount(of_slice, column, self.patients) for column in values.T]
        return np.asarray(self.times @ np.column_stack(by_patient))

    def weights(self, slices: NDArray[Any] | slice = slice(None)) -> Iterator[NDArray[np.float64]]:
        """How often each of some slices is in each resample, `[m]` each."""
        of_slice = self.of_slice[slices]
        for row in self.times:
            yield row[of_slice]


def interval(value: float, drawn: NDArray[np.float64], confidence: float = 0.95) -> Interval:
    """The percentile interval of a figure from its resamples, undefined ones left out.

    Its bounds are NaN where they would meet: a figure that no resample moves, such as an average precision of 1, is not
    known any better for that.
    """
    defined = drawn[np.isfinite(drawn)]
    if not math.isfinite(value) or not len(defined):
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    met = high - low <= _POINT * max(abs(low), abs(high))
    return Interval(value, math.nan, math.nan) if met else Interval(value, float(low), float(high))


def effective_count(patients: NDArray[Any]) -> float:
    """The effective number of independent slices if those of a patient are all decided alike.

    `patients` says whose each is, `[m]`. (sum of m)² / sum of m² for m slices of each patient: Kish, "Survey sampling"
    (1965), section 8.2, with an intraclass correlation of 1, the worst that clustering can do.
    """
    _, held = np.unique(patients, return_counts=True)
    return float(held.sum() ** 2 / (held**2).sum()) if len(held) else 0.0


def lower_bound(share: NDArray[Any] | float, count: float, tail: float) -> NDArray[np.float64]:
    """The lower bound of Clopper & Pearson (1934) for shares of `count` independent slices.

    Below it lies a probability of `tail`. `count` may be a fraction, as `effective_count` gives it: Korn & Graubard,
    "Confidence intervals for proportions with small expected number of positive counts estimated from survey data"
    (1998).
    """
    held = np.asarray(share, np.float64) * count
    return np.where(held > 0, betaincinv(np.maximum(held, 1e-300), count - held + 1, tail), 0.0)


def exact_interval(share: float, count: float, confidence: float = 0.95) -> Interval:
    """The interval of Clopper & Pearson for a share of `count` independent slices, see `lower_bound`."""
    if not math.isfinite(share) or count <= 0:
        return Interval(share, math.nan, math.nan)
    held, tail = share * count, (1 - confidence) / 2
    high = float(betaincinv(held + 1, count - held, 1 - tail)) if share < 1 else 1.0
    return Interval(share, float(lower_bound(share, count, tail)), high)


def can_tell(drawn: NDArray[np.float64], patients: NDArray[Any]) -> bool:
    """Whether resamples move a share of the slices of `patients` `[m]`, and draw enough of them."""
    return len(np.unique(patients)) >= FEWEST_PATIENTS and math.isfinite(interval(0.0, drawn).low)


def share_interval(
    share: float, drawn: NDArray[np.float64], patients: NDArray[Any], confidence: float = 0.95
) -> Interval:
    """The interval of a share of slices: percentile, or exact where resamples cannot tell.

    Args:
        share: such as a sensitivity.
        drawn: the same of each resample.
        patients: whose slices it is a share of, `[m]`: for a sensitivity the positive ones.
        confidence: of the interval.
    """
    if can_tell(drawn, patients):
        return interval(share, drawn, confidence)
    return exact_interval(share, effective_count(patients), confidence)
