"""Whom a file is of, in clear: what a report must repeat to be filed beside it.

Nothing else of the package reads a name or a date. Values that no report may hold are empty: of the wrong form, of
several values, too long, on a day that there is not.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ich_ray.ct.source import header_elements

if TYPE_CHECKING:
    from collections.abc import Callable

    from ich_ray.ct.elements import Elements
    from ich_ray.storage import Location

__all__ = ["SourceInstance", "read_source_instance"]

_DATE, _TIME = re.compile(r"[0-9]{8}"), re.compile(r"[0-9]{2}([0-9]{2}([0-9]{2}(\.[0-9]{1,6})?)?)?")
_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")
_CHARACTER_SET = 0x00080005


@dataclass(frozen=True)
class SourceInstance:
    """The identifiers of a file; those of a study are equal in all of its files.

    Attributes:
        patient_id: as it is, whatever its length.
    """

    sop_class: str
    sop_instance: str
    series: str
    study: str
    patient_id: str
    patient_name: str
    birth_date: str
    sex: str
    accession_number: str
    study_id: str
    study_date: str
    study_time: str
    referring_physician: str

    @property
    def uids_are_valid(self) -> bool:
        """Whether another file may refer to it."""
        uids = (self.sop_class, self.sop_instance, self.series, self.study)
        return all(len(uid) <= 64 and _UID.fullmatch(uid) for uid in uids)


def read_source_instance(source: Location, without_preamble: bool = False) -> SourceInstance:
    """Read the identifiers of a file from its header.

    Raises:
        Rejection: it cannot be read.
    """
    elements = header_elements(source, without_preamble)
    decode = _decoder(elements)
    return SourceInstance(
        sop_class=elements.text(0x00080016),
        sop_instance=elements.text(0x00080018),
        series=elements.text(0x0020000E),
        study=elements.text(0x0020000D),
        patient_id=decode(0x00100020),
        patient_name=_line(decode(0x00100010), 3 * 64),
        birth_date=_date(elements.text(0x00100030)),
        sex=sex if (sex := elements.text(0x00100040)) in {"M", "F", "O"} else "",
        accession_number=_line(decode(0x00080050), 16),
        study_id=_line(decode(0x00200010), 16),
        study_date=_date(elements.text(0x00080020)),
        study_time=_time(elements.text(0x00080030)),
        referring_physician=_line(decode(0x00080090), 3 * 64),
    )


def _decoder(elements: Elements) -> Callable[[int], str]:
    """The text of a tag in the character set of the file; nothing of it is ever in a warning."""
    from pydicom.charset import convert_encodings, decode_bytes
    from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

    def decode(tag: int) -> str:
        value = elements.value(tag)
        if value is None:
            return ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            encodings = convert_encodings(elements.text(_CHARACTER_SET).split("\\"))
            return decode_bytes(value, encodings, TEXT_VR_DELIMS | PN_DELIMS).strip(" \0")

    return decode


def _date(text: str) -> str:
    from pydicom.valuerep import DA

    return _possible(DA, text) if _DATE.fullmatch(text) else ""


def _time(text: str) -> str:
    from pydicom.valuerep import TM

    return _possible(TM, text) if _TIME.fullmatch(text) else ""


def _possible(kind: Callable[[str], object], text: str) -> str:
    """Empty where there is no such day or time, which whoever writes a report is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            kind(text)
        except ValueError:
            return ""
    return text


def _line(text: str, most: int) -> str:
    return text if len(text) <= most and text.isprintable() and "\\" not in text else ""
