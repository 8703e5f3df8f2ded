"""Average thin series in HU: around each slice a slab as thick as slices that a network knows.

A slab of thickness T around a slice at c takes of each slice at p, in a series of median step s, the share of its
extent that lies inside: w = (min(p + s/2, c + T/2) - max(p - s/2, c - T/2)) / s. The mean is over the sum of w, so at
ends and gaps over what is there. Knows places and words of slices; no files, windows or labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from ich_ray.errors import Rejection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from ich_ray.ct.dicom import CTSlice

__all__ = ["SAME_MM", "SeriesGeometry", "SlabReader", "SlabRule", "Slabs", "mean_slice", "slabs_around"]

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
    """

    thickness_mm: float
    spacing_mm: float

    def is_finer(self, step_mm: float, thickness_mm: float) -> bool:
        """Whether a series is finer than half of this, by its median step and its thickness, if known."""
        within = self.thickness_mm * _THINNEST <= step_mm < self.spacing_mm * _FINER
        return within and not thickness_mm >= self.thickness_mm * _FINER


@dataclass(frozen=True)
class SeriesGeometry:
    """How slices lie, as arrays `[n]`; NaN where a header does not say.

    Attributes:
        series: a number, -1 without one.
        places_mm: along the normal.
        corners, normals: ImagePositionPatient and the unit normal, `[n, 3]`.
        sizes: rows and columns, `[n, 2]`.
        pixel_mm: the mean of both spacings.
        names: decide which of the slices at one place is taken by the slabs around others: the first.
    """

    series: NDArray[np.int64]
    places_mm: NDArray[np.float64]
    thickness_mm: NDArray[np.float64]
    corners: NDArray[np.float64]
    normals: NDArray[np.float64]
    sizes: NDArray[np.int64]
    pixel_mm: NDArray[np.float64]
    names: NDArray[np.object_]


@dataclass(frozen=True)
class Slabs:
    """The slab around each slice: one after the other, as they would be in a sparse matrix.

    Attributes:
        finer: whether it is of a series that is averaged, bool `[n]`; such a slice may still be alone, where its slab
            holds no other.
        starts: where the members of each slab begin, and where the last end, `[n + 1]`.
        members, weights: from the lowest place to the highest; the weights of a slab have the sum 1.
        order: all slices, those of a series by their places, as they are best read.
    """

    finer: NDArray[np.bool_]
    starts: NDArray[np.int64]
    members: NDArray[np.int64]
    weights: NDArray[np.float64]
    order: NDArray[np.int64]

    def around(self, row: int) -> list[tuple[int, float]]:
        """The members of a slab with their weights."""
        here = slice(self.starts[row], self.starts[row + 1])
        return list(zip(self.members[here].tolist(), self.weights[here].tolist(), strict=True))


def slabs_around(slices: SeriesGeometry, rule: SlabRule) -> Slabs:
    """The slab around each slice of a series finer than half of a rule, and of others the slice alone.

    A slab takes the slice itself and, of each other place within it, the first slice by its name, if that is of the
    same matrix, pixel spacing (1 %), direction (1 degree) and did not slide within its plane by more than it lies away.
    """
    order = np.lexsort((slices.names.astype(str), slices.places_mm, slices.series))  # places not known are last
    finer = np.zeros(len(order), bool)
    pairs, shares = [np.empty((0, 2), np.int64)], [np.empty(0)]
    ends = np.flatnonzero(np.diff(slices.series[order], prepend=-2, append=-2))
    for first, last in pairwise(ends):
        rows = order[first:last]
        finer[rows], found, share = _of_series(slices, rows, rule)
        pairs.append(found)
        shares.append(share)
    return Slabs(finer, *_compressed(np.concatenate(pairs), np.concatenate(shares), len(order)), order)


def _of_series(
    slices: SeriesGeometry, rows: NDArray[np.int64], rule: SlabRule
) -> tuple[bool, NDArray[np.int64], NDArray[np.float64]]:
    """Whether a series is finer; then each slice with each member of its slab, and their shares."""
    none = False, np.empty((0, 2), np.int64), np.empty(0)
    placed = rows[np.isfinite(slices.places_mm[rows])]
    begins = np.diff(slices.places_mm[placed], prepend=-np.inf) >= SAME_MM
    if slices.series[rows[0]] < 0 or begins.sum() < 2:
        return none
    if not begins.all():  # the first of a place by its name, wherever it lies within it
        placed = placed[np.lexsort((slices.names[placed].astype(str), np.cumsum(begins)))]
    places_mm = slices.places_mm[placed[begins]]
    step_mm = float(np.median(np.diff(places_mm)))
    if not rule.is_finer(step_mm, _median(slices.thickness_mm[rows])):
        return none
    pairs = _pairs(placed, begins, places_mm, (rule.thickness_mm + step_mm) / 2)
    pairs = pairs[_alike(slices, *pairs.T)]
    shares = _shares(slices.places_mm[pairs], rule.thickness_mm, step_mm)
    kept = shares > _LEAST_SHARE
    return True, pairs[kept], shares[kept]


def _compressed(
    pairs: NDArray[np.int64], shares: NDArray[np.float64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Where each slab begins, its members and their weights; slices without a pair are alone."""
    alone = np.setdiff1d(np.arange(count), pairs[:, 0])
    pairs = np.concatenate([pairs, np.stack([alone, alone], 1)])
    shares = np.concatenate([shares, np.ones(len(alone))])
    by_slab = np.argsort(pairs[:, 0], kind="stable")
    centers, members = pairs[by_slab].T
    weights = shares[by_slab] / np.bincount(centers, shares[by_slab], count)[centers]
    return np.searchsorted(centers, np.arange(count + 1)), members, weights


def _median(values: NDArray[np.float64]) -> float:
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
    directed = np.isfinite(slices.normals).all(1)
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
    return replace(_flagged(center, "slab"), stored=total, slope=1.0, intercept=0.0)


def _flagged(ct: CTSlice, flag: str) -> CTSlice:
    return replace(ct, header=replace(ct.header, flags=tuple(sorted({*ct.header.flags, flag}))))


class SlabReader(Generic[Key]):
    """Slices averaged over their slabs, one after another; what is held are the slices of one slab.

    Args:
        read: a slice by its key, see `SliceFile.read`.
    """

    def __init__(self, read: Callable[[Key], CTSlice]) -> None:
        self._read = read
        self._held: dict[Key, CTSlice | None] = {}

    def slab(self, center: Key, members: Sequence[tuple[Key, float]]) -> CTSlice:
        """The slab around a slice; one that holds no other slice is the slice itself, flagged `no_slab`.

        A member that cannot be read is left out.

        Raises:
            Rejection: the slice itself is not accepted.
        """
        weights = dict(members)
        self._held = {key: ct for key, ct in self._held.items() if key in weights}
        own = self._held.get(center) or self._read(center)
        self._held[center] = own
        read = [(ct, weight) for key, weight in members if (ct := self._one(key)) is not None]
        parts = [(ct, weight) for ct, weight in read if ct.stored.shape == own.stored.shape]
        return mean_slice(own, parts) if len(parts) > 1 else _flagged(own, "no_slab")

    def _one(self, key: Key) -> CTSlice | None:
        if key not in self._held:
            try:
                self._held[key] = self._read(key)
            except Rejection:
                self._held[key] = None
        return self._held[key]
