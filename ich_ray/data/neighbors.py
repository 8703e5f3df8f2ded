"""Which slices lie beside a slice in its series: columns of slices.parquet in, rows out.

The next distinct place along the normal of the slices, on either side. A slice stands in for a neighbor that it does
not have: at the ends of its series, beyond a gap, and where its place or series is not known. Places and gaps are those
that the survey of a dataset counts (series_survey.py).

In a series that was averaged into slabs (ct/slabs.py) the next place shows nearly the same: there a neighbor is the
slice at the distance of the slabs, or the one nearest to it, where one lies within 3/4 of a step of the series.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.ct.slabs import SAME_MM
from ich_ray.data.series_survey import is_gap, number_series, numbers

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["MOST_NEIGHBORS", "neighbor_rows", "placed_rows", "series_neighbors", "without_neighbors"]

MOST_NEIGHBORS = 2  # on either side
_NEAR_STEPS = 0.75  # equal steps lie within half of one; the rest is for those that are not


def series_neighbors(slices: pa.Table) -> NDArray[np.int64]:
    """Rows of slices.parquet beside each of its rows, `[n, 5]`, see `neighbor_rows`."""
    if not {"series", "position_mm", "slice_id"} <= {*slices.column_names}:
        return np.repeat(np.arange(len(slices))[:, None], 2 * MOST_NEIGHBORS + 1, 1)
    names = np.asarray(slices["slice_id"].to_numpy(zero_copy_only=False), np.object_)
    # Datasets from before slabs have no such column, and are not averaged.
    distances_mm = np.nan_to_num(numbers(slices, "slab_mm"))
    return neighbor_rows(number_series(slices), numbers(slices, "position_mm"), names, distances_mm)


def without_neighbors(neighbors: NDArray[np.int64], rows: NDArray[np.int64]) -> int:
    """How many of some rows have none on either side, by `series_neighbors`."""
    return int((neighbors[rows] == rows[:, None]).all(1).sum())


def placed_rows(slices: pa.Table) -> NDArray[np.int64]:
    """Rows of slices.parquet of which both the series and the place in it are known."""
    return np.flatnonzero((number_series(slices) >= 0) & np.isfinite(numbers(slices, "position_mm")))


def neighbor_rows(
    series: NDArray[np.int64],
    places_mm: NDArray[np.float64],
    slice_ids: NDArray[np.object_],
    distances_mm: NDArray[np.float64] | None = None,
    *,
    across_gaps: bool = False,
) -> NDArray[np.int64]:
    """The rows beside each row, from the lowest place to the highest, itself in the middle, `[n, 5]`.

    Slices at one place have the same neighbors, and of those at the next place the first by its id is one. A step of
    more than twice the median of its series, where it has three steps at least, leads to none.

    Args:
        series: a number of the series of each row, negative without one.
        places_mm: along the normal of the slices, not finite where it is not known.
        slice_ids: that decide between slices at one place.
        distances_mm: to the neighbors of a row; 0, as without them: the next place.
        across_gaps: the next place, however far it is; the next one at a distance or beyond.
    """
    rows = np.repeat(np.arange(len(series))[:, None], 2 * MOST_NEIGHBORS + 1, axis=1)
    known = np.flatnonzero((series >= 0) & np.isfinite(places_mm))
    if not len(known):
        return rows
    order = known[np.lexsort((places_mm[known], series[known]))]
    same_series, steps_mm = np.diff(series[order]) == 0, np.diff(places_mm[order])
    begins = np.flatnonzero(np.append(True, ~same_series | (steps_mm >= SAME_MM)))
    place = np.cumsum(np.isin(np.arange(len(order)), begins, assume_unique=True)) - 1  # of each row in order
    first = _first_by_id(order, place, begins, slice_ids)
    joined = same_series[begins[1:] - 1]
    if not across_gaps:
        joined = _joined(series[order[begins]], joined, steps_mm[begins[1:] - 1])
    for distance in range(1, MOST_NEIGHBORS + 1):
        lower = _runs(joined, distance)
        for own, other, column in ((lower, lower + distance, distance), (lower + distance, lower, -distance)):
            beside = np.full(len(begins), -1)
            beside[own] = first[other]
            found = beside[place]
            rows[order[found >= 0], MOST_NEIGHBORS + column] = found[found >= 0]
    if distances_mm is not None and distances_mm.any():
        _space(rows, order, place, (series[first], places_mm[first], distances_mm[first], first), across_gaps)
    return rows


def _space(
    rows: NDArray[np.int64],
    order: NDArray[np.int64],
    place: NDArray[np.int64],
    places: tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]],
    across_gaps: bool,
) -> None:
    """Write neighbors at their distances over those at the next places, where a distance is given.

    Args:
        rows: see `neighbor_rows`.
        order: rows by their places.
        place: of each row in order.
        places: of each place its series, where it lies, the distance to its neighbors, and the row that stands for it.
        across_gaps: see `neighbor_rows`.
    """
    series, places_mm, distances_mm, first = places
    ends = np.flatnonzero(np.diff(series, prepend=-1, append=-1))
    for begin, end in pairwise(ends):
        if distances_mm[begin] > 0:
            offsets = _offsets(places_mm[begin:end], distances_mm[begin], across_gaps)
            of_series = slice(*np.searchsorted(place, (begin, end)))
            found = offsets[place[of_series] - begin]
            here = order[of_series]
            rows[here] = np.where(found >= 0, first[begin + found], here[:, None])


def _offsets(places_mm: NDArray[np.float64], distance_mm: float, across_gaps: bool) -> NDArray[np.int64]:
    """For each place of a series those beside it at a distance, `[places, 5]`; -1 where there is none, and for itself.

    One is taken within 3/4 of a step of the series, the median one; behind one that is not there is no other.
    """
    found = np.full((len(places_mm), 2 * MOST_NEIGHBORS + 1), -1)
    if len(places_mm) < 2:
        return found
    near_mm = _NEAR_STEPS * np.median(np.diff(places_mm))
    for side in (-1, 1):
        there = np.ones(len(places_mm), bool)
        for count in range(1, MOST_NEIGHBORS + 1):
            wanted = places_mm + side * count * distance_mm
            above = np.clip(np.searchsorted(places_mm, wanted), 1, len(places_mm) - 1)
            nearest = above - (wanted - places_mm[above - 1] <= places_mm[above] - wanted)
            is_near = np.abs(places_mm[nearest] - wanted) <= near_mm
            if across_gaps:
                nearest = np.where(is_near, nearest, above - (side < 0))
                is_near |= (places_mm[nearest] - wanted) * side > 0
            there &= is_near
            found[there, MOST_NEIGHBORS + side * count] = nearest[there]
    return found


def _runs(joined: NDArray[np.bool_], length: int) -> NDArray[np.int64]:
    """Where so many places in a row are each joined to the next one."""
    if len(joined) < length:
        return np.empty(0, np.int64)
    return np.flatnonzero(np.lib.stride_tricks.sliding_window_view(joined, length).all(1))


def _first_by_id(
    order: NDArray[np.int64], place: NDArray[np.int64], begins: NDArray[np.int64], slice_ids: NDArray[np.object_]
) -> NDArray[np.int64]:
    """The row of each place: ids are compared where it has several, as comparing texts takes long."""
    first = order[begins]
    several = np.flatnonzero(np.bincount(place)[place] > 1)
    if len(several):
        ids = slice_ids[order[several]].astype(str)
        sorted_ = several[np.lexsort((ids, place[several]))]
        places, index = np.unique(place[sorted_], return_index=True)
        first[places] = order[sorted_[index]]
    return first


def _joined(
    series: NDArray[np.int64], same_series: NDArray[np.bool_], steps_mm: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Whether each place is next to the one after it: of one series, and without a gap between."""
    inside = np.flatnonzero(same_series)
    joined = same_series.copy()
    joined[inside] = ~is_gap(series[:-1][inside], steps_mm[inside])
    return joined
