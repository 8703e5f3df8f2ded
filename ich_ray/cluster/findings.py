"""One line of `ich-ray doctor`: what is so, where, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding"]


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes:
        check: its name.
        state: an error would break a search or let strangers in; a warning makes it slow or may become an error.
        found: a sentence that is complete without the other fields.
        remedy: what to do next, empty if nothing.
        machines: that it is about; none if it is about all, or about no machine.
    """

    state: Literal["ok", "warning", "error"]
    check: str
    found: str
    remedy: str = ""
    machines: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.state:8}{self.check:10}{self.found}{'; ' if self.remedy else ''}{self.remedy}"
