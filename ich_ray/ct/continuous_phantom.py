"""Synthetic head-CT series of contiguous slices: bleeding and its mimics continue in neighbors.

What phantom.py lacks: lesions of lesions.py cut by 25 to 35 slabs of 5 mm, bone that only the neighbors of a slice tell
from blood, heads that differ in size, place, turn and pixel spacing, positions along a normal that a tilted gantry
turns. It proves that a part of a detector works, not what the part is worth on patients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.ct.anatomy import Canvas, Head, HeadSection
from ich_ray.ct.lesions import BoneEdge, Slab, draw_bone_edge, draw_lesion, lesions_into
from ich_ray.ct.phantom_files import PhantomFiles, SeriesHeader, Storage, check_ranges, scrambled, write_series
from ich_ray.ct.scanner_noise import ScannerNoise, doubled, drawn_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ich_ray.ct.anatomy import Pixels
    from ich_ray.ct.bleeding import Bleed
    from ich_ray.storage import Location

__all__ = ["write_continuous_phantom"]

# Of every ten patients in a row four bleed, whatever their number. RSNA: 41 % of the studies.
_BLOCK, _BLEEDING = 10, 4
# The share of the bleeding patients who have each subtype, about as among the positive slices of RSNA.
_SHARES = {
    "epidural": 0.03,
    "intraparenchymal": 0.42,
    "intraventricular": 0.28,
    "subarachnoid": 0.36,
    "subdural": 0.32,
}
_SECOND_OF_A_KIND = 0.2
# Of bone: about as many slices as bleed there. More make the task harder for a network that sees one slice.
_EDGES_A_HEAD = 2.0
_THICKNESS_MM = 5
_SPACINGS_MM = (5.0, 5.0, 5.0, 4.75, 5.25)
_HIGHEST = 1.04  # Where the skull closes, as a fraction of the head's height.


@dataclass(frozen=True)
class Geometry:
    """How the slices of a series lie in space.

    Attributes:
        heights: of the slices' middles, from the skull base up, as fractions of the head's height.
        height_mm: of the head.
        table_mm: position along the normal of height 0.
        tilt: of the gantry about the patient's left-right axis, radians.
        downward: slices are numbered from the vertex down.
    """

    heights: tuple[float, ...]
    height_mm: float
    table_mm: float
    tilt: float
    downward: bool

    @classmethod
    def draw(cls, rng: np.random.Generator, height_mm: float) -> Geometry:
        spacing = float(rng.choice(_SPACINGS_MM)) / height_mm
        first = float(rng.uniform(-0.02, 0.06))
        count = int((_HIGHEST - first) / spacing) + 1
        return cls(
            heights=tuple(first + spacing * index for index in range(count)),
            height_mm=height_mm,
            table_mm=float(rng.uniform(-300, 300)),
            tilt=float(np.radians(rng.uniform(4, 20)) * rng.choice([-1, 1]) if rng.random() < 0.3 else 0.0),
            downward=bool(rng.random() < 0.5),
        )

    @property
    def thickness(self) -> float:
        """Of a slice, as a fraction of the head's height."""
        return _THICKNESS_MM / self.height_mm

    def orientation(self) -> tuple[str, ...]:
        """ImageOrientationPatient: rows point to the patient's left, columns to the back."""
        return ("1", "0", "0", "0", f"{np.cos(self.tilt):.6f}", f"{np.sin(self.tilt):.6f}")

    def position(self, index: int, fov_mm: float) -> tuple[str, ...]:
        """ImagePositionPatient (PS3.3 C.7.6.2.1.1).

        The table follows the normal, so the head stays in the middle of a tilted series too.
        """
        c, s = np.cos(self.tilt), np.sin(self.tilt)
        along = self.table_mm + self.height_mm * self.heights[index]
        corner = -fov_mm / 2
        return tuple(f"{value:.4f}" for value in (corner, c * corner - s * along, s * corner + c * along))

    def number(self, index: int) -> int:
        """InstanceNumber."""
        return len(self.heights) - index if self.downward else index + 1


@dataclass(frozen=True)
class _Patient:
    """One synthetic patient with one series."""

    number: int
    seed: int
    head: Head
    geometry: Geometry
    lesions: tuple[Bleed, ...]
    edges: tuple[BoneEdge, ...]
    noise_hu: float
    sharpness_per_mm: float
    storage: Storage

    @classmethod
    def draw(cls, number: int, seed: int) -> _Patient:
        rng = np.random.default_rng([seed, number, 3])
        head, scale = _head(rng)
        geometry = Geometry.draw(rng, float(scale * rng.uniform(130, 155)))
        subtypes = _subtypes(rng) if _bleeds(number, seed) else []
        edges = (
            draw_bone_edge(rng, head, geometry.height_mm, geometry.heights, geometry.thickness)
            for _ in range(rng.poisson(_EDGES_A_HEAD))
        )
        return cls(
            number=number,
            seed=seed,
            head=head,
            geometry=geometry,
            lesions=tuple(draw_lesion(rng, subtype, head, geometry.height_mm) for subtype in subtypes),
            edges=tuple(edges),  # are drawn here, after the lesions
            noise_hu=float(rng.uniform(3, 6)),
            sharpness_per_mm=float(rng.uniform(0.3, 0.48)),
            storage=Storage.draw(rng),
        )

    def names(self) -> list[str]:
        """The files of the series; their order says nothing of the slices' order."""
        return [f"ID_{self._scrambled('file', index, 36):09x}" for index in range(len(self.geometry.heights))]

    def _scrambled(self, kind: str, index: int, bits: int) -> int:
        return scrambled(f"continuous {kind}", 64 * self.number + index, self.seed, bits)

    def images(self, size: int) -> Iterator[tuple[Pixels, set[str]]]:
        """HU `[size, size]` and the subtypes seen, from the skull base up."""
        rng = np.random.default_rng([self.seed, self.number, 4])
        canvas = Canvas(self.head, drawn_size(size), rng)
        noise = ScannerNoise.draw(rng, size, self.head.fov_mm, self.noise_hu, self.sharpness_per_mm)
        for height in self.geometry.heights:
            slab = Slab(HeadSection(canvas, height), self.geometry.thickness)
            brain = slab.section.brain()
            for edge in self.edges:
                edge.draw_into(brain, slab)
            seen = lesions_into(brain, slab, self.lesions)
            image = slab.section.head_in_air(brain)
            if canvas.pixels != size:
                image = doubled(image)
            noise.add(image, rng)
            yield image, seen

    def files(self, size: int) -> Iterator[tuple[str, bytes, set[str]]]:
        """SOPInstanceUID, DICOM file and subtypes seen of every slice."""
        shared = SeriesHeader(
            patient=f"ID_{self._scrambled('patient', 0, 32):08x}",
            study=_uid(self._scrambled("study", 0, 62)),
            series=_uid(self._scrambled("series", 0, 62)),
            frame=_uid(self._scrambled("frame", 0, 62)),
            storage=self.storage,
            fov_mm=self.head.fov_mm,
            thickness_mm=str(_THICKNESS_MM),
            orientation=self.geometry.orientation(),
        )
        header = shared.dataset(size)
        for index, (image, seen) in enumerate(self.images(size)):
            uid = _uid(self._scrambled("slice", index, 62))
            position = self.geometry.position(index, self.head.fov_mm)
            yield uid, shared.encode(header, image, (uid, uid), self.geometry.number(index), position), seen


def _head(rng: np.random.Generator) -> tuple[Head, float]:
    """A head and its size: of more various sizes, places and turns than `Head.draw` gives."""
    head = Head.draw(rng, dense_falx=bool(rng.random() < 0.15), calcified=bool(rng.random() < 0.25))
    scale = float(rng.uniform(0.88, 1.08))
    return replace(
        head,
        fov_mm=float(rng.uniform(225, 290)),
        turn=float(np.clip(rng.normal(0, 0.15), -0.45, 0.45)),
        offset_mm=(float(rng.normal(0, 7)), float(rng.normal(-6, 7))),
        half_axes_mm=(scale * head.half_axes_mm[0], scale * head.half_axes_mm[1]),
    ), scale


def _bleeds(number: int, seed: int) -> bool:
    block, place = divmod(number, _BLOCK)
    return bool(np.random.default_rng([seed, block, 5]).permutation(_BLOCK)[place] < _BLEEDING)


def _subtypes(rng: np.random.Generator) -> list[str]:
    """The subtype of each lesion of a patient who bleeds."""
    chosen: list[str] = []
    while not chosen:
        chosen = [subtype for subtype, share in _SHARES.items() if rng.random() < share]
    return [subtype for subtype in chosen for _ in range(1 + int(rng.random() < _SECOND_OF_A_KIND))]


def _uid(number: int) -> str:
    return f"2.25.{number}"


def write_continuous_phantom(folder: Location, patients: int, seed: int, size: int = 512) -> PhantomFiles:
    """Write synthetic series of 25 to 35 slices as DICOM files with labels.

    The same arguments give the same bytes, and patient i is the same whatever `patients` is. Four in ten patients
    bleed, and about one slice in six is positive.

    Args:
        folder: gets `stage_2_train/ID_xxxxxxxxx.dcm` and `stage_2_train.csv`; the table is written last, and its slices
            have the names that the files hold as SOPInstanceUID.
        patients: how many.
        seed: of everything.
        size: rows and columns.

    Raises:
        ConfigError: an argument out of range, or `folder` holds other images or a label table or cannot be written.
    """
    check_ranges(("patients", patients, 1, 100_000), ("seed", seed, 0, 2**63 - 1), ("size", size, 64, 1024))
    return write_series(folder, [_Patient.draw(number, seed) for number in range(patients)], size)
