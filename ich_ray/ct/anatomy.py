"""Synthetic heads in HU: skull, brain, fluid spaces and decoys, one axial section at a time.

Knows the shape of a normal head and of what is mistaken for blood. Knows nothing of bleeding, labels or DICOM.

Coordinates: `u` to the patient's left and `v` to the back, in mm from the middle of the head; `height` runs from 0 at
the skull base to 1 at the vertex. Arrays are float32. A soft mask is 1 inside, 0 outside and in between where
a pixel holds both tissues (partial volume). All shapes are inventions with plausible sizes, not measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["Calcification", "Canvas", "Head", "HeadSection", "Pixels", "blend", "bump", "capsule", "ellipse", "soft"]

Pixels: TypeAlias = "NDArray[np.float32]"

AIR_HU = -1000.0
FLUID_HU = 8.0
# Nodes of the random fields along each side: every 5 mm, finer than the finest bell.
_NODES = 48


def soft(distance: Pixels, edge_mm: float) -> Pixels:
    """The soft mask of where the signed `distance` in mm is negative, with an edge `edge_mm` wide."""
    mask: Pixels = np.clip(np.float32(0.5) - distance / np.float32(edge_mm), 0, 1)
    return mask


def blend(image: Pixels, mask: Pixels, value: Pixels | float) -> None:
    """Let `value` cover `image`, in place, as far as the soft mask says."""
    image += mask * (value - image)


def bump(height: float, center: float, reach: float) -> float:
    """1 at `center`, 0 beyond `reach`, an ellipse in between: how wide a rounded body is cut at `height`."""
    return float(np.sqrt(max(0.0, 1 - ((height - center) / reach) ** 2)))


def ellipse(
    u: Pixels, v: Pixels, center: tuple[float, float], half_axes: tuple[float, float], tilt: float = 0.0
) -> Pixels:
    """The approximate signed distance in mm to an ellipse."""
    c, s = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
    du, dv = u - np.float32(center[0]), v - np.float32(center[1])
    radius = np.hypot((c * du + s * dv) / np.float32(half_axes[0]), (c * dv - s * du) / np.float32(half_axes[1]))
    return np.asarray((radius - 1) * np.float32(min(half_axes)), np.float32)


def capsule(
    u: Pixels, v: Pixels, start: tuple[float, float], end: tuple[float, float], radii: tuple[float, float]
) -> Pixels:
    """The signed distance in mm to a rod of radius `radii[0]` at `start`, `radii[1]` at `end`."""
    du, dv = np.float32(end[0] - start[0]), np.float32(end[1] - start[1])
    along = np.clip(((u - np.float32(start[0])) * du + (v - np.float32(start[1])) * dv) / (du * du + dv * dv), 0, 1)
    away = np.hypot(u - np.float32(start[0]) - along * du, v - np.float32(start[1]) - along * dv)
    return np.asarray(away - np.float32(radii[0]) - along * np.float32(radii[1] - radii[0]), np.float32)


def _union(distances: Iterable[Pixels]) -> Pixels:
    nearest: Pixels = np.minimum.reduce(list(distances))
    return nearest


@dataclass(frozen=True)
class Calcification:
    """A dense spot that is not blood: above 100 HU and small. `center` is (u, v) in mm."""

    center: tuple[float, float]
    radius_mm: float
    height: float
    hu: float


@dataclass(frozen=True)
class Head:
    """What stays the same over the slices of a patient.

    Attributes:
        turn: in-plane rotation in radians.
        wobble: (order, amplitude, phase) of the deviations of the outline from an egg.
        atrophy: 0 for a full brain, 1 for wide fluid spaces.
        falx_hu, falx_mm: density and thickness of the falx; a dense one is a decoy.
        sinus: (height, HU) of the transverse sinuses, a crescent-shaped mimic of subdural blood.
    """

    fov_mm: float
    turn: float
    offset_mm: tuple[float, float]
    half_axes_mm: tuple[float, float]
    wobble: tuple[tuple[int, float, float], ...]
    skull_mm: float
    skull_hu: float
    scalp_mm: float
    scalp_hu: float
    atrophy: float
    gray_hu: float
    white_hu: float
    falx_hu: float
    falx_mm: float
    sinus: tuple[float, float]
    headrest: bool
    calcifications: tuple[Calcification, ...] = ()

    @classmethod
    def draw(cls, rng: np.random.Generator, dense_falx: bool = False, calcified: bool = False) -> Head:
        """A random normal head."""
        atrophy = float(rng.beta(1.3, 1.8))
        white = float(rng.uniform(26, 31))
        return cls(
            fov_mm=float(rng.uniform(215, 250)),
            turn=float(np.clip(rng.normal(0, 0.06), -0.25, 0.25)),
            offset_mm=(float(rng.normal(0, 3)), float(rng.normal(-6, 4))),
            half_axes_mm=(float(rng.uniform(66, 75)), float(rng.uniform(82, 94))),
            wobble=tuple(
                (order, float(rng.normal(0, 0.03 / order)), float(rng.uniform(0, 2 * np.pi))) for order in (2, 3, 4, 5)
            ),
            skull_mm=float(rng.uniform(4.5, 8.5)),
            skull_hu=float(rng.uniform(1050, 1500)),
            scalp_mm=float(rng.uniform(3, 7)),
            scalp_hu=float(rng.uniform(-70, 35)),
            atrophy=atrophy,
            gray_hu=white + float(rng.uniform(6, 10)),
            white_hu=white,
            falx_hu=float(rng.uniform(68, 88) if dense_falx else rng.uniform(44, 58)),
            falx_mm=float(rng.uniform(2.2, 3.6) if dense_falx else rng.uniform(0.9, 1.8)),
            sinus=(float(rng.uniform(0.14, 0.3)), float(rng.uniform(45, 62))),
            headrest=bool(rng.random() < 0.7),
            calcifications=tuple(_calcifications(rng, calcified)),
        )

    def size_at(self, height: float) -> float:
        """The head's extent at a height, 1 where it is widest (a quarter of the way up)."""
        return float(np.sqrt(1 - ((height - 0.25) / (0.8 if height > 0.25 else 1.1)) ** 2))


def _calcifications(rng: np.random.Generator, many: bool) -> Iterable[Calcification]:
    """Pineal gland and choroid plexus calcify in many people; `many` adds basal ganglia, falx and scattered spots."""
    places = [((0.0, 17.0), 0.4, 0.4), ((17.0, 22.0), 0.5, 0.3), ((-17.0, 22.0), 0.5, 0.3)]
    if many:
        places += [((21.0, -5.0), 0.43, 0.7), ((-21.0, -5.0), 0.43, 0.7), ((0.0, -45.0), 0.7, 0.4)]
        places += [((rng.normal(0, 28), rng.normal(0, 30)), rng.uniform(0.25, 0.8), 0.8) for _ in range(3)]
    for (u, v), height, chance in places:
        center = (float(u + rng.normal(0, 1.5)), float(v + rng.normal(0, 1.5)))
        radius, hu, there = rng.uniform(1.2, 3.2), rng.uniform(130, 420), rng.random() < chance
        if there:
            yield Calcification(center, float(radius), float(height + rng.normal(0, 0.02)), float(hu))


class Canvas:
    """The pixel grid of a patient and all that does not change from slice to slice: arrays `[n, n]`.

    Attributes:
        x, y: mm from the middle of the scanner.
        u, v: head coordinates, a little bent, because no brain is symmetric.
        radius, angle: polar head coordinates, mm and radians; 0 is the patient's left, a quarter turn the back.
        outline: distance of the outer skull from the middle where the head is widest, in each pixel's direction, mm.
        fields: three smooth random images of mean 0 and standard deviation 1: two for the folds, one for texture.
    """

    def __init__(self, head: Head, pixels: int, rng: np.random.Generator) -> None:
        self.head, self.pixels = head, pixels
        self.pixel_mm = head.fov_mm / pixels
        self._axis_mm = ((np.arange(pixels) + 0.5) / pixels - 0.5) * head.fov_mm
        self.x, self.y = (grid.astype(np.float32) for grid in np.meshgrid(self._axis_mm, self._axis_mm))
        x, y = self.x - np.float32(head.offset_mm[0]), self.y - np.float32(head.offset_mm[1])
        c, s = np.float32(np.cos(head.turn)), np.float32(np.sin(head.turn))
        u, v = c * x + s * y, c * y - s * x
        self.radius, self.angle = np.hypot(u, v), np.arctan2(v, u)
        self.outline = self._outline()
        self.u, self.v = (axis + np.float32(2.2) * self._field(rng, 20) for axis in (u, v))
        self.fields = [self._field(rng, scale_mm) for scale_mm in (7.5, 7.5, 14)]

    def _outline(self) -> Pixels:
        width, length = self.head.half_axes_mm
        back = np.sin(self.angle)
        # A head is an egg, wider behind than in front.
        round_mm = 1 / np.hypot(np.cos(self.angle) / (width * (1 + 0.07 * back)), back / length)
        for order, amplitude, phase in self.head.wobble:
            round_mm *= 1 + np.float32(amplitude) * np.cos(order * self.angle + np.float32(phase))
        return np.asarray(round_mm, np.float32)

    def _field(self, rng: np.random.Generator, scale_mm: float) -> Pixels:
        """White noise on coarse nodes under Gaussian bells: smoothed and enlarged at once."""
        nodes_mm = (np.arange(_NODES) / (_NODES - 1) - 0.5) * self.head.fov_mm
        bells = np.exp(-(((self._axis_mm[:, None] - nodes_mm) / scale_mm) ** 2)).astype(np.float32)
        nodes = rng.standard_normal((_NODES, _NODES), np.float32)
        # einsum, not BLAS: waking its threads costs more than this, and bytes must not depend on their number.
        field = np.einsum("ij,kj->ik", np.einsum("ij,jk->ik", bells, nodes), bells)
        return np.asarray((field - field.mean()) / field.std(), np.float32)

    @cached_property
    def background(self) -> Pixels:
        """Air and, for most patients, the headrest; HU `[n, n]`."""
        image = np.full_like(self.x, AIR_HU)
        if self.head.headrest:
            arc = np.abs(np.hypot(self.x, self.y + 25) - 118) - np.float32(1.2)
            blend(image, soft(np.maximum(arc, 30 - self.y), 1.5), 160)
        return image


class HeadSection:
    """One axial cut through a head; arrays are `[p]`.

    They hold the pixels of the head only, a third of the image.

    Attributes:
        where: their positions in the flattened image.
        u, v, side: head coordinates in mm; `side` is the distance from the midline.
        angle, texture: of the canvas, at these pixels.
        depth: mm from the inner surface of the skull, positive inside.
    """

    def __init__(self, canvas: Canvas, height: float) -> None:
        self.canvas, self.head, self.height = canvas, canvas.head, height
        self.size = self.head.size_at(height)
        outside = canvas.radius - np.float32(self.size) * canvas.outline
        self.where = np.flatnonzero(outside < self.head.scalp_mm + 1)
        self.u, self.v, self.angle = self._take(canvas.u), self._take(canvas.v), self._take(canvas.angle)
        self.side = np.abs(self.u)
        self.texture = self._take(canvas.fields[2])
        self._outside = self._take(outside)
        # Towards the vertex the skull is cut at a slant: it looks thicker and its inner edge is smeared.
        slant = max(0.0, height - 0.5) ** 2
        self._skull_mm = np.float32(self.head.skull_mm * (1 + 4 * slant)) * (
            1 + 0.12 * np.sin(2 * self.angle + 9 * self.head.turn)
        )
        self._inner_edge_mm = 1.5 + 22 * slant
        self.depth: Pixels = -self._outside - self._skull_mm

    def _take(self, image: Pixels) -> Pixels:
        return np.take(image, self.where)

    @cached_property
    def ragged(self) -> Pixels:
        """A field for ragged edges, mean 0 and standard deviation 1."""
        return self._take(self.canvas.fields[0])

    @cached_property
    def inside(self) -> Pixels:
        """The soft mask of the skull's inside."""
        return soft(-self.depth, self._inner_edge_mm)

    @cached_property
    def _fold(self) -> Pixels:
        """Distance to the nearest sulcus, about mm. Two fields, mixed by height, so folds move from slice to slice."""
        turn = 9 * self.height
        first, second = (self._take(field) for field in self.canvas.fields[:2])
        return 7 * np.abs(np.float32(np.cos(turn)) * first + np.float32(np.sin(turn)) * second)

    @cached_property
    def _sulcus_mm(self) -> Pixels:
        """Half the width of a sulcus at each depth; negative below its floor."""
        return np.float32(0.9 + 1.5 * self.head.atrophy) * (1 - self.depth / np.float32(13 + 9 * self.head.atrophy))

    @cached_property
    def fluid(self) -> Pixels:
        """The soft mask of the fluid around the brain: sulci, fissures, cisterns.

        It is the space of subarachnoid blood.
        """
        rim = self.depth - np.float32(0.4 + 2.4 * self.head.atrophy)
        spaces = [self._fold - self._sulcus_mm, rim, *self._fissures()]
        return soft(_union(spaces), 1.8)

    def _fissures(self) -> Iterable[Pixels]:
        wide = 0.8 + 1.4 * self.head.atrophy
        middle = self.side - np.float32(wide)
        if self.height > 0.62:
            yield middle
        else:
            yield np.maximum(middle, 34 - np.abs(self.v + 4))
        if sylvian := bump(self.height, 0.38, 0.14):
            radii = (2.2 * wide * sylvian, 1.3 * wide * sylvian)
            yield capsule(self.side, self.v, (52, -16), (35, -6), radii)
            yield capsule(self.side, self.v, (35, -6), (34, 10), (radii[1], 0.5))
        if cistern := bump(self.height, 0.25, 0.08):
            radii = (2.5 * wide * cistern, 1.0 * wide * cistern)
            yield capsule(self.side, self.v, (0, -10), (15, -18), radii)
            yield capsule(self.side, self.v, (0, -10), (13, 2), radii)
            ring = np.abs(np.hypot(self.side, self.v - 6) - 17) - np.float32(1.2 * wide * cistern)
            yield np.maximum(ring, 2 - self.v)

    @cached_property
    def ventricles(self) -> Pixels:
        """The soft mask of the ventricles, which only the middle slices show.

        It is the space of intraventricular blood.
        """
        shapes = list(self._ventricle_shapes())
        return soft(_union(shapes), 2.2) if shapes else np.zeros_like(self.u)

    def _ventricle_shapes(self) -> Iterable[Pixels]:
        wide = 0.75 + 1.0 * self.head.atrophy
        if lateral := wide * bump(self.height, 0.54, 0.19):
            if self.height < 0.58:
                yield capsule(self.side, self.v, (4, -13), (14, -31), (2.5 * lateral, 4.2 * lateral))
                yield capsule(self.side, self.v, (10, 12), (25, 33), (2.8 * lateral, 4.8 * lateral))
            else:
                yield capsule(self.side, self.v, (9, -27), (14, 26), (4.4 * lateral, 5.0 * lateral))
        if third := wide * bump(self.height, 0.38, 0.09):
            yield capsule(self.side, self.v, (0, -5), (0, 13), (1.6 * third, 2.0 * third))
        if fourth := wide * bump(self.height, 0.15, 0.1):
            yield capsule(self.side, self.v, (0, 33), (0, 38), (4.0 * fourth, 2.0 * fourth))

    def brain(self) -> Pixels:
        """Brain, its fluid spaces and the falx, HU; meaningless outside `inside`."""
        head = self.head
        ribbon = np.maximum(soft(self.depth - 6, 3), soft(self._fold - self._sulcus_mm - 3.5, 2.5))
        image = head.white_hu + (head.gray_hu - head.white_hu) * ribbon + np.float32(0.8) * self.texture
        if deep := bump(self.height, 0.44, 0.12):
            nuclei = [((11, -17), (5, 9)), ((25, -5), (6, 15)), ((10, 8), (8, 12))]
            masks = [soft(ellipse(self.side, self.v, at, axes), 3) for at, axes in nuclei]
            blend(image, np.float32(deep) * np.maximum.reduce(masks), head.gray_hu)
        blend(image, 0.9 * self.fluid, FLUID_HU)
        blend(image, self.ventricles, FLUID_HU - 2)
        self._membranes(image)
        # Beam hardening leaves the brain beside the skull a little brighter.
        image += 3 * np.exp(-np.clip(self.depth, 0, None) / 6)
        return image

    def _membranes(self, image: Pixels) -> None:
        head = self.head
        falx = soft(self.side - np.float32(head.falx_mm / 2), 1.2)
        if self.height < 0.66:
            falx *= soft(36 - np.abs(self.v + 2), 4)
        if self.height > 0.2:
            blend(image, falx, head.falx_hu)
        height, hu = head.sinus
        if width := bump(self.height, height, 0.07):
            crescent = np.maximum(self.depth - np.float32(5 * width), np.abs(self.angle - np.float32(np.pi / 2)) - 0.75)
            blend(image, soft(crescent, 2), hu)
        if self.height > 0.3:  # the superior sagittal sinus, at the back of the midline
            triangle = np.maximum(self.depth + 0.9 * self.side - 8, 40 * np.float32(self.size) - self.v)
            blend(image, soft(triangle, 2), hu)

    def head_in_air(self, brain: Pixels) -> Pixels:
        """The whole image `[n, n]`: skull, scalp, air and headrest around `brain`, HU."""
        head = self.head
        image = self._take(self.canvas.background)
        blend(image, soft(self._outside - np.float32(head.scalp_mm), 1.5), head.scalp_hu)
        # Two dense tables with marrow between them.
        marrow = np.clip(1 - np.abs(self._outside / self._skull_mm + 0.5) * 3, 0, 1)
        blend(image, soft(self._outside, 1.5), head.skull_hu * (1 - 0.45 * marrow))
        blend(image, self.inside, brain)
        if self.height < 0.2:
            self._base(image, min(1.0, (0.2 - self.height) / 0.08))
        for spot in head.calcifications:
            if near := bump(self.height, spot.height, 0.06):
                distance = np.hypot(self.u - spot.center[0], self.v - spot.center[1]) - np.float32(
                    spot.radius_mm * near
                )
                blend(image, soft(distance, 1.5) * self.inside, spot.hu)
        whole = self.canvas.background.copy()
        whole.flat[self.where] = image
        return whole

    def _base(self, image: Pixels, much: float) -> None:
        """Petrous bones with their air cells, orbits and sinuses, and the dark band between the dense bones."""
        image -= 9 * much * np.exp(-(((self.v - 8) / 9) ** 2)) * self.inside
        petrous = capsule(self.side, self.v, (60, 18), (16, 0), (11 * much, 4 * much))
        cells = np.where((self.ragged > 0.7) & (self.side > 30), np.float32(-500), 700 + 250 * self.ragged)
        blend(image, soft(petrous, 2) * soft(self._outside + 2, 2), cells)
        # The floor of the frontal lobes: it reaches far back at the sides, less in the middle.
        front = self.v + np.float32((92 - 50 * much) * self.size) - 9 * np.cos(self.side / 14)
        wall = soft(np.abs(front) - 2.5, 2) * soft(self._outside, 1.5)
        face = soft(front, 2) * soft(self._outside + 2, 2)
        orbit = ellipse(self.side, self.v, (27, -68 * self.size), (15, 17))
        blend(image, face, 45 + 20 * self.texture)
        blend(image, soft(np.abs(orbit) - 1, 1.5) * face, 500)
        blend(image, soft(orbit, 1.5) * face, -60)
        blend(image, soft(ellipse(self.side, self.v, (27, -74 * self.size), (11, 11)), 1.5) * face, 15)
        blend(image, soft(ellipse(self.side, self.v, (0, -66 * self.size), (8, 18)), 1.5) * face, -850)
        blend(image, wall, 650)
