"""Lesions that continue from slice to slice, and bone that looks like blood in a single one.

A slice is a slab: it shows the mean over its thickness. A lesion is a body of bleeding.py cut at several levels of the
slab. Bone whose surface enters a slab by a few tenths of a millimeter gives the mean density of blood there
(partial volume), full bone in the slab on one side of it and nothing in the slab on the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.ct.anatomy import blend, bump
from ich_ray.ct.bleeding import Bleed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ich_ray.ct.anatomy import Head, HeadSection, Pixels

__all__ = ["BoneEdge", "Slab", "draw_bone_edge", "draw_lesion", "filling", "is_labelled", "lesions_into"]

_LEVELS = 5
_TISSUE_HU = 33.0  # Of what bone shares a slab with.
# The rule by which a slice is positive: this much area filled to this part of the slab's thickness. The thin caps at
# both ends of a lesion stay negative although they are drawn, as with readers who look at one slice.
_LABELLED_MM2, _LABELLED_FILLING = 60.0, 0.5
# Where the middle of a lesion may lie along the head; half its extent along the head, half its length and its
# thickness, in mm. See Bleed for what these are for each shape.
_LOOKS: Mapping[str, tuple[tuple[float, float], ...]] = {
    "epidural": ((0.15, 0.9), (9, 24), (16, 40), (7, 22)),
    "intraparenchymal": ((0.12, 0.95), (6, 25), (6, 24), (5, 18)),
    "intraventricular": ((0.42, 0.62), (8, 22), (8, 55), (1, 2)),
    "subarachnoid": ((0.2, 0.9), (8, 27), (18, 46), (1, 2)),
    "subdural": ((0.2, 0.95), (10, 34), (40, 90), (3, 12)),
}
_BLOOD_HU = (52.0, 82.0)
# Bone near the skull base lies below its edge, bone near the vertex above.
_ZONES = {-1: (0.14, 0.34), 1: (0.7, 0.95)}
_EDGES = ("intraparenchymal", "intraparenchymal", "epidural", "subdural")  # the looks of bone
_BONE_HU = (550.0, 950.0)
_BONE_MM = (9.0, 14.0)


@dataclass(frozen=True)
class Slab:
    """A slice: the section in its middle, and its thickness as a fraction of the head's height."""

    section: HeadSection
    thickness: float

    def share(self, low: float, high: float) -> float:
        """The part of the slab between two heights."""
        bottom = self.section.height - self.thickness / 2
        return max(0.0, min(high, bottom + self.thickness) - max(low, bottom)) / self.thickness


@dataclass(frozen=True)
class BoneEdge:
    """A ridge of bone with a flat surface.

    Attributes:
        shape: its outline, and the HU that the slab shows which its surface enters.
        cut: see `Bleed.shape`, at the surface.
        low, high: its extent along the head; one of them is the surface.
        side: -1 where the bone lies below its surface, 1 above.
    """

    shape: Bleed
    cut: float
    low: float
    high: float
    side: int
    hu: float

    def draw_into(self, image: Pixels, slab: Slab) -> None:
        """Draw the mean of bone and tissue over the slab into the brain `image`, in place."""
        if share := slab.share(self.low, self.high):
            mask = self.shape.shape(slab.section, self.cut if share < 0.5 else 1.0)
            # Uneven like a clot.
            blend(image, mask, np.float32(_TISSUE_HU + share * (self.hu - _TISSUE_HU)) + 2 * slab.section.texture)


def draw_lesion(rng: np.random.Generator, subtype: str, head: Head, height_mm: float) -> Bleed:
    """A random lesion in a head that is `height_mm` high."""
    (low, high), extents, lengths, thicknesses = _LOOKS[subtype]
    height, grade = float(rng.uniform(low, high)), rng.uniform()
    # What is long is thick, roughly.
    grades = np.clip(grade + rng.uniform(-0.25, 0.25, 3), 0, 1)
    extent, length, thickness = (
        low + (high - low) * grade
        for (low, high), grade in zip((extents, lengths, thicknesses), grades.tolist(), strict=True)
    )
    side = 1.0 if rng.random() < 0.5 else -1.0
    wide, long = (axis * head.size_at(height) for axis in head.half_axes_mm)
    return Bleed(
        subtype=subtype,
        height=height,
        reach=extent / height_mm,
        angle=float((0 if side > 0 else np.pi) + rng.uniform(-0.9, 0.9)),
        center=(float(side * rng.uniform(0.15, 0.6) * wide), float(rng.uniform(-0.5, 0.5) * long)),
        length_mm=length,
        thickness_mm=thickness,
        hu=float(rng.uniform(*_BLOOD_HU)),
    )


def draw_bone_edge(
    rng: np.random.Generator, head: Head, height_mm: float, heights: Sequence[float], thickness: float
) -> BoneEdge:
    """Bone at the skull base or the vertex whose surface enters one of the slabs at `heights`.

    It enters so far that the slab shows a density drawn as that of blood.
    """
    side = -1 if rng.random() < 0.5 else 1
    first, last = _ZONES[side]
    height = float(rng.choice([height for height in heights if first <= height <= last]))
    look = draw_lesion(rng, str(rng.choice(_EDGES)), head, height_mm)
    bone, depth = float(rng.uniform(*_BONE_HU)), float(rng.uniform(*_BONE_MM)) / height_mm
    size = head.size_at(height) / head.size_at(look.height)
    shape = replace(look, height=height, center=(look.center[0] * size, look.center[1] * size))
    surface = height + side * thickness * (0.5 - (shape.hu - _TISSUE_HU) / (bone - _TISSUE_HU))
    # A lesion is cut anywhere between its middle and its end: so does this look.
    cut = bump(float(rng.uniform(0, 0.9)), 0, 1)
    low, high = sorted((surface, surface + side * depth))
    return BoneEdge(shape, cut, low, high, side, bone)


def filling(lesion: Bleed, slab: Slab) -> Pixels | None:
    """The part of the slab's thickness that the lesion fills in each pixel, None for none at all."""
    levels = slab.section.height + slab.thickness * ((np.arange(_LEVELS) + 0.5) / _LEVELS - 0.5)
    cuts = [cut for level in levels.tolist() if (cut := bump(level, lesion.height, lesion.reach))]
    if not cuts:
        return None
    filled = sum((lesion.shape(slab.section, cut) for cut in cuts[1:]), lesion.shape(slab.section, cuts[0]))
    return np.asarray(filled / np.float32(_LEVELS), np.float32)


def is_labelled(filled: Pixels, pixel_mm: float) -> bool:
    """Whether a slice with this `filling` is positive: 60 mm2 are filled to half of the thickness."""
    return float((filled >= _LABELLED_FILLING).sum()) * pixel_mm**2 >= _LABELLED_MM2


def lesions_into(image: Pixels, slab: Slab, lesions: Sequence[Bleed]) -> set[str]:
    """Draw the lesions into the brain `image`, in place; return the subtypes that are positive."""
    seen = set()
    for lesion in lesions:
        filled = filling(lesion, slab)
        if filled is None:
            continue
        blend(image, filled, np.float32(lesion.hu) + 2 * slab.section.texture)
        if is_labelled(filled, slab.section.canvas.pixel_mm):
            seen.add(lesion.subtype)
    return seen
