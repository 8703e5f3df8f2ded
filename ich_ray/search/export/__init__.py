"""Export a search from its ledger to the formats of other tools.

A snapshot never writes over something that is there; a stream adds what its target lacks. Knows which tools there are
and what must not be overwritten; how each is written is in the module of its name.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import combinations
from typing import TYPE_CHECKING

from ich_ray.errors import ConfigError
from ich_ray.results import open_search
from ich_ray.storage import Location, exists, is_local, locate, system_reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from upath import UPath

__all__ = ["export"]


def export(
    search: Location,
    *,
    tensorboard: Location | None = None,
    optuna: Location | None = None,
    mlflow: str | None = None,
    candidates: Location | None = None,
    to: Sequence[str] | None = None,
    follow: bool = False,
) -> list[str]:
    """Write the trials of a search for other tools; running trials as far as they have come.

    Args:
        search: a search folder or URI, running or finished.
        tensorboard: a new folder: one folder of event files per trial.
        optuna: a new SQLite file: an Optuna storage with one study.
        mlflow: a tracking URI: one new experiment there, one run per trial.
        candidates: a new YAML file: a search space that lists these very trials, for another dataset or machine.
        to: trackers that are given what they lack, `NAME=PLACE` each; see `ich_ray.search.export.trackers`.
        follow: go on until the search has ended; the first three are then such trackers, too.

    Returns:
        How to open each of them, one line each.

    Raises:
        ConfigError: nothing was asked for, it is there already, or it cannot be written; nothing was written over.
        SpaceError: a trial is of no space that this version knows.
        IchRayError: a tracker could not be written.
    """
    if to or follow:
        from ich_ray.search.export.follow import stream

        places = {"tensorboard": tensorboard, "optuna": optuna, "mlflow": mlflow, "candidates": candidates}
        new = {name: str(place) for name, place in places.items() if place is not None}
        return stream(search, [*(to or ()), *_streamed(new, follow)], follow=follow)
    if tensorboard is None and optuna is None and mlflow is None and candidates is None:
        raise ConfigError(
            "export: at least one of --tensorboard, --optuna, --mlflow and --candidates must be given, got none; "
            "or --to, which adds to what is there"
        )
    found = open_search(search)
    folder = _new("--tensorboard", tensorboard) if tensorboard is not None else None
    file = _new("--optuna", optuna) if optuna is not None else None
    space = _new("--candidates", candidates) if candidates is not None else None
    for (flag, one), (other_flag, other) in combinations(
        (("--tensorboard", folder), ("--optuna", file), ("--candidates", space)), 2
    ):
        if one is not None and one == other:
            raise ConfigError(f"{flag}, {other_flag}: must be two places, got {one} for both; choose another for one")
    said = []
    if folder is not None:
        from ich_ray.search.export.tensorboard import write_events

        with _written(f"--tensorboard {folder}"):
            write_events(found, folder)
        said.append(f"tensorboard --logdir {folder}")
    if file is not None:
        from ich_ray.search.export.optuna import write_study

        with _written(f"--optuna {file}"):
            write_study(found, file)
        said.append(f"optuna-dashboard sqlite:///{file}")
    if mlflow is not None:
        from ich_ray.search.export.mlflow import write_experiment

        with _written(f"--mlflow {mlflow}"):
            write_experiment(found, mlflow)
        said.append(f"mlflow ui --backend-store-uri {mlflow}")
    if space is not None:
        from ich_ray.search.export.candidates import write_candidates

        with _written(f"--candidates {space}"):
            said.append(write_candidates(found, space))
    return said


def _streamed(new: dict[str, str], follow: bool) -> list[str]:
    """The trackers that flags of what is new stand for, where a search is followed."""
    if "candidates" in new:
        raise ConfigError("--candidates: a list of trials is written once, got --follow or --to; use two commands")
    if new and not follow:
        raise ConfigError(f"--{min(new)}: writes what is new, got --to, which adds; use two commands, or add --follow")
    return [f"{name}={place}" for name, place in new.items()]


@contextmanager
def _written(where: str) -> Iterator[None]:
    """A block that writes to `where`, a flag and its value, and says so if it cannot."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{where}: must be a place that can be written, got {system_reason(error)}; choose another"
        ) from None


def _new(flag: str, where: Location) -> UPath:
    """A place on this machine where nothing is yet."""
    if not str(where):
        raise ConfigError(f"{flag}: must be a path, got an empty text; name one that is new")
    path = locate(where)
    if not is_local(path):
        raise ConfigError(f"{flag} {path}: must be a local path, got a URI; write it here and copy it")
    if exists(path):
        raise ConfigError(f"{flag} {path}: must be new, got one that is there; choose another name or remove it")
    return path
