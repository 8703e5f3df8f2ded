"""Whether what we made of a changed file is what pydicom or GDCM make of it, and the rules where they differ.

A rejection changes nothing. What is accepted must equal a reading that is not ours in identity, position and every HU;
where the other library fails or reads something else, one of `RULES` must say why that does not make ours wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydicom.uid import CTImageStorage, JPEGBaseline8Bit, JPEGExtended12Bit

from ich_ray.ct.dicom import CTSlice, read_slice
from ich_ray.ct.elements import DEFLATED, PIXEL_DATA, parse
from ich_ray.errors import Rejection
from tests.ct.fuzz.changes import Base
from tests.ct.fuzz.readers import Failure, Reading, readings

__all__ = ["RULES", "Verdict", "judge"]

# What decides about HU and identity, as `essential` keeps it.
_READ = frozenset(
    {
        *(0x00020002, 0x00020010, 0x00080016, 0x00080018, 0x00080060, 0x00100020, 0x0020000D, 0x0020000E),
        *(0x00200032, 0x00200037, 0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011, 0x00280100),
        *(0x00280101, 0x00280102, 0x00280103, 0x00280120, 0x00280121, 0x00281052, 0x00281053, 0x00281054),
        *(0x00283000, PIXEL_DATA),
    }
)
_IDENTITY = ("slice_id", "patient", "study", "series")
_COSINE_ERROR = 0.1  # docs/what-is-a-slice.md


@dataclass(frozen=True)
class Case:
    """An accepted file with what the two libraries make of it, and whether its pixels are no longer the base's."""

    ct: CTSlice
    pydicom: Reading | Failure
    gdcm: Reading | Failure
    has_other_frame: bool


@dataclass(frozen=True)
class Verdict:
    """What became of a file.

    Attributes:
        kind: `rejected`, `equal`, or the differences with the names of their rules.
        unjudged: differences that no rule explains: one of the two, or we, read the file wrongly and silently.
    """

    kind: str
    unjudged: tuple[str, ...] = ()


def judge(data: bytes, base: Base) -> Verdict:
    """The verdict on a file that was the base before it was changed."""
    try:
        ct = read_slice(data)
    except Rejection as rejection:
        return Verdict(f"rejected: {rejection.reason}")
    has_other_frame = base.data[slice(*base.pixels)] not in (data if not base.deflated else base.data)
    case = Case(ct, *readings(data), has_other_frame)
    whole = _verdict(case)
    if isinstance(case.pydicom, Reading) and not any(": fails" in one for one in whole.unjudged):
        return whole
    part = _verdict(Case(ct, *readings(essential(data)), has_other_frame))
    if whole.unjudged:
        return Verdict(f"of the elements that are read: {part.kind}", part.unjudged)
    return Verdict(whole.kind, part.unjudged)  # it is pydicom that tells where the two are silent


def essential(data: bytes) -> bytes:
    """The elements that a slice is read from and no others, nothing behind them, and MONOCHROME2 in capitals.

    Both libraries give up on an element of unknown VR, a bad value of no use, and most bytes behind the pixels.
    """
    elements = parse(memoryview(data))
    whole = bytes(elements.data)
    kept = [whole[:132]]
    for tag, (start, end) in sorted(elements.spans.items(), key=lambda item: item[1]):
        order: Literal["little", "big"] = "little" if elements.order == "<" or tag >> 16 == 0x0002 else "big"
        head = (tag >> 16).to_bytes(2, order) + (tag & 0xFFFF).to_bytes(2, order)
        begin = start - (8 if whole[start - 8 : start - 4] == head else 12)  # PS3.5 7.1.2: by its VR
        if tag in _READ:
            kept.append(whole[begin:end].replace(b"monochrome2", b"MONOCHROME2"))
    body = b"".join(kept)
    if elements.syntax == DEFLATED:  # as it now is
        body = body.replace(DEFLATED.encode(), b"1.2.840.10008.1.2.1\0\0\0")
    return body


def _verdict(case: Case) -> Verdict:
    in_pydicom, in_gdcm = (differences(case.ct, other) for other in (case.pydicom, case.gdcm))
    if not in_pydicom and not in_gdcm:
        return Verdict("equal to both")
    # A library that fails has said so. What only the other one reads is still read by somebody else than us.
    if isinstance(case.pydicom, Failure) and not in_gdcm:
        return Verdict(f"equal to GDCM; pydicom fails ({case.pydicom.reason})")
    if isinstance(case.gdcm, Failure) and not in_pydicom:
        return Verdict(f"equal to pydicom; GDCM fails ({case.gdcm.reason})")
    found = [("pydicom", fact) for fact in in_pydicom] + [("GDCM", fact) for fact in in_gdcm]
    named = {one: next((name for name, holds in RULES.items() if holds(case, *one)), "") for one in found}
    alone = {fact for fact in in_pydicom if fact in in_gdcm}  # in these nobody reads what we read
    unjudged = tuple(
        f"{one}: {fact}" for (one, fact), name in named.items() if not name or (fact in alone and name != _SKIPPED)
    )
    return Verdict("; ".join(sorted({name for name in named.values() if name})) or "unjudged", unjudged)


def differences(ct: CTSlice, other: Reading | Failure) -> tuple[str, ...]:
    """Names of what another reading has otherwise."""
    if isinstance(other, Failure):
        return (f"fails ({other.reason})",)
    header = ct.header
    found = [name for name in _IDENTITY if getattr(header, name) != _text(other.texts[name])]
    if not np.isclose(header.acquisition.position_mm, _position_mm(other), rtol=1e-6, atol=1e-6, equal_nan=True):
        found.append("position")
    if ct.stored.shape != other.words.shape:
        found.append("shape")
    elif not np.array_equal(ct.hu(), other.hu()):
        same_rescale = (header.slope, header.intercept) == (other.slope, other.intercept)
        found.append("HU" if same_rescale else "rescale")
    return (*found, *(f"silent about {name}" for name in other.silences))


def _text(value: str) -> str:
    return value.rstrip(" \0").lstrip(" ")


def _position_mm(reading: Reading) -> float:
    """Along the normal; along z where the direction cosines are not orthogonal and of unit length, within a tenth."""
    position, orientation = (_numbers(reading.texts[name]) for name in ("position", "orientation"))
    if len(position) != 3:
        return math.nan
    if len(orientation) != 6:
        return position[2]
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    with np.errstate(over="ignore", invalid="ignore"):
        errors = (np.linalg.norm(row) - 1, np.linalg.norm(column) - 1, row @ column)
    if not max(map(abs, errors)) <= _COSINE_ERROR:
        return position[2]
    normal = np.cross(row, column)
    return float(normal @ position / np.linalg.norm(normal))


def _numbers(text: str) -> list[float]:
    """The values of VR DS; `float` would read a form feed in front, digits of other scripts and underscores, too."""
    parts = [part.strip(" ") for part in _text(text).split("\\")]
    if any(set(part) - set("0123456789+-.eE") for part in parts):
        return []
    try:
        found = [float(part) for part in parts]
    except ValueError:
        return []
    return found if all(map(math.isfinite, found)) else []


def _has_inner_nul(case: Case, library: str, fact: str) -> bool:
    if library != "GDCM" or isinstance(case.pydicom, Failure):
        return False
    texts = {"position": case.pydicom.texts["position"] + case.pydicom.texts["orientation"]}
    texts |= {name: getattr(case.ct.header, name) for name in _IDENTITY}
    return "\0" in _text(texts.get(fact, ""))


def _is_skipped(case: Case, library: str, fact: str) -> bool:
    """A position of a VR that does not exist is unknown to us, as the flag says, whoever guesses it."""
    header = case.ct.header
    return fact == "position" and math.isnan(header.acquisition.position_mm) and "vr_unknown" in header.flags


def _is_no_ct_class(case: Case, library: str, fact: str) -> bool:
    """Modality says CT, but GDCM goes by the SOP class, and takes no rescale where it knows none."""
    if library != "GDCM" or fact != "rescale" or isinstance(case.gdcm, Failure):
        return False
    named = case.gdcm if isinstance(case.pydicom, Failure) else case.pydicom
    classes = {_text(named.texts[name]) for name in ("class", "meta class")}
    rescaled = replace(case.gdcm, slope=case.ct.header.slope, intercept=case.ct.header.intercept)
    no_rescale = (case.gdcm.slope, case.gdcm.intercept) == (1, 0)
    return classes != {CTImageStorage} and no_rescale and np.array_equal(rescaled.hu(), case.ct.hu())


def _fails_beside_gdcm(case: Case, library: str, fact: str) -> bool:
    """A failure is not silent; what GDCM reads must then equal ours but for what has a rule of its own."""
    return library == "pydicom" and isinstance(case.pydicom, Failure) and not isinstance(case.gdcm, Failure)


def _is_damaged_jpeg(case: Case, library: str, fact: str) -> bool:
    """Coefficients out of range: libjpeg-turbo and the libjpeg in GDCM saturate them in different places."""
    is_jpeg = case.ct.header.transfer_syntax in {JPEGBaseline8Bit, JPEGExtended12Bit}
    return is_jpeg and library == "pydicom" and fact == "HU" and case.has_other_frame


# Where both libraries differ from ours in one thing, no rule may explain both, but that we say that we do not know.
_SKIPPED = "others guess a position of unknown VR"
RULES: dict[str, Callable[[Case, str, str], bool]] = {
    "GDCM ends a text at a NUL": _has_inner_nul,
    _SKIPPED: _is_skipped,
    "GDCM takes no rescale from a SOP class that is not CT's": _is_no_ct_class,
    "pydicom fails": _fails_beside_gdcm,
    "decoders differ on damaged lossy JPEG": _is_damaged_jpeg,
}
