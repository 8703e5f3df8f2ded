"""Every error a user can meet, drawn once.

    IchRayError                  the work failed                               exit 1
    ├── ConfigError              what was asked cannot be done as written      exit 2
    │   ├── SpaceError           a search space file
    │   ├── LabelError           a label table
    │   ├── RoleError            patients cannot be divided into roles
    │   └── SensitivityError     no threshold reaches the sensitivity asked for
    ├── RejectionLimitError      more inputs were rejected than allowed        exit 4
    ├── IntegrityError           a file is not what its manifest says          exit 5
    ├── Interrupted              a search was stopped before its end           exit 130
    ├── Rejection                one file is not accepted (becomes a row)
    └── TrialFailure             one trial ended (becomes a record)

Messages read *where: rule, got, what next*. Every error is built from positional arguments only, because
exceptions cross Ray processes by pickling and a keyword-only constructor fails on load.
"""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ConfigError",
    "IchRayError",
    "IntegrityError",
    "Interrupted",
    "LabelError",
    "Rejection",
    "RejectionLimitError",
    "RoleError",
    "SensitivityError",
    "SpaceError",
    "TrialFailure",
    "first_line",
    "nearest",
]


class IchRayError(Exception):
    """The work failed; the message says where, why and what to do."""

    exit_code: ClassVar[int] = 1


class ConfigError(IchRayError):
    """What was asked cannot be done as written: a flag, a path, a file of settings."""

    exit_code = 2


class SpaceError(ConfigError):
    """A search space that cannot be drawn from."""


class LabelError(ConfigError):
    """A label table that cannot be read without guessing."""


class RoleError(ConfigError):
    """Patients that cannot be divided into train, validation, calibration and test."""


class SensitivityError(ConfigError):
    """No threshold reaches the sensitivity asked for.

    Args:
        message: what it says.
        best: the highest sensitivity, or bound of it, that can be reached.
        threshold: where it is reached.
    """

    def __init__(self, message: str, best: float = math.nan, threshold: float = math.nan) -> None:
        super().__init__(message, best, threshold)
        self.best = best
        self.threshold = threshold

    def __str__(self) -> str:
        return str(self.args[0])


class RejectionLimitError(IchRayError):
    """More inputs were rejected than the limit allows; what was accepted is kept."""

    exit_code = 4


class IntegrityError(IchRayError):
    """A file on disk is not what its manifest says it is."""

    exit_code = 5


class Interrupted(IchRayError):
    """A search was stopped before its end, by Ctrl-C or SIGTERM; it can go on."""

    exit_code = 130


class Rejection(IchRayError):
    """One file is not accepted.

    Args:
        reason: the code from the contract, for example ``not_dicom``; never a tag value.
        detail: what was found, free of identifiers.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class TrialFailure(IchRayError):
    """One trial ended without a result.

    Args:
        reason: ``diverged``, ``out_of_memory`` or ``error``.
        detail: what happened.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


def first_line(error: BaseException) -> str:
    """What an error says, without the lines that may follow; its kind where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest known word, or an empty string."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
