"""Trackers: what the trials of a search are written to while it runs, asked for as `NAME=PLACE`.

A tracker knows from its target what stands there, so that it may be ended at any moment and opened again. Reads no
ledger and never waits: follow.py does.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from ich_ray.errors import ConfigError
from ich_ray.registry import Registry
from ich_ray.storage import holds_credentials, own_temporary_folder, private_folder

if TYPE_CHECKING:
    from ich_ray.search_records import SearchRecord
    from ich_ray.trial_records import TrialResult

__all__ = ["TRACKERS", "StreamTarget", "Tracker", "local_path", "parse_target", "search_identity"]


class Tracker(ABC):
    """An open target of one search.

    What raises anything but an `IchRayError` is tried again, on a new one.

    Args:
        place: what stands behind `NAME=`.
        record: of the search.

    Attributes:
        is_path: whether its places are paths of this machine.
        command: how people open it.
    """

    is_path: ClassVar[bool] = False
    command: str = ""

    @abstractmethod
    def __init__(self, place: str, record: SearchRecord) -> None:
        """Open the target, or make it.

        Raises:
            ConfigError: it is of another search, or no such target; nothing has been written.
        """

    @classmethod
    def check(cls, place: str) -> None:
        """Check what can be told before anything is opened, such as a library that is missing.

        Raises:
            ConfigError: it cannot be opened as it is asked for.
        """
        del place

    @classmethod
    def lock(cls, place: str, record: SearchRecord) -> Path:
        """The file that is locked while a process writes the target; beside it, where it is a path."""
        if cls.is_path:
            path = local_path(place)
            return path.with_name(f".{path.name}.stream.lock")
        named = "\n".join([cls.__name__, place, *map(str, search_identity(record).values())])
        folder = private_folder(own_temporary_folder() / "streams")
        return folder / f"{hashlib.sha256(named.encode()).hexdigest()[:32]}.lock"

    @abstractmethod
    def write(self, trial: TrialResult) -> None:
        """Write what the target lacks of a trial: its begin, its reports, and its end once it has ended."""

    def close(self) -> None:
        """Let go of the target; what was written stays."""
        return


# One from outside: `TRACKERS.register("its_name", ItsClass)`.
TRACKERS: Registry[type[Tracker]] = Registry(
    "trackers",
    {
        "tensorboard": "ich_ray.search.export.tensorboard_stream:EventStream",
        "mlflow": "ich_ray.search.export.mlflow_stream:RunStream",
        "wandb": "ich_ray.search.export.wandb_stream:WandbStream",
        "optuna": "ich_ray.search.export.optuna_stream:StudyStream",
    },
    home=__name__,
)


class StreamTarget(NamedTuple):
    """A tracker by its name, and the place that it writes."""

    name: str
    place: str

    @property
    def tracker(self) -> type[Tracker]:
        return TRACKERS[self.name]

    def __str__(self) -> str:
        return f"{self.name}={self.place}"


def parse_target(text: str, flag: str) -> StreamTarget:
    """`tensorboard=EVENTS` as a target that can be opened as far as is known.

    Raises:
        ConfigError: it cannot; one line says why.
    """
    name, equals, place = text.partition("=")
    target = StreamTarget(name.strip(), place.strip())
    tracker = target.tracker  # first, because its error names all
    if not equals or not target.place:
        raise ConfigError(f"{flag} {text}: must be NAME=PLACE, got no place; try {target.name}=PLACE")
    if holds_credentials(target.place):
        raise ConfigError(
            f"{flag} {target.name}: an address must hold no password, got one; set it in the environment, such as "
            "MLFLOW_TRACKING_PASSWORD"
        )
    tracker.check(target.place)
    return target


def local_path(place: str) -> Path:
    """A place of a tracker that writes to paths of this machine."""
    return Path(place).expanduser().absolute()


def search_identity(record: SearchRecord) -> dict[str, str | int | float]:
    """What tells a search from any other, as a target keeps it: neither a path nor a machine."""
    return record.model_dump(mode="json", include={"name", "created", "fingerprint", "seed"})
