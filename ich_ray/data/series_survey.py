"""What the series of a dataset look like: repeated places, gaps, tilts that change, short ones.

A model that looks at neighboring slices relies on all of these. Knows the columns of slices.parquet; what an older
dataset does not have is not judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ich_ray.ct.slabs import SAME_MM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["SHORT", "SeriesSurvey", "is_gap", "number_series", "numbers", "survey_series"]

SHORT = 10  # a head of 150 mm in slices of 5 mm has 30
_GAP = 2.0  # times the median step of a series
_SAME_DEG = 1.0


@dataclass(frozen=True)
class SeriesSurvey:
    """Counts of the series that slices.parquet names.

    Attributes:
        several: studies with more than one series.
        repeating: series in which two slices lie at one place.
        gaping: with a gap of more than twice their median one.
        unplaced: with a slice whose place is not known.
        tilting: whose slices are tilted by angles that differ by more than a degree.
        short: with fewer than ten slices.
    """

    series: int = 0
    several: int = 0
    repeating: int = 0
    gaping: int = 0
    unplaced: int = 0
    tilting: int = 0
    short: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """A line for each count that is not zero."""
        return tuple(self._said())

    def _said(self) -> Iterator[str]:
        if self.several:
            yield f"{_of(self.several, 'study', 'studies')} several series: a lesion is a positive slice in each"
        told = (
            (self.repeating, "two slices at one place"),
            (self.gaping, "a gap of more than twice their median one"),
            (self.unplaced, "slices whose place is not known"),
            (self.tilting, "slices of different tilts"),
            (self.short, f"fewer than {SHORT} slices"),
        )
        for count, what in told:
            if count:
                yield f"{_of(count, 'series', 'series')} {what}"


def _of(count: int, one: str, many: str) -> str:
    return f"1 {one} has" if count == 1 else f"{count} {many} have"


def survey_series(slices: pa.Table) -> SeriesSurvey:
    """Survey the series of slices.parquet; slices without a series are in none."""
    series = number_series(slices)
    rows = np.flatnonzero(series >= 0)
    if not len(rows):
        return SeriesSurvey()
    found, series = np.unique(series[rows], return_inverse=True)
    count = np.bincount(series)
    places = numbers(slices, "position_mm")[rows]
    repeating, gaping = _spaced(series, places)
    return SeriesSurvey(
        series=len(found),
        several=_several(slices, rows, series),
        repeating=repeating,
        gaping=gaping,
        unplaced=len(np.unique(series[np.isnan(places)])) if "position_mm" in slices.column_names else 0,
        tilting=_tilting(series, numbers(slices, "tilt_deg")[rows]),
        short=int((count < SHORT).sum()),
    )


def number_series(slices: pa.Table) -> NDArray[np.int64]:
    """The number of the series of each slice, -1 without one, as all are without such a column.

    Of one patient and study: some de-identifiers give one SeriesInstanceUID to all.
    """
    if "series" not in slices.column_names:
        return np.full(len(slices), -1)
    series = np.zeros(len(slices), np.int64)
    for name in ("patient", "study", "series"):
        if name in slices.column_names:  # codes of texts: 40 times as fast as the texts themselves
            codes = pc.dictionary_encode(_texts(slices, name)).combine_chunks().indices.to_numpy()
            _, series = np.unique(series * (int(codes.max(initial=0)) + 1) + codes, return_inverse=True)
    return np.where(pc.equal(_texts(slices, "series"), "").to_numpy(), -1, series)


def _texts(slices: pa.Table, name: str) -> pa.ChunkedArray:
    return pc.fill_null(slices[name].cast(pa.large_string()), "")


def _text(slices: pa.Table, name: str) -> NDArray[np.str_]:
    return np.asarray(slices[name].to_numpy(zero_copy_only=False), np.str_)


def numbers(slices: pa.Table, name: str) -> NDArray[np.float64]:
    """A column of numbers, NaN where it has none."""
    if name not in slices.column_names:
        return np.full(len(slices), np.nan)
    return np.asarray(slices[name].to_numpy(zero_copy_only=False), np.float64)


def _several(slices: pa.Table, rows: NDArray[np.int64], series: NDArray[np.int64]) -> int:
    if "study" not in slices.column_names:
        return 0
    _, first = np.unique(series, return_index=True)
    studies, count = np.unique(_text(slices, "study")[rows][first], return_counts=True)
    return int(((count > 1) & (studies != "")).sum())


def _spaced(series: NDArray[np.int64], places: NDArray[np.float64]) -> tuple[int, int]:
    """How many series repeat a place, and how many have a gap."""
    known = ~np.isnan(places)
    order = np.lexsort((places[known], series[known]))
    series, places = series[known][order], places[known][order]
    within = series[1:] == series[:-1]
    steps, of_step = np.diff(places)[within], series[1:][within]
    same = steps < SAME_MM
    repeating = len(np.unique(of_step[same]))
    steps, of_step = steps[~same], of_step[~same]
    return repeating, len(np.unique(of_step[is_gap(of_step, steps)]))


def is_gap(of_step: NDArray[np.int64], steps: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether a step between two places is more than twice the median one of its series.

    A series of fewer than three steps has no gap; nor is one missing slice of even steps, however they were rounded.

    Args:
        of_step: the series of each step, `[n]`.
        steps: in mm, `[n]`.
    """
    order = np.lexsort((steps, of_step))
    series, first, count = np.unique(of_step[order], return_index=True, return_counts=True)
    widest = np.where(count > 2, _GAP * steps[order][first + (count - 1) // 2] + SAME_MM, np.inf)
    return np.asarray(steps > widest[np.searchsorted(series, of_step)], bool)


def _tilting(series: NDArray[np.int64], tilts_deg: NDArray[np.float64]) -> int:
    known = ~np.isnan(tilts_deg)
    series, tilts_deg = series[known], tilts_deg[known]
    order = np.lexsort((tilts_deg, series))
    _, first, count = np.unique(series[order], return_index=True, return_counts=True)
    spread = tilts_deg[order][first + count - 1] - tilts_deg[order][first]
    return int((spread > _SAME_DEG).sum())
