"""The order of the slices of each series: columns in, places out, from the lowest to the highest.

Along the normal of the slices. Slices at one place are one place, whose features are averaged and whose logit they
share. A slice without a series, or whose place in it is not known, is a series of its own. A gap is none here: a
sequence model may be told the mm. The order of the rows that are given changes nothing but the numbers by which series
and places are called.

Works on a dataset and, by the same function, on the places of files that `predict` reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.ct.slabs import SAME_MM
from ich_ray.data.series_survey import number_series, numbers

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["SeriesOrder", "order_of_slices", "ordered_series"]


@dataclass(frozen=True, eq=False)
class SeriesOrder:
    """The places of all series, one series after another.

    Attributes:
        place: of each row that was given, the number of its place, int64 `[n]`.
        starts: where the places of each series begin, and where the last one ends, int64 `[series + 1]`.
        places_mm: of each place, float32, NaN where it is not known.
    """

    place: NDArray[np.int64]
    starts: NDArray[np.int64]
    places_mm: NDArray[np.float32]

    def __len__(self) -> int:
        """How many series there are."""
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Places of each series."""
        return np.diff(self.starts)

    @property
    def series(self) -> NDArray[np.int64]:
        """The number of the series of each row that was given."""
        return np.searchsorted(self.starts, self.place, side="right") - 1

    def padded(self, series: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Places of some series side by side, `[series, longest]`, and where there is one; elsewhere is 0."""
        first, lengths = self.starts[series], self.lengths[series]
        step = np.arange(lengths.max(initial=1))
        mask = step < lengths[:, None]
        return np.where(mask, first[:, None] + step, 0), mask


def order_of_slices(slices: pa.Table) -> SeriesOrder:
    """The order of rows of slices.parquet; some of them, where only these are given."""
    return ordered_series(number_series(slices), numbers(slices, "position_mm"))


def ordered_series(series: NDArray[np.int64], places_mm: NDArray[np.float64]) -> SeriesOrder:
    """The order of slices.

    Args:
        series: a number of the series of each row, negative without one, `[n]`.
        places_mm: along the normal of the slices, not finite where it is not known, `[n]`.
    """
    known = (series >= 0) & np.isfinite(places_mm)
    # Rows that are a series each get numbers of their own, behind all others.
    own = np.where(known, series, series.max(initial=-1) + 1 + np.arange(len(series)))
    where = np.where(known, places_mm, 0.0)
    order = np.lexsort((where, own))
    new_series = np.diff(own[order], prepend=-1) != 0
    new_place = new_series | (np.diff(where[order], prepend=0) >= SAME_MM)
    place = np.empty(len(series), np.int64)
    place[order] = np.cumsum(new_place) - 1
    begins = order[new_place]
    starts = np.append(np.flatnonzero(new_series[new_place]), len(begins))
    return SeriesOrder(place, starts, np.where(known, where, np.nan)[begins].astype(np.float32))
