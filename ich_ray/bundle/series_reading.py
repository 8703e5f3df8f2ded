"""The slices of a series, read once each, and what a network is given for every one of them.

They go by in the order of their places: a slice is read when it, or one beside it, is first needed, and forgotten when
the last that needs it is over, so that few of a series are in memory. Which slices lie beside one is `data.neighbors`,
as in training: one that cannot be read is as absent. Knows series, files and windows; knows no network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.ct.head_box import NO_BOX, head_box, side_mm
from ich_ray.ct.slabs import SAME_MM, SlabReader, Slabs
from ich_ray.data.neighbors import MOST_NEIGHBORS, neighbor_rows
from ich_ray.data.shown_rectangles import plausible_sides, series_boxes, shown_rectangles
from ich_ray.errors import Rejection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from ich_ray.bundle.card import Card
    from ich_ray.bundle.input_survey import Input
    from ich_ray.ct.dicom import CTSlice, SliceHeader
    from ich_ray.ct.slice_file import SliceFile

__all__ = ["NEIGHBOR_FLAGS", "VIEW_FLAGS", "Seen", "Series", "SeriesImages", "SliceReader", "walk"]

# Images of a series that are kept while its box is looked for: 40 of 512 x 512 x 3 are 31 MB.
_KEPT_BYTES = 2**26

# Flags of `predict` alone, by a network that sees neighbors. The ends of a series have none: in training, too.
NEIGHBOR_FLAGS = {
    "neighbor_missing": "a gap lies beside it in its series, or a slice that was rejected: a neighbor is another one",
    "neighbors_unknown": "no other slice of its series is known, or not its place: it stands in for its neighbors",
}

# By a network with `crop: head` or `scale: mm`.
VIEW_FLAGS = {
    "head_of_slice": "no other slice of its series is there: the head is looked for in it alone, not in the series",
    "head_unknown": "no slice of its series shows a head: it is shown as with crop: none",
    "scale_unknown": "no PixelSpacing, or one that no CT image has: it is shown as with scale: pixels",
}


@dataclass(frozen=True)
class Series:
    """Slices of one series, or one slice that knows of no other.

    Attributes:
        inputs: in the order of their SOPInstanceUIDs, which decides between slices at one place.
        places_mm: along the normal, `[n]`; NaN where not known.
        slabs: around the slices, if they are averaged.
    """

    inputs: Sequence[Input]
    places_mm: NDArray[np.float64]
    slabs: Slabs | None = None

    @property
    def neighbor_mm(self) -> float:
        """At which distance neighbors lie; 0 where they are the next slices."""
        return self.slabs.rule.spacing_mm if self.slabs is not None else 0.0


class SliceReader:
    """Reads slices; of files of several frames the last one stays open."""

    def __init__(self, without_preamble: bool = False) -> None:
        self._without_preamble = without_preamble
        self._opened: tuple[str, SliceFile | Rejection] | None = None

    def read(self, given: Input) -> CTSlice:
        """Read a slice.

        Raises:
            Rejection: it is not accepted. A file that is damaged is not opened again for each of its frames.
        """
        if not given.frame:
            file = self._open(given.file)
        elif self._opened is not None and self._opened[0] == given.file:
            file = self._opened[1]
        else:
            file = self._open(given.file)
            self._opened = given.file, file
        if isinstance(file, Rejection):
            raise file
        return file.read(given.frame)

    def _open(self, path: str) -> SliceFile | Rejection:
        from ich_ray.ct.slice_file import SliceFile  # pydicom is not needed to load a bundle

        try:
            return SliceFile(path, self._without_preamble)
        except Rejection as rejection:
            return rejection


class SeriesImages:
    """The image of each slice of a series, without its neighbors, and which part of it is shown.

    What is made of the words of several slices, or of a part of each, is made here: `walk` asks for the images of a
    series in the order of their places, mostly once each, and knows nothing of how they come about. Where a box of the
    series says what is shown, all slices are read once before the first; of a long series, some are read again.
    """

    def __init__(self, series: Series, reader: SliceReader, card: Card) -> None:
        self._series, self._reader, self._card = series, reader, card
        # Until the slabs above a slice have been seen from below, one goes along the series for each neighbor.
        self._slabs = SlabReader(self._stored, 1 + card.parameters.neighbors)
        self._kept: dict[int, tuple[SliceHeader, NDArray[np.uint8]] | Rejection] = {}
        self._looked_at = 0  # slices that say where the head lies, or that they do not show it

    def words(self, index: int) -> CTSlice:
        """A slice, averaged over its slab in a thin series; its image and its head are of these words.

        Raises:
            Rejection: it is not accepted.
        """
        slabs = self._series.slabs
        return self._stored(index) if slabs is None else self._slabs.slab(index, slabs.around(index))

    def _stored(self, index: int) -> CTSlice:
        return self._reader.read(self._series.inputs[index])

    def __call__(self, index: int) -> tuple[SliceHeader, NDArray[np.uint8]]:
        """The header of a slice and its image, uint8 `card.image_shape`.

        Raises:
            Rejection: it is not accepted.
        """
        _ = self._box  # first, as it reads them all
        found = self._kept.pop(index, None) or self._windowed(self.words(index))
        if isinstance(found, Rejection):
            raise found
        return found

    def _windowed(self, found: CTSlice) -> tuple[SliceHeader, NDArray[np.uint8]]:
        from ich_ray.ct.windowing import window_slice

        return found.header, window_slice(found, self._card.windows, self._card.size)

    def rectangle(self, header: SliceHeader) -> NDArray[np.float32] | None:
        """What is shown of the image of one of its slices, `[4]`; None where all of it is."""
        if not self._card.parameters.shows_part:
            return None
        side = np.array([side_mm(header)], np.float32).astype(np.float64)  # as in slices.parquet
        shown: NDArray[np.float32] = shown_rectangles(self._card.parameters, self._box, side)[0]
        return shown

    def lacks(self, header: SliceHeader) -> set[str]:
        """What is not known of one of its slices, by `VIEW_FLAGS`."""
        parameters = self._card.parameters
        found = set()
        if parameters.crop == "head" and np.isnan(self._box).any():
            found = {"head_unknown"}
        elif parameters.crop == "head" and self._looked_at == 1:
            found = {"head_of_slice"}
        sized = parameters.scale == "pixels" or plausible_sides(np.array([side_mm(header)])).all()
        return found if sized else found | {"scale_unknown"}

    @cached_property
    def _box(self) -> NDArray[np.float64]:
        """Where the head lies in the series, `[1, 4]`; NaN where nobody asks, or no slice shows one."""
        boxes: list[tuple[float, ...]] = [NO_BOX]
        if self._card.parameters.crop == "head":
            order = np.argsort(self._series.places_mm).tolist()  # slabs are read along their series
            boxes += [self._look(index) for index in order if not self._series.inputs[index].reason]
        found = np.array(boxes, np.float32).astype(np.float64)
        return series_boxes(np.zeros(len(found), np.int64), found)[:1]

    def _look(self, index: int) -> tuple[float, ...]:
        """The box of one slice, whose image is kept until it is asked for if there is room."""
        try:
            found = self.words(index)
            if len(self._kept) * math.prod(self._card.image_shape) < _KEPT_BYTES:
                self._kept[index] = self._windowed(found)
            self._looked_at += 1
            return head_box(found)
        except Rejection as rejection:
            self._kept[index] = rejection
        except MemoryError:
            pass  # met again where the slice is asked for
        return NO_BOX


@dataclass(frozen=True)
class Seen:
    """One slice of a series and its neighbors.

    Attributes:
        index: among the inputs of the series.
        header: None if it is rejected.
        reason: why; else empty.
        images: of the slices that make up its input, from below to above, itself in the middle; of a rejected one none.
        flags: keys of `NEIGHBOR_FLAGS`.
    """

    index: int
    header: SliceHeader | None
    reason: str
    images: tuple[NDArray[np.uint8], ...] = ()
    flags: tuple[str, ...] = ()


def walk(
    series: Series, image: Callable[[int], tuple[SliceHeader, NDArray[np.uint8]]], neighbors: int
) -> Iterator[Seen]:
    """Each slice of a series with so many neighbors on either side, in the order of their places.

    Whatever cannot be read is known before it would be seen beside a slice. The median step, which says what is a gap,
    is that of the slices that are not known to be unreadable by then.

    Args:
        series: the slices.
        image: `SeriesImages`, or what stands for it: header and image of a slice, or a `Rejection`.
        neighbors: on either side.
    """
    yield from _Walk(series, image, neighbors)


class _Walk:
    def __init__(
        self, series: Series, image: Callable[[int], tuple[SliceHeader, NDArray[np.uint8]]], neighbors: int
    ) -> None:
        self._series, self._image, self._neighbors = series, image, neighbors
        refused = np.array([bool(given.reason) for given in series.inputs], bool)
        self._placed_mm = np.where(refused, np.nan, series.places_mm)  # by their headers
        self._places_mm = self._placed_mm.copy()  # without those that could not be read
        self._ids = np.array([f"{index:09d}" for index in range(len(refused))], object)  # they sort as their numbers do
        self._order = np.lexsort((self._placed_mm,))
        self._turn = np.argsort(self._order)
        self._nearest = self._beside_each(across_gaps=True)
        self._held: dict[int, tuple[SliceHeader, NDArray[np.uint8]]] = {}
        self._reasons = {index: series.inputs[index].reason for index in np.flatnonzero(refused).tolist()}
        self._look()

    def __iter__(self) -> Iterator[Seen]:
        for turn, index in enumerate(self._order.tolist()):
            yield self._seen(index)
            for held in [held for held in self._held if self._last[held] <= turn]:
                del self._held[held]

    def _look(self) -> None:
        """Which slices are beside each, and at whose turn each is needed last."""
        self._beside = self._beside_each()
        self._last = self._turn.copy()
        np.maximum.at(self._last, self._beside, self._turn[:, None])

    def _beside_each(self, across_gaps: bool = False) -> NDArray[np.int64]:
        count = len(self._places_mm)
        if not self._neighbors or np.isfinite(self._places_mm).sum() < 2:
            return np.repeat(np.arange(count)[:, None], 2 * self._neighbors + 1, 1)
        apart_mm = np.full(count, self._series.neighbor_mm)
        series = np.zeros(count, np.int64)
        rows = neighbor_rows(series, self._places_mm, self._ids, apart_mm, across_gaps=across_gaps)
        return rows[:, MOST_NEIGHBORS - self._neighbors : MOST_NEIGHBORS + self._neighbors + 1]

    def _seen(self, index: int) -> Seen:
        while unread := [one for one in (index, *self._beside[index].tolist()) if not self._is_read(one)]:
            if np.isfinite(self._places_mm[unread]).any():
                self._places_mm[unread] = np.nan
                self._look()
            if index in unread:
                return Seen(index, None, self._reasons[index])
        beside = self._beside[index]
        header, _ = self._held[index]
        return Seen(index, header, "", tuple(self._held[one][1] for one in beside.tolist()), self._lacks(index, beside))

    def _is_read(self, index: int) -> bool:
        """Whether the image of a slice is there, read now if it has not been."""
        if index in self._held:
            return True
        if index not in self._reasons:
            try:
                self._held[index] = self._image(index)
                return True
            except Rejection as rejection:
                self._reasons[index] = rejection.reason
            except MemoryError:
                self._reasons[index] = "out_of_memory"
        return False

    def _lacks(self, index: int, beside: NDArray[np.int64]) -> tuple[str, ...]:
        if not self._neighbors:
            return ()
        nearest = self._nearest[index]
        if (nearest == index).all():
            return ("neighbors_unknown",)
        apart_mm = np.abs(self._placed_mm[nearest] - self._placed_mm[beside])
        return ("neighbor_missing",) if (apart_mm >= SAME_MM).any() else ()
