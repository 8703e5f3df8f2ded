"""Pack what travels with a job: its command and its small YAML files, checked before they leave.

Everything else in a command must mean the same on the cluster's machines. Knows nothing of Ray.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ich_ray.cluster.secrets import refuse_secrets
from ich_ray.data.prepare.label_columns import read_columns
from ich_ray.errors import ConfigError, nearest
from ich_ray.notify.given_address import FLAG as _NOTIFY
from ich_ray.notify.given_address import VARIABLE
from ich_ray.search.export.trackers import TRACKERS
from ich_ray.search.space.yaml_file import load_space

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["VERBS", "Parcel", "pack"]

VERBS = (
    "prepare",
    "search",
    "confirm",
    "retrain",
    "sequence",
    "calibrate",
    "adapt",
    "evaluate",
    "report",
    "run",
    "predict",
    "audit",
    "doctor",
)
# Whose value is a place; every argument of these verbs that belongs to no flag is one too.
_PLACES = (
    "--out",
    "--labels",
    "--examinations",
    "--dataset",
    "--warm-start",
    "--storage",
    "--heatmaps",
    "--dicom-sr",
    "--cluster-file",
    "an argument",
)
# Flags without a value.
_SWITCHES = (
    "--",
    "--conservative",
    "--from-confirmation",
    "--grow",
    "--help",
    "--json",
    "--no-grow",
    "--no-slabs",
    "--plan",
    "--resume",
    "--share-trunks",
    "--without-preamble",
)
# Whose value is a YAML file of this machine, and what reads it.
_TAKEN: dict[str, Callable[[Path], object]] = {"--space": load_space, "--columns": partial(read_columns, ())}
# Whose value is a tracker and its place.
_TARGETS = ("--export",)
_LARGEST_BYTES = 1 << 20


@dataclass(frozen=True)
class Parcel:
    """A command as the job runs it, and the files that it finds in its working folder, by name."""

    command: tuple[str, ...]
    files: dict[str, bytes] = field(default_factory=dict)


def pack(command: Sequence[str]) -> Parcel:
    """Make a command ready to travel.

    Raises:
        ConfigError: it is none for a cluster, a place in it means nothing there, or it holds a secret.
        SpaceError: the search space is not right.
    """
    if not command or command[0] not in VERBS:
        got = repr(command[0]) + nearest(command[0], VERBS) if command else "nothing"
        raise ConfigError(f"submit: a job is one of {', '.join(VERBS)}, got {got}; try `-- search ...`")
    _check_notify(command)
    refuse_secrets("\n".join(command), "submit")
    files: dict[str, bytes] = {}
    packed, flag = [command[0]], ""
    for word in command[1:]:
        is_flag = word.startswith("--")
        name, equals, value = word.partition("=") if is_flag else (flag or "an argument", "", word)
        if name in _TAKEN and value:
            value = _take(name, value, files)
        elif name == _NOTIFY and value:
            _check_place(value.removeprefix("@"), _NOTIFY)
        elif name in _TARGETS and value:
            _check_target(value, name)
        elif name in _PLACES and value:
            _check_place(value, name)
        packed.append(f"{name}={value}" if equals else word if is_flag else value)
        flag = word if is_flag and not equals and word not in _SWITCHES else ""
    return Parcel(tuple(packed), files)


def _check_notify(command: Sequence[str]) -> None:
    """The command of a job is shown to everyone who may see the cluster's jobs, and stands in its logs."""
    given = (
        following if word == _NOTIFY else word.removeprefix(f"{_NOTIFY}=")
        for word, following in zip(command, [*command[1:], ""], strict=True)
        if word.partition("=")[0] == _NOTIFY
    )
    if not all(one.startswith("@") for one in given):
        raise ConfigError(
            "submit: --notify: whoever sees a job sees its command, so it must be @FILE, a file of the cluster's head "
            "with the address, got something else; name one, or leave it out and start Ray on the head with "
            f"{VARIABLE} set"
        )


def _take(flag: str, where: str, files: dict[str, bytes]) -> str:
    """Read a YAML file of this machine; returns its name in the job's working folder."""
    path = Path(where).expanduser()
    if not path.is_file():
        _check_place(where, flag, "a file of this machine, or ")
        return where
    if path.stat().st_size > _LARGEST_BYTES:
        raise ConfigError(f"{flag} {where}: must be at most 1 MB, got {path.stat().st_size:,} bytes; check the path")
    data = path.read_bytes()
    _TAKEN[flag](path)
    refuse_secrets(data.decode("utf-8", "replace"), f"{flag} {where}")
    if files.get(path.name, data) != data:
        raise ConfigError(f"{flag} {where}: another file of this name travels with the job; give it another name")
    files[path.name] = data
    return path.name


def _check_target(text: str, flag: str) -> None:
    """What is no path is checked on the cluster, where its library is."""
    tracker, _, place = text.partition("=")
    if TRACKERS[tracker].is_path:
        _check_place(place, f"{flag} {tracker}")


def _check_place(where: str, name: str, also: str = "") -> None:
    if not os.path.isabs(where) and "://" not in where:  # noqa: PTH117  (a path of another machine)
        raise ConfigError(
            f"submit: {name}: must be {also}an absolute path that every machine of the cluster sees, or a URI, got "
            f"{where!r}; say where it lies on the cluster"
        )
