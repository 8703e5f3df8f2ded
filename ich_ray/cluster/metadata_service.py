"""Whether a machine of a cloud is told that it will be taken away: its metadata service, asked once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ich_ray.errors import ConfigError, first_line
from ich_ray.search.tune.notices import NO_ANSWER, service_of

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Metadata", "ask_metadata"]

_DMI = Path("/sys/class/dmi/id")


class Metadata(NamedTuple):
    """The cloud of this machine, empty if none, and why its service is not heard, empty if it is."""

    cloud: str = ""
    problem: str = ""


def ask_metadata(environ: Mapping[str, str] = os.environ, dmi: Path = _DMI) -> Metadata:
    """Whether the service answers as it would to a search; nobody is asked where no cloud is told."""
    try:
        service = service_of(environ, dmi)
    except ConfigError as error:
        return Metadata("a cloud", first_line(error))
    if service is None:
        return Metadata()
    try:
        service.ask()
    except NO_ANSWER as error:
        return Metadata(service.name, first_line(error))
    return Metadata(service.name)
