"""Types of the fields of a record: texts, hashes, counts, times, addresses, plain JSON.

Each refuses what could be a path, a command to a terminal or an allocation in its place. Numbers are finite everywhere;
that is a rule of all records.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from ich_ray.storage.addresses import without_credentials

__all__ = [
    "Address",
    "Count",
    "FeaturesKey",
    "Fingerprint",
    "Integer",
    "JsonValue",
    "Line",
    "PatientHash",
    "RelativeFile",
    "Seconds",
    "Seed",
    "Sha256",
    "Share",
    "Text",
    "Time",
]

_LONGEST_LINE = 10_000
_LONGEST_TEXT = 1_000_000
_DEEPEST = 16
_WORD = 2**63
_LAST_SECOND = 253_402_300_799  # of the year 9999, the last that dates can tell


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"printable characters only, not {without_credentials(text)[:80]!r},")
    return text


def _filtered(text: str) -> str:
    """Control characters as their escapes; lines stay lines."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else ascii(sign)[1:-1] for sign in text)


def _below(file: str) -> str:
    if not file or "\\" in file or "://" in file or any(part in {"", ".", ".."} for part in file.split("/")):
        raise ValueError(f"a file below this folder, not {without_credentials(file)[:80]!r},")
    return file


def _address(text: str) -> str:
    """An address as it may be stored and shown; files of version 0.1.0 may hold a password."""
    if text.startswith("-"):
        raise ValueError(f"a path or an address, not an option such as {without_credentials(text)[:80]!r},")
    return without_credentials(text)


def _plain(value: Any, depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise ValueError(f"at most {_DEEPEST} levels of lists and mappings")
    if isinstance(value, str):
        return _printable(value)
    if isinstance(value, int) and not -_WORD <= value < _WORD:
        raise ValueError("numbers of at most 64 bits")
    if isinstance(value, float) and value - value != 0:
        raise ValueError("finite numbers only")
    if isinstance(value, dict):
        for key, held in value.items():
            _plain(key, depth + 1)
            _plain(held, depth + 1)
    elif isinstance(value, list | tuple):
        for held in value:
            _plain(held, depth + 1)
    return value


# A text that is shown to people as it is: it cannot steer their terminal.
Line = Annotated[str, Field(max_length=_LONGEST_LINE), AfterValidator(_printable)]
# A text of several lines, such as an error of a library: what could steer a terminal is escaped.
Text = Annotated[str, Field(max_length=_LONGEST_TEXT), AfterValidator(_filtered)]
# A name in a record that somebody else may have written: it cannot lead out of the folder that holds the record.
RelativeFile = Annotated[str, AfterValidator(_below), AfterValidator(_printable), Field(max_length=4096)]
# Where something lies: a path or an URI, without what only its owner may know.
Address = Annotated[str, Field(max_length=4096), AfterValidator(_printable), AfterValidator(_address)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# Of a dataset (data/prepare/join.py): the first half of a SHA-256.
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
# Of a patient in patients.json (bundle/training_patients.py).
PatientHash = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
# Of features that frozen layers make (model/trunk.py).
FeaturesKey = Annotated[str, Field(pattern=r"^[0-9a-f]{24}$")]
# How many of something; a double holds each of them.
Count = Annotated[int, Field(ge=0, le=2**53)]
Integer = Annotated[int, Field(ge=-_WORD, lt=_WORD)]
# Random generators take any size of it.
Seed = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
# Seconds since 1970.
Time = Annotated[float, Field(ge=0, le=_LAST_SECOND)]
# Whatever JSON can hold, to be read by who knows what it means: finite, printable, not absurdly deep.
JsonValue = Annotated[Any, AfterValidator(_plain)]
