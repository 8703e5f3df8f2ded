"""The inputs of `predict` in parts, each for one worker, and their rows in the order of the inputs.

A part holds whole series where a network sees more than single slices, wherever their files stand in the list; else any
slices, as they stand. Rows wait for those before them: a few hundred bytes a slice, no images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ich_ray.bundle.input_survey import Input
from ich_ray.bundle.series_reading import Series
from ich_ray.ct.slabs import Slabs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from ich_ray.bundle.input_survey import SeriesTable

__all__ = ["Part", "as_item", "in_order", "part_of", "single_slices", "whole_series"]

Row = TypeVar("Row")


@dataclass(frozen=True)
class Part:
    """Slices of a few series, one series after another; plain values, as it travels through Ray.

    Attributes:
        numbers: of its inputs in the list of all.
        inputs: of each series in the order of their SOPInstanceUIDs.
        lengths: how many inputs each series has.
        places_mm: of the inputs, see `Series`.
        slabs: around the inputs, see `Slabs.to_bytes`; empty where no series is averaged.
    """

    numbers: list[int]
    inputs: list[Input]
    lengths: list[int]
    places_mm: list[float]
    slabs: bytes = b""

    def series(self) -> Iterator[Series]:
        """Its series, in turn."""
        ends = np.cumsum([0, *self.lengths]).tolist()
        slabs = Slabs.from_bytes(self.slabs, len(self.inputs)) if self.slabs else None
        for start, end in pairwise(ends):
            places_mm = np.array(self.places_mm[start:end], np.float64)
            yield Series(self.inputs[start:end], places_mm, _averaged(slabs, np.arange(start, end)))


def single_slices(inputs: Sequence[Input], length: int) -> list[Part]:
    """Parts of so many inputs, each of which is seen alone."""
    return [
        Part([*range(start, start + len(part))], [*part], [1] * len(part), [math.nan] * len(part))
        for start in range(0, len(inputs), length)
        if (part := inputs[start : start + length])
    ]


def whole_series(inputs: Sequence[Input], table: SeriesTable, length: int, slabs: Slabs | None = None) -> list[Part]:
    """Parts of so many inputs or fewer, or of one longer series, in the order of their first inputs."""
    parts: list[list[NDArray[np.int64]]] = []
    held = 0
    for slices in _series(table):
        if not parts or held + len(slices) > length:
            parts.append([])
            held = 0
        parts[-1].append(slices)
        held += len(slices)
    return [_part(inputs, table, part, slabs) for part in parts]


def _series(table: SeriesTable) -> list[NDArray[np.int64]]:
    """The inputs of each series; those without a header are each alone."""
    order = np.lexsort((table.by_id, table.series))
    series = table.series[order]
    begins = np.flatnonzero((np.diff(series) != 0) | (series[1:] < 0)) + 1
    return sorted(np.split(order, begins), key=lambda slices: int(slices.min()))


def _part(inputs: Sequence[Input], table: SeriesTable, series: list[NDArray[np.int64]], slabs: Slabs | None) -> Part:
    numbers = np.concatenate(series)
    places_mm = table.position_mm[numbers].astype(np.float64)
    around = _averaged(slabs, numbers)
    given = [inputs[number] for number in numbers.tolist()]
    return Part(numbers.tolist(), given, [*map(len, series)], places_mm.tolist(), around.to_bytes() if around else b"")


def _averaged(slabs: Slabs | None, rows: NDArray[np.int64]) -> Slabs | None:
    """The slabs around some slices; None where none of them is averaged."""
    return slabs.of(rows) if slabs is not None and slabs.finer[rows].any() else None


def in_order(parts: Iterable[Part], rows: Iterable[Sequence[Row]]) -> Iterator[list[Row]]:
    """The rows of all parts in the order of the inputs, as soon as those before them are there."""
    waiting: dict[int, Row] = {}
    done = 0
    for part, found in zip(parts, rows, strict=True):
        waiting.update(zip(part.numbers, found, strict=True))
        ready = []
        while done in waiting:
            ready.append(waiting.pop(done))
            done += 1
        if ready:
            yield ready


def as_item(part: Part) -> dict[str, Any]:
    """A part as Ray Data takes it: plain values by name."""
    given = {name: [getattr(one, name) for one in part.inputs] for name in Input._fields}
    return {**given, "numbers": part.numbers, "lengths": part.lengths, "places_mm": part.places_mm, "slabs": part.slabs}


def part_of(item: dict[str, Any]) -> Part:
    """The part of an item."""
    inputs = [Input(*values) for values in zip(*(item[name] for name in Input._fields), strict=True)]
    return Part(item["numbers"], inputs, item["lengths"], item["places_mm"], item["slabs"])
