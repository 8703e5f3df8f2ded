"""Synthetic head-CT patients written as DICOM with a label table, in the layout of the RSNA 2019 set.

For demos and tests: no real patient is in it, and nothing measured on it says anything about real ones. Knows who
bleeds, what the scanner adds to the anatomy (noise, motion, a round field of view) and how the files look. The shapes
themselves are in anatomy.py and bleeding.py.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydicom import config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from scipy import fft

from ich_ray.ct.anatomy import Canvas, Head, HeadSection, Pixels
from ich_ray.ct.bleeding import Bleed, bleed_into
from ich_ray.errors import ConfigError
from ich_ray.progress import bar
from ich_ray.storage import Location, check_folder, locate, write_bytes
from ich_ray.vocabulary import SUBTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from upath import UPath

__all__ = ["PhantomFiles", "write_phantom"]

# Of every ten patients in a row four bleed: the share stays steady however few patients there are, and what patient i
# is does not depend on how many follow.
_BLOCK = 10
_BLEEDING = 4
_DECOYS = ("none", "calcification", "motion", "dense_falx", "none", "calcification")
_SECOND_BLEED = 0.3
_ALSO_MOVING = 0.08  # whatever else they have
_DRAWN_PIXELS = 256  # Larger images are drawn at half their size: anatomy has no detail finer than a pixel of these.
_HEIGHT_MM = 125  # Of a head, from the skull base to the vertex.
_SHIFTS = 64  # Noise is drawn this many pixels larger than a slice.
_MOST_SLICES = 62
_PADDING = -2000  # What some scanners store outside their round field of view, with no tag to say so.
# Distinct inputs give distinct identifiers, because an odd factor is invertible modulo a power of two.
_SCRAMBLE = 0x9E3779B97F4A7C15
_FORMATS = (  # signed, syntax, share among the genuine slices
    (True, ExplicitVRLittleEndian, 0.64),
    (False, ImplicitVRLittleEndian, 0.28),
    (False, ExplicitVRLittleEndian, 0.08),
)
_WINDOW_TAGS: tuple[tuple[str | list[str], str | list[str]], ...] = (
    ("30", "80"),
    ("40", "150"),
    ("35.000000", "80.000000"),
    (["00036", "00036"], ["00080", "00080"]),
    (["00040", "00040"], ["00080", "00080"]),
    (["40", "700"], ["80", "3200"]),
)


@dataclass(frozen=True)
class PhantomFiles:
    """What was written: the folder of DICOM files and the label table (RSNA long format)."""

    images: UPath
    labels: UPath


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
        signed, syntax, _ = _FORMATS[rng.choice(len(_FORMATS), p=[share for *_, share in _FORMATS])]
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
            window=_WINDOW_TAGS[rng.integers(len(_WINDOW_TAGS))],
        )

    def slice_id(self, index: int) -> str:
        return _identifier("slice", 64 * self.number + index, self.seed, 9)

    def images(self, size: int) -> Iterator[tuple[Pixels, set[str]]]:
        """HU `[size, size]` and the subtypes seen, from the skull base up."""
        rng = np.random.default_rng([self.seed, self.number, 2])
        canvas = Canvas(self.head, size if size <= _DRAWN_PIXELS else size // 2, rng)
        tiles = self._noise(size, rng)
        for index, height in enumerate(self.heights):
            section = HeadSection(canvas, height)
            brain = section.brain()
            seen = bleed_into(brain, section, self.bleeds)
            image = section.head_in_air(brain)
            if index in self.moving:
                image = _moved(image, canvas, rng)
            if canvas.pixels != size:
                image = _doubled(image)
            mix, shifts = rng.uniform(0, 2 * np.pi), rng.integers(_SHIFTS, size=(2, 2))
            for tile, weight, (row, column) in zip(tiles, (np.cos(mix), np.sin(mix)), shifts, strict=True):
                image += np.float32(weight) * tile[row : row + size, column : column + size]
            yield image, seen

    def _noise(self, size: int, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        """Two images of noise in HU, larger than a slice, to be shifted and mixed for each one.

        Filtered backprojection passes noise in proportion to the spatial frequency until the kernel cuts it off, which
        gives its fine, even grain. The frequencies are physical, so the grain does not depend on `size`.
        """
        frequency = fft.fftfreq(size + _SHIFTS, self.head.fov_mm / size).astype(np.float32)
        kernel = np.exp(-((frequency / np.float32(self.sharpness_per_mm)) ** 2))
        power = np.sqrt(frequency[:, None] ** 2 + frequency**2 + np.float32(1e-4)) * (kernel[:, None] * kernel) ** 2
        white = rng.standard_normal((*power.shape, 2), np.float32).view(np.complex64)[..., 0]
        grain = fft.ifft2(np.sqrt(power) * white, overwrite_x=True)
        grain *= np.float32(self.noise_hu) / grain.real.std()
        return np.ascontiguousarray(grain.real), np.ascontiguousarray(grain.imag)


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
    files = PhantomFiles(locate(folder) / "stage_2_train", locate(folder) / "stage_2_train.csv")
    _check(patients, seed, slices, size)
    check_folder(files.images, "phantom")
    everyone = [_Patient.draw(number, seed, slices) for number in range(patients)]
    _check_empty(files, everyone)
    files.images.mkdir(parents=True, exist_ok=True)
    found: dict[str, set[str]] = {}
    total = sum(len(patient.heights) for patient in everyone)
    # RSNA's ID_... are not UIDs in the sense of the standard, and pydicom would refuse to write them.
    with bar("Writing synthetic patients", total, "slices") as advance, config.disable_value_validation():
        for patient in everyone:
            header = _header(patient, size)
            for index, (image, seen) in enumerate(patient.images(size)):
                name = patient.slice_id(index)
                (files.images / f"{name}.dcm").write_bytes(_dicom(header, patient, index, image))
                found[name] = seen
                advance(len(found))
    write_bytes(files.labels, _table(found))
    return files


def _check(patients: int, seed: int, slices: int, size: int) -> None:
    rules = [
        ("patients", patients, 1, 100_000),
        ("seed", seed, 0, 2**63 - 1),
        ("slices", slices, 1, _MOST_SLICES),
        ("size", size, 64, 1024),
    ]
    for name, value, low, high in rules:
        if not low <= value <= high:
            raise ConfigError(f"phantom: {name} from {low} to {high} must hold, got {value}; choose another")
    if size % 2:
        raise ConfigError(f"phantom: an even size must be given, got {size}; try {size + 1}")


def _check_empty(files: PhantomFiles, everyone: list[_Patient]) -> None:
    """Refuse to write over anything but the remains of this very phantom, cut short."""
    if files.labels.exists():
        raise ConfigError(
            f"{files.labels}: a folder without labels must be given, got this table; choose another --out"
        )
    own = {f"{patient.slice_id(index)}.dcm" for patient in everyone for index in range(len(patient.heights))}
    others = [path.name for path in files.images.iterdir() if path.name not in own] if files.images.exists() else []
    if others:
        raise ConfigError(
            f"{files.images}: an empty folder must be given, got {len(others)} other files such as {min(others)}; "
            "choose another --out"
        )


def _diagnosis(number: int, seed: int) -> tuple[str | None, str]:
    """The main subtype of a patient who bleeds, or the decoy of one who does not."""
    block, place = divmod(number, _BLOCK)
    rank = int(np.random.default_rng([seed, block, 1]).permutation(_BLOCK)[place])
    if rank < _BLEEDING:
        return SUBTYPES[(_BLEEDING * block + rank) % len(SUBTYPES)], "none"
    return None, _DECOYS[rank - _BLEEDING]


def _identifier(kind: str, number: int, seed: int, digits: int) -> str:
    """`ID_` and hexadecimal digits, as in RSNA: scrambled, and different for different numbers."""
    start = int(np.random.default_rng([seed, *kind.encode()]).integers(2**63))
    return f"ID_{(number * _SCRAMBLE + start) % 16**digits:0{digits}x}"


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


def _doubled(image: Pixels) -> Pixels:
    """Twice the rows and columns, by linear interpolation between pixel centers."""
    for axis in (1, 0):  # rows last, so that they end up contiguous
        image = np.moveaxis(image, axis, 0)
        padded = np.concatenate([image[:1], image, image[-1:]])
        wide = np.empty((2 * len(image), *image.shape[1:]), np.float32)
        wide[::2] = 0.75 * image + 0.25 * padded[:-2]
        wide[1::2] = 0.75 * image + 0.25 * padded[2:]
        image = np.moveaxis(wide, 0, axis)
    return np.ascontiguousarray(image)


def _stored(patient: _Patient, image: Pixels) -> NDArray[np.int16] | NDArray[np.uint16]:
    """HU as the words in the file: HU + 1024, signed 16 bits or unsigned 12 bits."""
    words = np.rint(image + 1024)
    axis = np.linspace(-1, 1, len(image), dtype=np.float32) ** 2
    outside = axis[:, None] + axis > 1
    if patient.signed:
        words = np.clip(words, 0, 32767)
        words[outside] = _PADDING if patient.padded else 0
        return words.astype("<i2")
    words[outside] = 0
    return np.clip(words, 0, 4095).astype("<u2")


def _header(patient: _Patient, size: int) -> Dataset:
    """What all slices of a patient share: CT Image (PS3.3 A.3) with RSNA's kind of identifiers."""
    identity = {kind: _identifier(kind, patient.number, patient.seed, 10) for kind in ("study", "series", "frame")}
    header = Dataset()
    for keyword in _EMPTY:
        setattr(header, keyword, "")
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.SOPClassUID = CTImageStorage
    header.Modality = "CT"
    header.Manufacturer = "ich_ray phantom"
    header.PatientID = _identifier("patient", patient.number, patient.seed, 8)
    header.SliceThickness = "5"
    header.StudyInstanceUID = identity["study"]
    header.SeriesInstanceUID = identity["series"]
    header.FrameOfReferenceUID = identity["frame"]
    header.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.Rows = header.Columns = size
    header.PixelSpacing = [f"{patient.head.fov_mm / size:.6f}"] * 2
    header.BitsAllocated = 16
    header.BitsStored = 16 if patient.signed else 12
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(patient.signed)
    header.WindowCenter, header.WindowWidth = patient.window
    header.RescaleIntercept, header.RescaleSlope = "-1024", "1"
    return header


def _dicom(header: Dataset, patient: _Patient, index: int, image: Pixels) -> bytes:
    """One slice as a DICOM file; `header` is completed in place."""
    corner = f"{-patient.head.fov_mm / 2:.4f}"
    header.file_meta = _file_meta(patient, index)
    header.SOPInstanceUID = patient.slice_id(index)
    header.InstanceNumber = str(index + 1)
    header.ImagePositionPatient = [corner, corner, f"{_HEIGHT_MM * patient.heights[index]:.4f}"]
    header.add_new("PixelData", "OW", _stored(patient, image).tobytes())
    file = io.BytesIO()
    header.save_as(file, enforce_file_format=True)
    return file.getvalue()


# Type 2 in PS3.3: must be there, may be empty.
_EMPTY = (
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientBirthDate",
    "PatientSex", "KVP", "StudyID", "SeriesNumber", "AcquisitionNumber", "PositionReferenceIndicator",
)  # fmt: skip


def _file_meta(patient: _Patient, index: int) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    # As in RSNA a proper UID stays here, and differs from the ID_... of the data set.
    meta.MediaStorageSOPInstanceUID = UID(f"2.25.{int(patient.slice_id(index)[3:], 16)}")
    meta.TransferSyntaxUID = UID(patient.syntax)
    meta.ImplementationClassUID = UID("2.25.20190211")
    meta.ImplementationVersionName = "ICH_RAY_PHANTOM"
    return meta


def _table(found: dict[str, set[str]]) -> bytes:
    """RSNA's long format: a row per slice and subtype, then `any`."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("ID", "Label"))
    for name in sorted(found):
        rows.writerows((f"{name}_{subtype}", int(subtype in found[name])) for subtype in SUBTYPES)
        rows.writerow((f"{name}_any", int(bool(found[name]))))
    return text.getvalue().encode()
