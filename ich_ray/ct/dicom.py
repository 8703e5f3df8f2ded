"""One DICOM file -> CT words with their rescale and header facts, or a typed rejection.

Knows what a head-CT slice must say about itself (PS3.3 C.7.6.3, C.8.2.1, C.11.1) and the quirks of the RSNA set;
does not know windows, labels or other files. Everything is checked before pixels are decoded, nothing is guessed:
what pydicom reads silently (a missing rescale, MONOCHROME1, a wrong sign) is a rejection here. Details of a rejection
never quote text from the file, only numbers.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ich_ray.ct.acquisition import IMAGE_TYPE, Acquisition, decimals, read_acquisition
from ich_ray.ct.elements import PIXEL_DATA, Elements, parse
from ich_ray.ct.frames import DECISIVE, Frames, check_frame_count
from ich_ray.ct.pixels import PixelLayout, stored_words
from ich_ray.ct.plane import Judgment, judge_field, judge_slice
from ich_ray.ct.source import read_file
from ich_ray.errors import Rejection

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.storage import Location

__all__ = [
    "EXCLUSIONS",
    "FLAGS",
    "CTSlice",
    "SliceHeader",
    "check_file",
    "header_of",
    "is_identifier",
    "read_slice",
    "slice_of",
]

# Reasons that are no fault of the file: it is simply not an axial CT slice.
EXCLUSIONS = frozenset(
    {"dicomdir", "localizer", "not_axial", "not_ct", "not_head", "not_image", "projection", "secondary_capture"}
)

# Facts of the file, but for `blank`, which depends on the windows, and `no_slab`, `pixels_shared`, `repeated_position`
# and `slab`, which depend on other files.
FLAGS = {
    "blank": "each window shows one value only",
    "contrast": "the header names a contrast agent",
    "described_otherwise": "SeriesDescription speaks of something else, such as a localizer or a coronal plane",
    "extreme_hu": "HU below -4,096 or above 30,000: wrapped words or metal; clipped by every window",
    "high_bits": "bits above BitsStored were set and are ignored",
    "lossy": "the transfer syntax is lossy",
    "lower_case": "Modality, PhotometricInterpretation or RescaleType is not in capitals",
    "meta_uid": "SOPInstanceUID differs between the meta header and the data set, which counts",
    "no_preamble": "the file begins with its meta information; read because that was asked for",
    "no_slab": "of a series that is averaged to slabs, but nothing beside it to average it with",
    "near_empty": "less than 1 % of the pixels between -100 and 200 HU, as above the skull",
    "not_512": "not 512 pixels a side",
    "not_isotropic": "pixels are more than 1 % longer than wide, or wider than long; shown as if they were square",
    "not_square": "padded to a square with black before resizing",
    "padding": "pixels outside the scanner circle hold a padding value; they are shown as air",
    "patient_blank": "PatientID is absent or blank: a slice to predict, not to prepare",
    "pixel_padding": "spare bytes after the pixels: one or two, or behind the end marker of a compressed frame",
    "pixels_shared": "the same image stands under another patient, too",
    "plane_unknown": "no valid ImageOrientationPatient; taken for an axial slice, as nothing says otherwise",
    "repeated_position": "another slice of its series lies at the same place",
    "rotated": "turned by more than 45 degrees in its plane, or mirrored: the top of the image is not the front",
    "rsna_repair": "12-bit unsigned words with an intercept above -100: shifted as the RSNA set needs it",
    "slab": "averaged in HU with the slices beside it, to a slab of --slab-mm, by `predict` as the training data are",
    "small_field": "a field of view below 140 mm: a part of a head, or a newborn's",
    "study_missing": "no StudyInstanceUID or SeriesInstanceUID",
    "thick": "SliceThickness above 5.5 mm",
    "thin": "SliceThickness below 2 mm",
    "tilt": "30.5 to 45 degrees off the axial plane: more than a gantry tilts",
    "trailing_bytes": "text, fill bytes or an element that is cut off follow the pixels; they are ignored",
    "vr_encoding": "implicit and explicit VR were mixed up in the transfer syntax",
    "vr_unknown": "an element that decides nothing has a VR that does not exist; it is skipped",
}

MODALITY, SOP_CLASS, SOP_INSTANCE, META_INSTANCE = 0x00080060, 0x00080016, 0x00080018, 0x00020003
PATIENT, STUDY, SERIES, ACCESSION = 0x00100020, 0x0020000D, 0x0020000E, 0x00080050
SAMPLES, PHOTOMETRIC, ROWS, COLUMNS = 0x00280002, 0x00280004, 0x00280010, 0x00280011
ALLOCATED, STORED, HIGH_BIT, REPRESENTATION = 0x00280100, 0x00280101, 0x00280102, 0x00280103
PADDING, PADDING_LIMIT = 0x00280120, 0x00280121
INTERCEPT, SLOPE, RESCALE_TYPE, MODALITY_LUT = 0x00281052, 0x00281053, 0x00281054, 0x00283000
FLOAT_PIXELS = (0x7FE00008, 0x7FE00009)

# Elements that decide a pixel, a patient or a label, so that nothing about them may be a guess.
_DECISIVE = frozenset(
    {MODALITY, IMAGE_TYPE, SOP_INSTANCE, PATIENT, STUDY, SERIES, SAMPLES, PHOTOMETRIC, ROWS, COLUMNS, ALLOCATED}
    | {STORED, HIGH_BIT, REPRESENTATION, PADDING, PADDING_LIMIT, INTERCEPT, SLOPE, RESCALE_TYPE, MODALITY_LUT}
    | {*FLOAT_PIXELS, PIXEL_DATA, *DECISIVE}
)
_DESCRIPTION = 0x00280000  # the group that describes the image
_CT_CLASSES = frozenset({"1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"})

# A standard UID, or an identifier such as ID_1f6d1e8aeb that replaced one.
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_IDENTIFIER = re.compile(r"[A-Za-z0-9]([._-]?[A-Za-z0-9])*")

_AIR_HU = -1024
_PADDING_WORD, _PADDING_HU = -2000, -3024  # outside the circle of a common scanner; some exports applied the intercept
_TISSUE_HU = (-100, 200)
_PLAUSIBLE_HU = 33_000  # signed 16-bit words end at 32,767; only a lost sign gives more


@dataclass(frozen=True)
class SliceHeader:
    """What the file says, identifiers included: keep it in memory and never print it.

    Attributes:
        slice_id: SOPInstanceUID; of a frame see `slice_file.SliceFile`.
        patient: PatientID, empty where it is absent or blank.
        acquisition: how the slice was taken.
        slope, intercept: as written in the file.
        flags: keys of `FLAGS`, sorted.
        accession: AccessionNumber, as it is; empty where it is absent or blank.
    """

    slice_id: str
    patient: str
    study: str
    series: str
    acquisition: Acquisition
    rows: int
    columns: int
    bits_stored: int
    signed: bool
    transfer_syntax: str
    slope: float
    intercept: float
    flags: tuple[str, ...]
    accession: str = ""


@dataclass(frozen=True)
class CTSlice:
    """One slice: HU = stored * slope + intercept (PS3.3 C.11.1.1.2).

    Attributes:
        stored: words `[rows, columns]`, read-only: integers, of native data a view of the file's bytes; of a slab HU.
        slope, intercept: of these words, after repairs.
    """

    header: SliceHeader
    stored: NDArray[Any]
    slope: float
    intercept: float

    def hu(self) -> NDArray[np.float32]:
        """Hounsfield units, float32 `[rows, columns]`."""
        return (self.stored * np.float64(self.slope) + self.intercept).astype(np.float32)

    def flagged(self, *flags: str) -> CTSlice:
        """The same slice with these flags, too."""
        if not flags:
            return self
        return replace(self, header=replace(self.header, flags=tuple(sorted({*self.header.flags, *flags}))))


def read_slice(source: bytes | bytearray | memoryview | Location, without_preamble: bool = False) -> CTSlice:
    """Read one CT slice from a path, a URI or the bytes of a file.

    With bytes the words are a view of them: they must not change while the slice is in use.

    Args:
        source: the file.
        without_preamble: see `elements.parse`.

    Raises:
        Rejection: the file is not accepted; its `reason` is the code of the contract. Reasons in `EXCLUSIONS` mean
            that nothing is wrong with the file.
    """
    data = source if isinstance(source, bytes | bytearray | memoryview) else read_file(source)
    return slice_of(Frames(parse(memoryview(data), without_preamble)).only())


def check_file(elements: Elements) -> tuple[str, PixelLayout]:
    """What the frames of a file of several have in common: SOPInstanceUID and layout.

    Raises:
        Rejection: what is true of the file is true of all of them.
    """
    return _slice_id(elements), _layout(elements)


def slice_of(elements: Elements, slice_id: str = "") -> CTSlice:
    """The slice of a classic file, or of a frame that goes by `slice_id`.

    Raises:
        Rejection: see `read_slice`.
    """
    taken = _check_kind(elements)
    _check_pixels(elements)
    header, layout = _header(elements, *taken, slice_id)
    words, flags = stored_words(elements, layout)
    header = _check_field(header, *flags)
    return _plausible(_padded(_repaired(CTSlice(header, words, header.slope, header.intercept)), elements))


def header_of(elements: Elements, slice_id: str = "") -> SliceHeader:
    """The header of a classic file, or of a frame that goes by `slice_id`.

    What only the pixels tell is not checked: `slice_of` may refuse the file, and finds more flags.

    Raises:
        Rejection: see `read_slice`.
    """
    return _check_field(_header(elements, *_check_kind(elements), slice_id)[0])


def _header(
    elements: Elements, acquisition: Acquisition, kind: Judgment, slice_id: str = ""
) -> tuple[SliceHeader, PixelLayout]:
    uid, patient = _slice_id(elements), elements.text(PATIENT)
    layout = _layout(elements)
    slope, intercept = _rescale(elements)
    header = SliceHeader(
        slice_id=slice_id or uid,
        patient=patient,
        study=_group_id(elements, STUDY, "StudyInstanceUID"),
        series=_group_id(elements, SERIES, "SeriesInstanceUID"),
        acquisition=acquisition,
        rows=layout.rows,
        columns=layout.columns,
        bits_stored=layout.bits_stored,
        signed=layout.signed,
        transfer_syntax=elements.syntax,
        slope=slope,
        intercept=intercept,
        flags=tuple(sorted((*elements.flags, *kind.flags, *_oddities(elements, uid, patient)))),
        accession=elements.text(ACCESSION),
    )
    return header, layout


def _check_kind(elements: Elements) -> tuple[Acquisition, Judgment]:
    """How the slice was taken, and what is odd about that; or what the file is instead of a slice."""
    if elements.unknown_vr and (unknown := min(elements.unknown_vr & _DECISIVE, default=0)):
        raise Rejection("header_invalid", f"({unknown >> 16:04X},{unknown & 0xFFFF:04X}) has no known VR")
    modality = elements.text(MODALITY).upper()
    # Without a modality a file that ends early is not excluded as another kind of image.
    if modality != "CT" and (modality or max(elements.spans) >= _DESCRIPTION):
        raise Rejection("not_ct", "Modality does not say CT")
    acquisition = read_acquisition(elements)
    return acquisition, _not_excluded(judge_slice(acquisition))


def _check_pixels(elements: Elements) -> None:
    if any(tag in elements for tag in FLOAT_PIXELS):
        raise Rejection("float_pixel", "floating-point pixels are no CT words")
    if PIXEL_DATA not in elements and elements.text(SOP_CLASS) not in {"", *_CT_CLASSES}:
        raise Rejection("not_image", "SOPClassUID is not of CT images, and there is no PixelData")
    start, end = elements.spans.get(PIXEL_DATA, (0, 0))
    if start == end:
        raise Rejection("no_pixel", "PixelData is absent or empty")


def _check_field(header: SliceHeader, *flags: str) -> SliceHeader:
    """The header with these flags and those of its field of view; read pixels have borne out its size."""
    field = _not_excluded(judge_field(header.acquisition, header.rows, header.columns))
    return replace(header, flags=tuple(sorted((*header.flags, *flags, *field.flags))))


def _not_excluded(found: Judgment) -> Judgment:
    if found.reason:
        raise Rejection(found.reason, found.detail)
    return found


def _slice_id(elements: Elements) -> str:
    uid = elements.text(SOP_INSTANCE)
    if not uid:
        raise Rejection("uid_missing", "SOPInstanceUID is absent or blank")
    _check_uid(uid, "SOPInstanceUID")
    return uid


def _group_id(elements: Elements, tag: int, name: str) -> str:
    """The identifier of what the slice belongs to; empty where the header has none.

    One that is invalid is no absent one: slices of one study would count as so many studies in `predict`, and a study
    under two patients would not be found in `prepare`.
    """
    uid = elements.text(tag)
    if uid:
        _check_uid(uid, name)
    return uid


def is_identifier(text: str) -> bool:
    """Whether a slice, series or study may go by it."""
    return len(text) <= 64 and _IDENTIFIER.fullmatch(text) is not None


def _check_uid(uid: str, name: str) -> None:
    if not is_identifier(uid):
        raise Rejection("uid_invalid", f"{name} may hold letters, digits and single . _ - between them")


def _oddities(elements: Elements, uid: str, patient: str) -> list[str]:
    """Flags of what departs from the standard and changes no pixel, patient or label."""
    meta = elements.text(META_INSTANCE)
    codes = elements.text(MODALITY) + elements.text(PHOTOMETRIC) + elements.text(RESCALE_TYPE)
    found = {
        "lower_case": codes != codes.upper(),
        # De-identification gives the data set a new identifier and leaves the meta header. Every RSNA file is so: an
        # identifier that is no UID says it by itself.
        "meta_uid": bool(meta) and meta != uid and bool(_UID.fullmatch(uid)),
        "patient_blank": not patient,
    }
    return [flag for flag, holds in found.items() if holds]


def _layout(elements: Elements) -> PixelLayout:
    if elements.word(SAMPLES) != 1:
        raise Rejection("not_grayscale", f"SamplesPerPixel must be 1, got {elements.word(SAMPLES)}")
    if elements.text(PHOTOMETRIC).upper() != "MONOCHROME2":
        raise Rejection("photometric", "PhotometricInterpretation must be MONOCHROME2")
    check_frame_count(elements)
    rows, columns = elements.word(ROWS), elements.word(COLUMNS)
    if not rows or not columns:
        raise Rejection("dims_invalid", f"Rows and Columns must be positive, got {rows} and {columns}")
    allocated, stored, high = (elements.word(tag) for tag in (ALLOCATED, STORED, HIGH_BIT))
    if allocated not in {8, 16} or not stored or stored > allocated:
        raise Rejection("bits_invalid", f"8 or 16 bits and stored <= allocated must hold, got {allocated} and {stored}")
    if high != stored - 1:
        raise Rejection("bits_inconsistent", f"HighBit must be BitsStored - 1, got {high} and {stored}")
    representation = elements.word(REPRESENTATION)
    if representation not in {0, 1}:
        raise Rejection("pixrep_invalid", f"PixelRepresentation must be 0 or 1, got {representation}")
    return PixelLayout(rows, columns, allocated, stored, bool(representation))


def _rescale(elements: Elements) -> tuple[float, float]:
    if MODALITY_LUT in elements:
        raise Rejection("modality_lut", "a Modality LUT takes the place of the rescale")
    if elements.text(RESCALE_TYPE).upper() not in {"", "HU"}:
        raise Rejection("rescale_type", "RescaleType must be HU")
    if SLOPE not in elements or INTERCEPT not in elements:
        raise Rejection("rescale_missing", "RescaleSlope and RescaleIntercept must be there")
    slope, intercept = decimals(elements.text(SLOPE)), decimals(elements.text(INTERCEPT))
    if len(slope) != 1 or len(intercept) != 1 or not 1e-3 <= slope[0] <= 1e3 or abs(intercept[0]) > 1e5:
        raise Rejection("rescale_invalid", "one slope of 0.001 to 1,000 and one intercept within 100,000 must be there")
    return slope[0], intercept[0]


def _repaired(ct: CTSlice) -> CTSlice:
    """The repair that the RSNA set needs, for its exact signature only.

    5,326 of its slices have 12-bit unsigned words that were shifted by 1,000 without wrapping, and say so by an
    intercept above -100: HU is the word, or the word - 4,096 from 3,096 on.
    """
    header = ct.header
    if header.bits_stored != 12 or header.signed or ct.slope != 1 or ct.intercept <= -100:
        return ct
    words = ct.stored.astype(np.int16)
    words[words >= 3096] -= 4096
    words.flags.writeable = False
    return replace(ct, stored=words, intercept=0.0).flagged("rsna_repair")


def _padded(ct: CTSlice, elements: Elements) -> CTSlice:
    """Pixels that hold a padding value become air (PS3.3 C.7.5.1.1.2)."""
    first = elements.word(PADDING, ct.header.signed)
    if first is None or "rsna_repair" in ct.header.flags:
        return ct
    last = elements.word(PADDING_LIMIT, ct.header.signed)
    low, high = sorted((first, first if last is None else last))
    padding = (ct.stored >= low) & (ct.stored <= high)
    if not padding.any():
        return ct
    air = round((_AIR_HU - ct.intercept) / ct.slope)
    words = np.where(padding, np.int32(air), ct.stored.astype(np.int32))
    words.flags.writeable = False
    return replace(ct, stored=words).flagged("padding")


def _plausible(ct: CTSlice) -> CTSlice:
    """Refuse what cannot be a CT slice, flag what is odd.

    Raises:
        Rejection: `hu_implausible`.
    """
    from ich_ray.ct.kernels import survey

    low, high = ((hu - ct.intercept) / ct.slope for hu in _TISSUE_HU)
    word = ct.stored.dtype.type
    limits = np.iinfo(word)
    if low > limits.max or high < limits.min:  # no word can be tissue
        low, high = limits.max, limits.min
    first, last = max(math.ceil(low), limits.min), min(math.floor(high), limits.max)
    smallest, largest, tissue = survey(ct.stored, word(first), word(last))
    least_hu, most_hu = smallest * ct.slope + ct.intercept, largest * ct.slope + ct.intercept
    if smallest == largest:
        raise Rejection("hu_implausible", "all pixels are equal")
    if most_hu > _PLAUSIBLE_HU or least_hu < -_PLAUSIBLE_HU - 1024:
        raise Rejection("hu_implausible", f"{least_hu:.0f} to {most_hu:.0f} HU")
    rows, columns = ct.stored.shape
    found = {
        "extreme_hu": least_hu < -4096 or most_hu > 30_000,
        "near_empty": tissue < 0.01 * rows * columns,
        "not_512": (rows, columns) != (512, 512),
        "not_square": rows != columns,
        "padding": ct.header.signed and (smallest == _PADDING_WORD or least_hu == _PADDING_HU),
        "study_missing": not ct.header.study or not ct.header.series,
    }
    return ct.flagged(*(flag for flag, holds in found.items() if holds))
