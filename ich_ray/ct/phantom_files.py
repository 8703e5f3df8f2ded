"""Files of synthetic patients: CT Image (DICOM PS3.3 A.3) beside a label table in RSNA's long format.

Knows how scanners store pixels and how the folder looks. Knows nothing of heads or blood.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from pydicom import config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ich_ray.errors import ConfigError
from ich_ray.progress import bar
from ich_ray.storage import Location, check_folder, locate, write_bytes
from ich_ray.vocabulary import SUBTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from upath import UPath

    from ich_ray.ct.anatomy import Pixels

__all__ = [
    "FORMATS", "WINDOW_TAGS", "PhantomFiles", "SeriesHeader", "Storage", "SyntheticSeries", "check_ranges",
    "scrambled", "write_series",
]  # fmt: skip

_PADDING = -2000  # What some scanners store outside their round field of view, with no tag to say so.
# Distinct inputs give distinct identifiers, because an odd factor is invertible modulo a power of two.
_SCRAMBLE = 0x9E3779B97F4A7C15
FORMATS = (  # signed, syntax, share among the genuine slices
    (True, ExplicitVRLittleEndian, 0.64),
    (False, ImplicitVRLittleEndian, 0.28),
    (False, ExplicitVRLittleEndian, 0.08),
)
WINDOW_TAGS: tuple[tuple[str | list[str], str | list[str]], ...] = (
    ("30", "80"),
    ("40", "150"),
    ("35.000000", "80.000000"),
    (["00036", "00036"], ["00080", "00080"]),
    (["00040", "00040"], ["00080", "00080"]),
    (["40", "700"], ["80", "3200"]),
)
# Type 2 in PS3.3: must be there, may be empty.
_EMPTY = (
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientBirthDate",
    "PatientSex", "KVP", "StudyID", "SeriesNumber", "AcquisitionNumber", "PositionReferenceIndicator",
)  # fmt: skip


@dataclass(frozen=True)
class PhantomFiles:
    """What was written: the folder of DICOM files and the label table (RSNA long format)."""

    images: UPath
    labels: UPath


class SyntheticSeries(Protocol):
    """One synthetic patient, of one study with one series."""

    def names(self) -> Sequence[str]:
        """The files of the series, without their suffix."""
        ...

    def files(self, size: int) -> Iterator[tuple[str, bytes, set[str]]]:
        """SOPInstanceUID, DICOM file and subtypes seen of every slice, in the order of `names`."""
        ...


@dataclass(frozen=True)
class Storage:
    """How a scanner stores HU: signed 16 bits or unsigned 12 bits, transfer syntax, padding, window tags."""

    signed: bool
    syntax: str
    padded: bool
    window: tuple[str | list[str], str | list[str]]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Storage:
        """One of those that RSNA's files have, as often as there."""
        signed, syntax, _ = FORMATS[rng.choice(len(FORMATS), p=[share for *_, share in FORMATS])]
        padded = bool(signed and rng.random() < 0.6)
        return cls(signed, syntax, padded, WINDOW_TAGS[rng.integers(len(WINDOW_TAGS))])

    def words(self, image: Pixels) -> NDArray[np.int16] | NDArray[np.uint16]:
        """HU `[n, n]` as the words in the file: HU + 1024."""
        words = np.rint(image + 1024)
        axis = np.linspace(-1, 1, len(image), dtype=np.float32) ** 2
        outside = axis[:, None] + axis > 1
        if self.signed:
            words = np.clip(words, 0, 32767)
            words[outside] = _PADDING if self.padded else 0
            return words.astype("<i2")
        words[outside] = 0
        return np.clip(words, 0, 4095).astype("<u2")


@dataclass(frozen=True)
class SeriesHeader:
    """What all slices of a series share. `orientation` is ImageOrientationPatient; lengths are in mm."""

    patient: str
    study: str
    series: str
    frame: str
    storage: Storage
    fov_mm: float
    thickness_mm: str = "5"
    orientation: tuple[str, ...] = ("1", "0", "0", "0", "1", "0")

    def dataset(self, size: int) -> Dataset:
        """The header of images of `size` rows and columns, to be completed by `encode`."""
        header = Dataset()
        for keyword in _EMPTY:
            setattr(header, keyword, "")
        header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        header.SOPClassUID = CTImageStorage
        header.Modality = "CT"
        header.Manufacturer = "ich_ray phantom"
        header.PatientID = self.patient
        header.SliceThickness = self.thickness_mm
        header.StudyInstanceUID = self.study
        header.SeriesInstanceUID = self.series
        header.FrameOfReferenceUID = self.frame
        header.ImageOrientationPatient = list(self.orientation)
        header.SamplesPerPixel = 1
        header.PhotometricInterpretation = "MONOCHROME2"
        header.Rows = header.Columns = size
        header.PixelSpacing = [f"{self.fov_mm / size:.6f}"] * 2
        header.BitsAllocated = 16
        header.BitsStored = 16 if self.storage.signed else 12
        header.HighBit = header.BitsStored - 1
        header.PixelRepresentation = int(self.storage.signed)
        header.WindowCenter, header.WindowWidth = self.storage.window
        header.RescaleIntercept, header.RescaleSlope = "-1024", "1"
        return header

    def encode(
        self, header: Dataset, image: Pixels, uids: tuple[str, str], number: int, position: Sequence[str]
    ) -> bytes:
        """One slice as a DICOM file; `header` is completed in place.

        Args:
            header: of `dataset`.
            image: HU `[size, size]`.
            uids: SOPInstanceUID, and that of the meta header.
            number: InstanceNumber.
            position: ImagePositionPatient.
        """
        header.file_meta = _file_meta(uids[1], self.storage.syntax)
        header.SOPInstanceUID = uids[0]
        header.InstanceNumber = str(number)
        header.ImagePositionPatient = list(position)
        header.add_new("PixelData", "OW", self.storage.words(image).tobytes())
        file = io.BytesIO()
        header.save_as(file, enforce_file_format=True)
        return file.getvalue()


def _file_meta(uid: str, syntax: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(uid)
    meta.TransferSyntaxUID = UID(syntax)
    meta.ImplementationClassUID = UID("2.25.20190211")
    meta.ImplementationVersionName = "ICH_RAY_PHANTOM"
    return meta


def scrambled(kind: str, number: int, seed: int, bits: int) -> int:
    """A number below 2 ** `bits` (at most 63): different for different numbers of a kind."""
    start = int(np.random.default_rng([seed, *kind.encode()]).integers(2**63))
    return (number * _SCRAMBLE + start) % (1 << bits)


def check_ranges(*rules: tuple[str, int, int, int]) -> None:
    """Refuse a phantom's argument (name, value, lowest, highest) out of range, and an odd size."""
    for name, value, low, high in rules:
        if not low <= value <= high:
            raise ConfigError(f"phantom: {name} from {low} to {high} must hold, got {value}; choose another")
        if name == "size" and value % 2:
            raise ConfigError(f"phantom: an even size must be given, got {value}; try {value + 1}")


def write_series(folder: Location, everyone: Sequence[SyntheticSeries], size: int) -> PhantomFiles:
    """Write `stage_2_train/NAME.dcm` and, last, `stage_2_train.csv`.

    Raises:
        ConfigError: `folder` holds other images or a label table, or cannot be written.
    """
    files = PhantomFiles(locate(folder) / "stage_2_train", locate(folder) / "stage_2_train.csv")
    check_folder(files.images, "phantom")
    own = [name for patient in everyone for name in patient.names()]
    _check_empty(files, {f"{name}.dcm" for name in own})
    files.images.mkdir(parents=True, exist_ok=True)
    found: dict[str, set[str]] = {}
    # RSNA's ID_... are not UIDs in the sense of the standard, and pydicom would refuse to write them.
    with bar("Writing synthetic patients", len(own), "slices") as advance, config.disable_value_validation():
        for patient in everyone:
            for name, (uid, content, seen) in zip(patient.names(), patient.files(size), strict=True):
                (files.images / f"{name}.dcm").write_bytes(content)
                found[uid] = seen
                advance(len(found))
    write_bytes(files.labels, _table(found))
    return files


def _check_empty(files: PhantomFiles, own: set[str]) -> None:
    """Refuse to write over anything but the remains of this very phantom, cut short."""
    if files.labels.exists():
        raise ConfigError(
            f"{files.labels}: a folder without labels must be given, got this table; choose another --out"
        )
    others = [path.name for path in files.images.iterdir() if path.name not in own] if files.images.exists() else []
    if others:
        raise ConfigError(
            f"{files.images}: an empty folder must be given, got {len(others)} other files such as {min(others)}; "
            "choose another --out"
        )


def _table(found: dict[str, set[str]]) -> bytes:
    """RSNA's long format: a row per slice and subtype, then `any`."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("ID", "Label"))
    for name in sorted(found):
        rows.writerows((f"{name}_{subtype}", int(subtype in found[name])) for subtype in SUBTYPES)
        rows.writerow((f"{name}_any", int(bool(found[name]))))
    return text.getvalue().encode()
