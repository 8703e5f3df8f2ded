"""How sure a figure is: patients, not slices, drawn again with replacement.

Slices of one patient resemble each other, so intervals that draw slices are too narrow (Field & Welsh, "Bootstrapping
clustered data", 2007). Knows whose slice each is and nothing of labels. What adds up over slices is summed once for
each patient, so that thousands of resamples are one matrix product; a ranking needs its weights resample by resample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Interval", "PatientDraws", "interval", "patient_bootstrap"]

Statistics = Callable[["NDArray[np.float64]"], dict[str, float]]


class Interval(NamedTuple):
    """A figure and its percentile interval; NaN where undefined."""

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
        """Sums `[resamples, k]` of values `[m, k]` of some slices, positions `[m]` of them, over each resample."""
        of_slice, values = self.of_slice[slices], np.asarray(values, np.float64)
        by_patient = [np.bincount(of_slice, column, self.patients) for column in values.T]
        return np.asarray(self.times @ np.column_stack(by_patient))

    def weights(self, slices: NDArray[Any] | slice = slice(None)) -> Iterator[NDArray[np.float64]]:
        """How often each of some slices is in each resample, `[m]` each."""
        of_slice = self.of_slice[slices]
        for row in self.times:
            yield row[of_slice]


def interval(value: float, drawn: NDArray[np.float64], confidence: float = 0.95) -> Interval:
    """The percentile interval of a figure from its resamples; those in which it is undefined do not count."""
    defined = drawn[np.isfinite(drawn)]
    if not math.isfinite(value) or not len(defined):
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


def patient_bootstrap(
    statistics: Statistics,
    patients: NDArray[Any],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Percentile intervals of any figures.

    Args:
        statistics: weights `[n]` -> figures by name; with unit weights it gives the values themselves.
        patients: whose slice each is, `[n]`.
        resamples: how often all patients are drawn.
        confidence: the share of resamples inside the interval.
        seed: of the draws.
    """
    draws = PatientDraws(patients, resamples=resamples, seed=seed)
    values = statistics(np.ones(len(draws.of_slice)))
    drawn = {name: np.full(resamples, math.nan) for name in values}
    for index, weights in enumerate(draws.weights()):
        for name, value in statistics(weights).items():
            drawn[name][index] = value
    return {name: interval(value, drawn[name], confidence) for name, value in values.items()}
