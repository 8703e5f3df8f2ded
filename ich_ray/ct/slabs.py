"""Average thin series in HU: around each slice a slab as thick as slices that a network knows.

A slab of thickness T around a slice at c takes of each slice at p, in a series of median step s, the share of its
extent that lies inside: w = (min(p + s/2, c + T/2) - max(p - s/2, c - T/2)) / s. The mean is over the sum of w, so at
ends and gaps over what is there. Knows places and words of slices; no files, windows or labels.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from ich_ray.errors import Rejection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from ich_ray.ct.dicom import CTSlice

__all__ = ["SAME_MM", "SeriesGeometry", "SlabReader", "SlabRule", "Slabs", "known_median", "mean_slice", "slabs_around"]

SAME_MM = 0.01  # slices nearer to each other lie at one place
_FINER = 0.5  # than this share of the slab
_THINNEST = 1 / 64  # of the slab: steps of less are of no scanner, and such slabs would hold any number of slices
_LEAST_SHARE = 0.01  # of a slice's extent: positions are rounded
# Slices of one slab that differ more than this are not averaged.
_PIXEL_SHARE, _SAME_COSINE, _SLIDE_MM = 0.01, float(np.cos(np.radians(1))), 1.0

Key = TypeVar("Key")


@dataclass(frozen=True)
class SlabRule:
    """Which series are averaged, and to what.

    Attributes:
        thickness_mm: of the slabs.
        spacing_mm: between neighbors.
        known_thickness_mm, known_spacing_mm: slices of these and more stay as they are, as a network knows them.
    """

    thickness_mm: float
    spacing_mm: float
    known_thickness_mm: float = math.inf
    known_spacing_mm: float = math.inf

    def is_finer(self, step_mm: float, thickness_mm: float) -> bool:
        """Whether a series is finer than half of this, and than what a network knows.

        Args:
            step_mm: the median one.
            thickness_mm: NaN where it is not known.
        """
        closest = min(self.spacing_mm * _FINER, self.known_spacing_mm)
        thinnest = min(self.thickness_mm * _FINER, self.known_thickness_mm)
        # A series at a limit is no finer, whichever way its numbers were rounded.
        within = self.thickness_mm * _THINNEST <= step_mm < closest - SAME_MM
        return within and not thickness_mm >= thinnest - SAME_MM


@dataclass(frozen=True)
class SeriesGeometry:
    """How slices lie, as arrays `[n]`; NaN where a header does not say.

    Attributes:
        series: a number, -1 without one.
        places_mm: along the normal.
        corners, normals: ImagePositionPatient and the unit normal, `[n, 3]`.
        sizes: rows and columns, `[n, 2]`.
        pixel_mm: the mean of both spacings.
        ranks: decide which of the slices at one place is taken by the slabs around others: the first.
    """

    series: NDArray[np.int64]
    places_mm: NDArray[np.float64]
    thickness_mm: NDArray[np.float64]
    corners: NDArray[np.float64]
    normals: NDArray[np.float64]
    sizes: NDArray[np.int64]
    pixel_mm: NDArray[np.float64]
    ranks: NDArray[np.int64]


@dataclass(frozen=True)
class Slabs:
    """The slab around each slice: one after the other, as they would be in a sparse matrix.

    Attributes:
        rule: by which they were made.
        finer: whether it is of a series that is averaged, bool `[n]`; such a slice may still be alone, where its slab
            holds no other.
        counts: how many members each slab has, `[n]`; one of a series that is not averaged has none.
        members, weights: from the lowest place to the highest; the weights of a slab have the sum 1, and are numbers
            that float32 holds: they are the same before and after they travel.
    """

    rule: SlabRule
    finer: NDArray[np.bool_]
    counts: NDArray[np.int64]
    members: NDArray[np.int64]
    weights: NDArray[np.float64]

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum(self.counts)

    def around(self, row: int) -> list[tuple[int, float]]:
        """The members of a slab with their weights."""
        here = slice(self._ends[row] - self.counts[row], self._ends[row])
        return list(zip(self.members[here].tolist(), self.weights[here].tolist(), strict=True))

    def of(self, rows: NDArray[np.int64]) -> Slabs:
        """Those of some slices, which hold all of their series and are numbered anew."""
        counts = self.counts[rows]
        ends = np.cumsum(counts)
        taken = np.arange(counts.sum()) + np.repeat((self._ends - self.counts)[rows] - (ends - counts), counts)
        order = np.argsort(rows)
        members = order[np.searchsorted(rows, self.members[taken], sorter=order)]
        return Slabs(self.rule, self.finer[rows], counts, members, self.weights[taken])

    def to_bytes(self) -> bytes:
        """As they travel to another process: some 70 bytes a slab of nine slices."""
        rule = np.array(astuple(self.rule), np.float64)
        arrays = (self.finer.astype(np.uint8), self.counts.astype(np.int32), self.members.astype(np.int32))
        return b"".join(part.tobytes() for part in (rule, *arrays, self.weights.astype(np.float32)))

    @classmethod
    def from_bytes(cls, data: bytes, count: int) -> Slabs:
        """The slabs around so many slices that `to_bytes` was called on."""
        rule, at = SlabRule(*np.frombuffer(data, np.float64, 4).tolist()), 32
        finer, at = np.frombuffer(data, np.uint8, count, at).astype(bool), at + count
        counts, at = np.frombuffer(data, np.int32, count, at).astype(np.int64), at + 4 * count
        total = int(counts.sum())
        members = np.frombuffer(data, np.int32, total, at).astype(np.int64)
        weights = np.frombuffer(data, np.float32, total, at + 4 * total).astype(np.float64)
        return cls(rule, finer, counts, members, weights)


def slabs_around(slices: SeriesGeometry, rule: SlabRule) -> Slabs:
    """The slab around each slice of a series finer than a rule says.

    A slab takes the slice itself and, of each other place within it, the first slice by its rank, if that is of the
    same matrix, pixel spacing (1 %), direction (1 degree) and did not slide within its plane by more than it lies away.
    """
    order = np.lexsort((slices.ranks, slices.places_mm, slices.series))  # places not known are last
    finer = np.zeros(len(order), bool)
    pairs, shares = [np.empty((0, 2), np.int64)], [np.empty(0)]
    for first, last in pairwise(np.flatnonzero(np.diff(slices.series[order], prepend=-2, append=-2))):
        rows = order[first:last]
        finer[rows], found, share = _of_series(slices, rows, rule)
        pairs.append(found)
        shares.append(share)
    by_slab = np.argsort(np.concatenate(pairs)[:, 0], kind="stable")
    centers, members = np.concatenate(pairs)[by_slab].T
    weights = np.concatenate(shares)[by_slab]
    weights /= np.bincount(centers, weights, len(order))[centers]
    weights = weights.astype(np.float32).astype(np.float64)
    return Slabs(rule, finer, np.bincount(centers, minlength=len(order)), members, weights)


def _of_series(
    slices: SeriesGeometry, rows: NDArray[np.int64], rule: SlabRule
) -> tuple[bool, NDArray[np.int64], NDArray[np.float64]]:
    """Whether a series is finer; then each slice with each member of its slab, and their shares."""
    none = False, np.empty((0, 2), np.int64), np.empty(0)
    placed = rows[np.isfinite(slices.places_mm[rows])]
    begins = np.diff(slices.places_mm[placed], prepend=-np.inf) >= SAME_MM
    if slices.series[rows[0]] < 0 or begins.sum() < 2:
        return none
    if not begins.all():  # the first of a place by its rank, wherever it lies within it
        placed = placed[np.lexsort((slices.ranks[placed], np.cumsum(begins)))]
    places_mm = slices.places_mm[placed[begins]]
    step_mm = float(np.median(np.diff(places_mm)))
    if not rule.is_finer(step_mm, known_median(slices.thickness_mm[rows])):
        return none
    pairs = _pairs(placed, begins, places_mm, (rule.thickness_mm + step_mm) / 2)
    pairs = pairs[_alike(slices, *pairs.T)]
    shares = _shares(slices.places_mm[pairs], rule.thickness_mm, step_mm)
    kept = shares > _LEAST_SHARE
    unplaced = np.setdiff1d(rows, placed)
    alone = np.stack([unplaced, unplaced], 1)
    return True, np.concatenate([pairs[kept], alone]), np.concatenate([shares[kept], np.ones(len(alone))])


def known_median(values: NDArray[np.floating[Any]]) -> float:
    """The median of what is finite; NaN of nothing."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else np.nan


def _pairs(
    placed: NDArray[np.int64], begins: NDArray[np.bool_], places_mm: NDArray[np.float64], reach_mm: float
) -> NDArray[np.int64]:
    """Each slice of a series with itself and the first of every other place within reach, `[pairs, 2]`."""
    place = np.cumsum(begins) - 1
    low = np.searchsorted(places_mm, places_mm - reach_mm)[place]
    counts = np.searchsorted(places_mm, places_mm + reach_mm, "right")[place] - low
    center = np.repeat(np.arange(len(placed)), counts)
    other = np.arange(len(center)) - np.repeat(np.cumsum(counts) - counts - low, counts)
    member = np.where(place[center] == other, center, np.flatnonzero(begins)[other])
    return np.stack([placed[center], placed[member]], 1)


def _alike(slices: SeriesGeometry, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether two slices show the same pixels of space, but for their places along the normal."""
    size = (slices.sizes[one] == slices.sizes[other]).all(1)
    known = ~np.isnan(slices.pixel_mm)
    pixel = np.abs(slices.pixel_mm[one] - slices.pixel_mm[other]) <= _PIXEL_SHARE * slices.pixel_mm[one]
    pixel |= ~(known[one] | known[other])
    directed = np.asarray(np.isfinite(slices.normals).all(1), bool)
    away = slices.corners[one] - slices.corners[other]
    along = (away * slices.normals[one]).sum(1)
    slid = np.sqrt(np.maximum((away**2).sum(1) - along**2, 0)) > np.abs(along) + _SLIDE_MM
    turned = (slices.normals[one] * slices.normals[other]).sum(1) < _SAME_COSINE
    direction = np.where(directed[one], directed[other] & ~turned & ~slid, ~directed[other])
    return np.asarray(size & pixel & direction | (one == other), bool)


def _shares(places_mm: NDArray[np.float64], thickness_mm: float, step_mm: float) -> NDArray[np.float64]:
    """Of each slice's extent, what lies inside the slab around another, `[pairs]`."""
    center, place = places_mm.T
    top = np.minimum(place + step_mm / 2, center + thickness_mm / 2)
    bottom = np.maximum(place - step_mm / 2, center - thickness_mm / 2)
    return np.asarray(np.maximum(top - bottom, 0) / step_mm, np.float64)


def mean_slice(center: CTSlice, members: Iterable[tuple[CTSlice, float]]) -> CTSlice:
    """The weighted mean of some slices in HU, float64, with the header of one of them."""
    from ich_ray.ct.kernels import add_scaled

    total, offset_hu, weights = np.zeros(center.stored.shape), 0.0, 0.0
    for ct, weight in members:
        add_scaled(ct.stored, weight * ct.slope, total)
        offset_hu, weights = offset_hu + weight * ct.intercept, weights + weight
    total += offset_hu
    total /= weights
    total.flags.writeable = False
    return replace(center.flagged("slab"), stored=total, slope=1.0, intercept=0.0)


class SlabReader(Generic[Key]):
    """Slices averaged over their slabs, one after another; few slices are held.

    Args:
        read: a slice by its key, see `SliceFile.read`.
        runs: how many slabs go along a series beside each other: of each the slices of one slab are held.
    """

    def __init__(self, read: Callable[[Key], CTSlice], runs: int = 1) -> None:
        self._read, self._runs = read, runs
        self._held: dict[Key, CTSlice | None] = {}  # the last used last

    def slab(self, center: Key, members: Sequence[tuple[Key, float]]) -> CTSlice:
        """The slab around a slice; one that holds no other slice is the slice itself, flagged `no_slab`.

        A member that cannot be read is left out.

        Raises:
            Rejection: the slice itself is not accepted.
        """
        own = self._held.get(center) or self._read(center)
        self._held[center] = own
        parts = [(ct, weight) for key, weight in members if (ct := self._one(key)) is not None]
        parts = [(ct, weight) for ct, weight in parts if ct.stored.shape == own.stored.shape]
        for key in [*self._held][: -self._runs * max(len(members), 1)]:
            del self._held[key]
        return mean_slice(own, parts) if len(parts) > 1 else own.flagged("no_slab")

    def _one(self, key: Key) -> CTSlice | None:
        try:
            found = self._held.pop(key) if key in self._held else self._read(key)
        except (Rejection, MemoryError):
            found = None
        self._held[key] = found
        return found
