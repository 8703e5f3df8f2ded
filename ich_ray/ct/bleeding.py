"""Blood in a synthetic head: the five subtypes, each with its shape, its place and its density.

Knows which pixels of a section are blood. Knows nothing of labels or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.ct.anatomy import HeadSection, Pixels, blend, bump, ellipse, soft

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Bleed", "bleed_into"]

# Where along the head each subtype has its center: only there are the ventricles, the cisterns or enough brain.
_HEIGHTS = {
    "epidural": (0.22, 0.75),
    "intraparenchymal": (0.25, 0.75),
    "intraventricular": (0.4, 0.66),
    "subarachnoid": (0.22, 0.8),
    "subdural": (0.3, 0.88),
}
# Most bleeds are large and dense, so that a small network learns something within its first thousands of images; the
# others are small and hardly denser than the cortex, so that there is something left to learn.
_PLAIN_SHARE = 0.7
_PLAIN, _FAINT = (0.45, 1.0), (0.0, 0.3)
_DENSITY_HU = (55, 86)
# A section smaller than this is not drawn (and not labelled): nobody could call it.
_SMALLEST_MM2 = 60.0


@dataclass(frozen=True)
class Bleed:
    """One haemorrhage, a rounded body that several neighbouring slices cut.

    Attributes:
        height, reach: its middle and half its extent along the head, as fractions of the head's height.
        angle: direction from the middle of the head, radians; 0 is the patient's left, a quarter turn the back.
        center: (u, v) in mm, of blobs.
        length_mm: half its extent along the skull, or its larger half axis, or the radius of the region.
        thickness_mm: its thickness under the skull, or its smaller half axis.
    """

    subtype: str
    height: float
    reach: float
    angle: float
    center: tuple[float, float]
    length_mm: float
    thickness_mm: float
    hu: float

    @classmethod
    def draw(cls, rng: np.random.Generator, subtype: str, heights: Sequence[float]) -> Bleed:
        """A random bleed with its middle in one of the slices at `heights`."""
        low, high = _HEIGHTS[subtype]
        possible = [height for height in heights if low <= height <= high] or [
            min(heights, key=lambda height: abs(height - (low + high) / 2))
        ]
        side = 0.0 if rng.random() < 0.5 else np.pi
        grades = rng.uniform(*(_PLAIN if rng.random() < _PLAIN_SHARE else _FAINT), size=3).tolist()
        length, thickness, hu = (
            low + (high - low) * grade
            for (low, high), grade in zip((*_SIZES_MM[subtype], _DENSITY_HU), grades, strict=True)
        )
        return cls(
            subtype=subtype,
            height=float(rng.choice(possible)),
            reach=float(rng.uniform(0.13, 0.34)),
            angle=float(side + rng.uniform(-0.9, 0.9)),
            center=(float(np.cos(side) * rng.uniform(12, 38)), float(rng.uniform(-35, 35))),
            length_mm=length,
            thickness_mm=thickness,
            hu=hu,
        )

    def shape(self, section: HeadSection, cut: float) -> Pixels:
        """The soft mask of the blood where the body is cut `cut` times as wide as in its middle."""
        return _SHAPES[self.subtype](self, section, cut) * section.inside

    def mask(self, section: HeadSection) -> Pixels | None:
        """The soft mask of the blood in a section, None where there is none."""
        cut = bump(section.height, self.height, self.reach)
        if not cut:
            return None
        mask = self.shape(section, cut)
        area_mm2 = float(mask.sum()) * section.canvas.pixel_mm**2
        # Rounding: the slice in its middle always shows it.
        return mask if area_mm2 >= _SMALLEST_MM2 or cut > 0.999 else None


def bleed_into(image: Pixels, section: HeadSection, bleeds: Sequence[Bleed]) -> set[str]:
    """Draw the bleeds that this section cuts into the brain `image`, in place; return their subtypes."""
    seen = set()
    for bleed in bleeds:
        mask = bleed.mask(section)
        if mask is None:
            continue
        seen.add(bleed.subtype)
        if bleed.subtype == "intraparenchymal":
            halo = soft(_blob(bleed, section, bump(section.height, bleed.height, bleed.reach)) - 5, 6)
            image -= 7 * halo * (1 - section.ventricles)
        # Clots are uneven.
        blend(image, mask, np.float32(bleed.hu) + 2 * section.texture)
    return seen


def _beside(bleed: Bleed, section: HeadSection) -> Pixels:
    """Angle from the middle of the bleed, radians, 0 to pi."""
    turned: Pixels = (section.angle - np.float32(bleed.angle) + np.float32(np.pi)) % np.float32(2 * np.pi)
    return np.asarray(np.abs(turned - np.float32(np.pi)), np.float32)


def _epidural(bleed: Bleed, section: HeadSection, cut: float) -> Pixels:
    """A lens between skull and brain: thick for its length, so it bulges inward although the skull bends outward."""
    along = _beside(bleed, section) * np.float32(65 * section.size / (bleed.length_mm * cut))
    thick: Pixels = np.float32(bleed.thickness_mm * cut) * (1 - along * along)
    return soft(section.depth - thick, 2)


def _subdural(bleed: Bleed, section: HeadSection, cut: float) -> Pixels:
    """A crescent along one hemisphere: thin, long, and never across the midline."""
    along = _beside(bleed, section) * 65 / np.float32(bleed.length_mm * (0.4 + 0.6 * cut))
    thick = np.float32(bleed.thickness_mm * cut) * np.sqrt(np.clip(1 - along * along, 0, 1))
    own_side = np.float32(np.sign(np.cos(bleed.angle))) * section.u
    return soft(np.maximum(section.depth - thick, 3 - own_side), 2)


def _subarachnoid(bleed: Bleed, section: HeadSection, cut: float) -> Pixels:
    """Thin, in the sulci, fissures and cisterns of a region."""
    out = 0.72 * section.size * section.head.half_axes_mm[0]
    center = (out * np.cos(bleed.angle), 1.2 * out * np.sin(bleed.angle))
    radius = np.float32(bleed.length_mm * cut)
    region = soft(np.hypot(section.u - center[0], section.v - center[1]) - radius, 12)
    # Blood widens the spaces it fills; what is only a rim under the skull stays fluid.
    spaces: Pixels = np.clip(2.2 * section.fluid, 0, 1)
    return spaces * region * soft(1.0 - section.depth, 2)


def _intraventricular(bleed: Bleed, section: HeadSection, cut: float) -> Pixels:
    """In the ventricles, sinking to the back of a patient who lies on it."""
    level = np.float32(30 - bleed.length_mm * cut)
    tilt = np.float32(0.25 * np.cos(bleed.angle))
    return section.ventricles * soft(level - section.v - tilt * section.u, 5)


def _blob(bleed: Bleed, section: HeadSection, cut: float) -> Pixels:
    axes = (bleed.length_mm * cut, bleed.thickness_mm * cut)
    return ellipse(section.u, section.v, bleed.center, axes, bleed.angle) + np.float32(2.2) * section.ragged


def _intraparenchymal(bleed: Bleed, section: HeadSection, cut: float) -> Pixels:
    """A ragged blob in the brain."""
    return soft(_blob(bleed, section, cut), 3) * soft(4 - section.depth, 2)


_SHAPES: dict[str, Callable[[Bleed, HeadSection, float], Pixels]] = {
    "epidural": _epidural,
    "intraparenchymal": _intraparenchymal,
    "intraventricular": _intraventricular,
    "subarachnoid": _subarachnoid,
    "subdural": _subdural,
}
# Half length and thickness from the faintest to the plainest, see Bleed.
_SIZES_MM = {
    "epidural": ((16, 42), (8, 28)),
    "intraparenchymal": ((6, 28), (5, 22)),
    "intraventricular": ((8, 60), (1, 2)),
    "subarachnoid": ((18, 50), (1, 2)),
    "subdural": ((45, 95), (3.5, 15)),
}
