"""Synthetic head-CT patients written as DICOM with a label table, in the layout of the RSNA 2019 set.

A few slices of every head, far from each other; continuous_phantom.py has whole heads. For demos and tests: no real
patient is in it, and nothing measured on it says anything about real ones. Knows who bleeds and what the scanner adds
to the anatomy (noise, motion). The shapes themselves are in anatomy.py and bleeding.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.ct.anatomy import Canvas, Head, HeadSection, Pixels
from ich_ray.ct.bleeding import Bleed, bleed_into
from ich_ray.ct.phantom_files import (
    FORMATS,
    WINDOW_TAGS,
    PhantomFiles,
    SeriesHeader,
    Storage,
    check_ranges,
    scrambled,
    write_series,
)
from ich_ray.ct.scanner_noise import ScannerNoise, doubled, drawn_size
from ich_ray.vocabulary import SUBTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ich_ray.storage import Location

__all__ = ["write_phantom"]

# Of every ten patients in a row four bleed: the share stays steady however few patients there are, and what patient i
# is does not depend on how many follow.
_BLOCK = 10
_BLEEDING = 4
_DECOYS = ("none", "calcification", "motion", "dense_falx", "none", "calcification")
_SECOND_BLEED = 0.3
_ALSO_MOVING = 0.08  # whatever else they have
_HEIGHT_MM = 125  # Of a head, from the skull base to the vertex.
_MOST_SLICES = 62


@dataclass(frozen=True)
class _Patient:
    """One synthetic patient: who they are, what they have, and how the scanner stored them."""

    number: int
    seed: int
    head: Head
    heights: tuple[float, ...]
    bleeds: tuple[Bleed, ...]
    moving: tuple[int, ...]
    noise_hu: float
    sharpness_per_mm: float
    signed: bool
    syntax: str
    padded: bool
    window: tuple[str | list[str], str | list[str]]

    @classmethod
    def draw(cls, number: int, seed: int, slices: int) -> _Patient:
        subtype, decoy = _diagnosis(number, seed)
        rng = np.random.default_rng([seed, number])
        head = Head.draw(rng, dense_falx=decoy == "dense_falx", calcified=decoy == "calcification")
        count = max(1, slices + int(rng.integers(-2, 3)))
        heights = np.linspace(rng.uniform(0.04, 0.14), rng.uniform(0.84, 0.94), count).tolist()
        subtypes = [subtype] if subtype else []
        if subtype and rng.random() < _SECOND_BLEED:
            subtypes.append(str(rng.choice([other for other in SUBTYPES if other != subtype])))
        signed, syntax, _ = FORMATS[rng.choice(len(FORMATS), p=[share for *_, share in FORMATS])]
        moves = decoy == "motion" or rng.random() < _ALSO_MOVING
        moving = rng.choice(count, min(count, 3), replace=False) if moves else np.empty(0, int)
        return cls(
            number=number,
            seed=seed,
            head=head,
            heights=tuple(heights),
            bleeds=tuple(Bleed.draw(rng, each, heights) for each in subtypes),
            moving=tuple(int(index) for index in moving),
            noise_hu=float(rng.uniform(3, 6)),
            sharpness_per_mm=float(rng.uniform(0.3, 0.48)),
            signed=signed,
            syntax=syntax,
            padded=bool(signed and rng.random() < 0.6),
            window=WINDOW_TAGS[rng.integers(len(WINDOW_TAGS))],
        )

    def slice_id(self, index: int) -> str:
        return _identifier("slice", 64 * self.number + index, self.seed, 9)

    def names(self) -> list[str]:
        """The identifiers of all slices, which are their files' names too."""
        return [self.slice_id(index) for index in range(len(self.heights))]

    def images(self, size: int) -> Iterator[tuple[Pixels, set[str]]]:
        """HU `[size, size]` and the subtypes seen, from the skull base up."""
        rng = np.random.default_rng([self.seed, self.number, 2])
        canvas = Canvas(self.head, drawn_size(size), rng)
        noise = ScannerNoise.draw(rng, size, self.head.fov_mm, self.noise_hu, self.sharpness_per_mm)
        for index, height in enumerate(self.heights):
            section = HeadSection(canvas, height)
            brain = section.brain()
            seen = bleed_into(brain, section, self.bleeds)
            image = section.head_in_air(brain)
            if index in self.moving:
                image = _moved(image, canvas, rng)
            if canvas.pixels != size:
                image = doubled(image)
            noise.add(image, rng)
            yield image, seen

    def files(self, size: int) -> Iterator[tuple[str, bytes, set[str]]]:
        """Identifier, DICOM file and subtypes seen of every slice."""
        study, series, frame = (_identifier(kind, self.number, self.seed, 10) for kind in ("study", "series", "frame"))
        storage = Storage(self.signed, self.syntax, self.padded, self.window)
        patient = _identifier("patient", self.number, self.seed, 8)
        shared = SeriesHeader(patient, study, series, frame, storage, self.head.fov_mm)
        header, corner = shared.dataset(size), f"{-self.head.fov_mm / 2:.4f}"
        for index, (image, seen) in enumerate(self.images(size)):
            name = self.slice_id(index)
            position = (corner, corner, f"{_HEIGHT_MM * self.heights[index]:.4f}")
            # As in RSNA a proper UID stays in the meta header, and differs from the ID_... of the data set.
            uids = (name, f"2.25.{int(name[3:], 16)}")
            yield name, shared.encode(header, image, uids, index + 1, position), seen


def write_phantom(folder: Location, patients: int, seed: int, slices: int = 8, size: int = 512) -> PhantomFiles:
    """Write synthetic patients as DICOM files with labels; the same arguments give the same bytes.

    Four in ten patients bleed, with one or two of the five subtypes, each in some neighbouring slices; of the others
    most have something that looks like blood. Patient i is the same whatever `patients` is.

    Args:
        folder: gets `stage_2_train/ID_xxxxxxxxx.dcm` and `stage_2_train.csv`; the table is written last.
        patients: how many.
        seed: of everything.
        slices: slices a patient on average; each has up to two more or fewer.
        size: rows and columns; RSNA has 512, and 256 takes a quarter of the space.

    Raises:
        ConfigError: an argument out of range, or `folder` holds other images or a label table or cannot be written.
    """
    check_ranges(
        ("patients", patients, 1, 100_000),
        ("seed", seed, 0, 2**63 - 1),
        ("slices", slices, 1, _MOST_SLICES),
        ("size", size, 64, 1024),
    )
    return write_series(folder, [_Patient.draw(number, seed, slices) for number in range(patients)], size)


def _diagnosis(number: int, seed: int) -> tuple[str | None, str]:
    """The main subtype of a patient who bleeds, or the decoy of one who does not."""
    block, place = divmod(number, _BLOCK)
    rank = int(np.random.default_rng([seed, block, 1]).permutation(_BLOCK)[place])
    if rank < _BLEEDING:
        return SUBTYPES[(_BLEEDING * block + rank) % len(SUBTYPES)], "none"
    return None, _DECOYS[rank - _BLEEDING]


def _identifier(kind: str, number: int, seed: int, digits: int) -> str:
    """`ID_` and hexadecimal digits, as in RSNA: scrambled, and different for different numbers."""
    return f"ID_{scrambled(kind, number, seed, 4 * digits):0{digits}x}"


def _moved(image: Pixels, canvas: Canvas, rng: np.random.Generator) -> Pixels:
    """A patient who moved during the rotation: displaced copies and streaks over the head."""
    blurred = 0.5 * image
    for weight in (0.3, 0.2):
        blurred += np.float32(weight) * np.roll(image, rng.integers(-4, 5, 2), (0, 1))
    direction, wave_mm, strength = rng.uniform(0, np.pi), rng.uniform(9, 25), rng.uniform(5, 14)
    across = np.float32(np.cos(direction)) * canvas.x + np.float32(np.sin(direction)) * canvas.y
    # Bent by a smooth field: nothing that moves leaves straight and even stripes.
    bent = across * np.float32(2 * np.pi / wave_mm) + 2 * canvas.fields[2]
    streaks = np.cos(bent) * np.exp(-((canvas.radius / 70) ** 2))
    return np.asarray(blurred + np.float32(strength) * streaks, np.float32)
