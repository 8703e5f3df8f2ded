"""The series that answers for its study: the one most like those that trained the bundle.

A study is mostly sent in several reconstructions. The highest of all would be asked of networks that saw few such
images, and would grow with the number of series. Knows how series were taken, not their pixels; the same rule chooses
in a prepared dataset and among the files of `predict`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ich_ray.bundle.training_data import SeriesLook, median_step
from ich_ray.ct.slabs import known_median
from ich_ray.data.series_survey import number_series, numbers
from ich_ray.data.study_labels import number_studies
from ich_ray.statistics.aggregation import members

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from ich_ray.bundle.training_data import Names, TrainingData
    from ich_ray.data.dataset import SliceSet

__all__ = ["StudySeries", "answering", "answering_series", "extent"]

_USUAL, _RARE = 0.1, 0.01  # of the slices that trained the bundle
_FRAGMENT = 0.5  # of the longest series of the study
_UNTOLD = 1.0  # what a header does not say counts as a factor of two


@dataclass(frozen=True)
class StudySeries:
    """One series of a study.

    Attributes:
        look: how it was taken, not how it is averaged.
        slices: that can be judged.
        length_mm: from its first to its last place, NaN where these are not known.
        uid: SeriesInstanceUID or its pseudonym, empty for slices that name none.
    """

    look: SeriesLook
    slices: int
    length_mm: float
    uid: str


def answering(series: Sequence[StudySeries], known: TrainingData | None) -> int:
    """The place of the series that answers for its study.

    One that reaches over less than half of the longest (a localizer, a bolus tracked at one place) only where all do.
    Then by kernel: one of a tenth of the training slices or more, then one of a hundredth or an untold one, then any.
    Then the nearest to the medians of thickness and distance, as ratios in tenths of a doubling. Then the one of most
    slices, then the lowest UID. Where the card does not say how its slices were taken, the one of most slices.
    """
    longest = max((one.length_mm for one in series if math.isfinite(one.length_mm)), default=0.0)

    def distance(place: int) -> tuple[Any, ...]:
        one = series[place]
        unlike = (0, 0.0) if known is None else (_kernel(known.kernels, one.look.kernel), _doublings(known, one.look))
        return one.length_mm < _FRAGMENT * longest, *unlike, -one.slices, one.uid

    return min(range(len(series)), key=distance)


def _kernel(names: Names | None, kernel: str) -> int:
    """0 for a usual kernel, 1 for one that was seen or is not told, 2 for one that was hardly seen."""
    if names is None:
        return 0
    held = {name.upper(): count for name, count in names.counts.items()}
    count = held.get(kernel.upper(), 0)
    if count >= _USUAL * (sum(held.values()) + names.others) and count:
        return 0
    return 2 if names.is_rare(kernel) else 1


def _doublings(known: TrainingData, look: SeriesLook) -> float:
    """How many doublings lie between thickness and distance of a series and the medians of the training data."""
    pairs = ((known.thickness_mm, look.thickness_mm), (known.slice_spacing_mm, look.slice_spacing_mm))
    ratios = (value / held.median for held, value in pairs if held is not None and held.median > 0)
    return round(sum(abs(math.log2(ratio)) if 0 < ratio < math.inf else _UNTOLD for ratio in ratios), 1)


def extent(places_mm: NDArray[np.floating[Any]]) -> float:
    """From the first to the last place, in mm; NaN where none is known."""
    known = places_mm[np.isfinite(places_mm)]
    return float(np.ptp(known)) if len(known) else math.nan


def answering_series(slices: SliceSet, known: TrainingData | None) -> NDArray[np.bool_]:
    """Which slices are of the series that answers for their study, `[n]`.

    All slices of a study without a series are one series together; a slice without a study answers for itself.

    Args:
        slices: of a prepared dataset; what it does not say of their series is not known.
        known: of the bundle's card.
    """
    held = slices.dataset.slices
    there = [name for name in _COLUMNS if name in held.column_names]
    table = held.select(there).take(slices.rows)
    series = number_series(table)
    return _answer(number_studies(slices)[0], series, lambda rows: _series(table.take(rows)), known)


_COLUMNS = ("patient", "study", "series", "position_mm", "thickness_mm", "kernel")


def _series(table: pa.Table) -> StudySeries:
    """Of the slices of a series."""

    def texts(name: str) -> list[str]:
        return [text for text in table[name].to_pylist() if text] if name in table.column_names else []

    places_mm = numbers(table, "position_mm")
    look = SeriesLook(
        thickness_mm=known_median(numbers(table, "thickness_mm")),
        slice_spacing_mm=median_step(places_mm),
        pixel_spacing_mm=math.nan,
        kernel=next(iter(texts("kernel")), ""),
        matrix="",
    )
    return StudySeries(look, len(table), extent(places_mm), next(iter(texts("series")), ""))


def _answer(
    studies: NDArray[np.int64],
    series: NDArray[np.int64],
    describe: Callable[[NDArray[np.int64]], StudySeries],
    known: TrainingData | None,
) -> NDArray[np.bool_]:
    found = np.ones(len(studies), bool)
    rows = np.flatnonzero(studies >= 0)
    for study in members(studies[rows]):
        parts = [rows[study[part]] for part in members(series[rows[study]])]
        if len(parts) > 1:
            chosen = answering([describe(part) for part in parts], known)
            for place, part in enumerate(parts):
                found[part] = place == chosen
    return found
