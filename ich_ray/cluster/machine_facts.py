"""Facts of one machine: versions, devices, storage, clock, disks, ports, token, cloud.

Judges nothing and knows no Ray. Runs in this process or in a task on any node of a cluster, so it needs nothing but
this package. What hangs or fails is left out, and named.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from ich_ray.cache import cache_folder, existing_part
from ich_ray.cluster.access import token_file
from ich_ray.cluster.device_facts import ASKED_WITHIN_S, Devices, ask_devices
from ich_ray.cluster.metadata_service import Metadata, ask_metadata
from ich_ray.cluster.storage_speed import StorageSpeed, write_own
from ich_ray.cluster.time_limits import Question, answers
from ich_ray.errors import first_line
from ich_ray.storage import Count, Line, Record, Text, is_local, locate
from ich_ray.versions import version_reader

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Facts", "look", "open_ports"]

# Where a Ray of one machine keeps its files.
_TMP = "/tmp"  # noqa: S108
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (Ray's object store lies there)
_LISTEN = "0A"
_PAGE = 4096
# What asks a disk, and what writes some MB to a share.
_DISK_WITHIN_S, _STORAGE_WITHIN_S = 20.0, 60.0


class Facts(Record):
    """One machine.

    Attributes:
        machine: what to call it.
        versions: of packages; none where the machine did not tell them.
        silent: why nothing is known of it, but for its versions; empty if all else is.
        unanswered: what could not be told, by the name of the check, and why.
        gpus: that Ray was told of; None outside a cluster.
        storage: what went wrong with it, empty if nothing, None if none was named.
        speed: of that storage; None if it was not measured.
        unread: other machines whose files it does not read there, and why.
        ray_folder: why no Ray can be started in its folder, empty if one can, None in a cluster, where one runs.
        home: of its user, if it cannot be written; empty if it can.
        sent, received: seconds since 1970 on the asking machine; `began` and `answered` on this one.
        disk_free_bytes: of the disk on which Ray keeps its files; with `disk_total_bytes`, None if it was not told.
        disk: why nothing can be written there, empty if it can.
        cache: why no copy of a remote dataset can be written, empty if one can, None where none will be.
        open_ports: that listen to other machines.
        token_mode: of the token's file; None without one.
        cloud: by the firmware, empty if none; then `metadata`, why its service is not heard, empty if it is.
    """

    machine: Text
    is_head: bool = False
    versions: dict[Line, Line]
    silent: Text = ""
    unanswered: dict[Line, Text] = Field(default_factory=dict)
    gpus: float | None = None
    devices: Devices = Devices()
    storage: Text | None = None
    speed: StorageSpeed | None = None
    unread: dict[Line, Text] = Field(default_factory=dict)
    ray_folder: Text | None = None
    home: Text = ""
    sent: float = 0.0
    began: float = 0.0
    answered: float = 0.0
    received: float = 0.0
    disk_free_bytes: Count | None = None
    disk_total_bytes: Count | None = None
    disk: Text = ""
    cache_folder: Text = ""
    cache_free_bytes: Count | None = None
    cache: Text | None = None
    shm_free_bytes: Count | None = None
    open_ports: tuple[Annotated[int, Field(ge=0, le=65535)], ...] = ()
    token_mode: Count | None = None
    token_file: Text = ""
    auth_mode: Text = ""
    cloud: Line = ""
    metadata: Text = ""


class _Disk(NamedTuple):
    """The disk of a folder, and why nothing can be written there, empty if it can."""

    folder: str
    free_bytes: int
    total_bytes: int
    problem: str


def look(
    machine: str,
    storage: str | None = None,
    witness: str = "",
    temporary: str | None = None,
    *,
    name: str | None = None,
    is_of_ray: bool = False,
) -> Facts:
    """The facts of this machine.

    Args:
        machine: what to call it.
        storage: a folder or URI that every machine must read and write.
        witness: what stands in the file `witness` there.
        temporary: where Ray keeps its files; where it would, if not given.
        name: of the files that it writes in `storage`; that of the machine if not given.
        is_of_ray: whether this is a task of Ray's.
    """
    began, disk = time.time(), partial(Question, _DISK_WITHIN_S)
    questions = {
        "versions": disk(version_reader()),
        "gpus": Question(ASKED_WITHIN_S + 5, partial(ask_devices, is_of_ray)),
        "home": disk(_unwritable_home),
        "disk": disk(partial(_ask_disk, temporary or _TMP)),
        "shm": disk(_shared_memory),
        "dashboard": disk(open_ports),
        "token": disk(_token),
        "metadata": disk(ask_metadata),
    }
    if storage is not None:
        questions["storage"] = Question(_STORAGE_WITHIN_S, partial(_try_storage, storage, name or machine, witness))
    if os.environ.get("ICH_RAY_CACHE") or (storage is not None and not is_local(locate(storage))):
        questions["cache"] = disk(_ask_cache)
    told, missing = answers(questions)
    return Facts(
        machine=machine,
        unanswered={check: why for check, why in missing.items() if check not in {"storage", "cache"}},
        auth_mode=os.environ.get("RAY_AUTH_MODE", ""),
        began=began,
        answered=time.time(),
        **_fields(told, missing),
    )


def _fields(told: Mapping[str, Any], missing: Mapping[str, str]) -> dict[str, Any]:
    """Answers as fields of a record, with defaults for those that are missing."""
    path, mode = told.get("token", ("", None))
    metadata = told.get("metadata", Metadata())
    fields = {
        "versions": told.get("versions", {}),
        "devices": told.get("gpus", Devices()),
        "home": told.get("home", ""),
        "shm_free_bytes": told.get("shm"),
        "open_ports": told.get("dashboard", ()),
        "token_file": path,
        "token_mode": mode,
        "cloud": metadata.cloud,
        "metadata": metadata.problem,
        "speed": told.get("storage"),
        "storage": "" if "storage" in told else missing.get("storage"),
        "cache": missing.get("cache"),
    }
    if "disk" in told:
        _, fields["disk_free_bytes"], fields["disk_total_bytes"], fields["disk"] = told["disk"]
    if "cache" in told:
        fields["cache_folder"], fields["cache_free_bytes"], _, fields["cache"] = told["cache"]
    return fields


def _ask_disk(folder: str) -> _Disk:
    room = shutil.disk_usage(folder)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PAGE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return _Disk(folder, room.free, room.total, f"{folder}: {first_line(error)}")
    return _Disk(folder, room.free, room.total, "")


def _ask_cache() -> _Disk:
    """The disk of copies of remote datasets; their folder is made by who makes the first."""
    folder = cache_folder()
    return _ask_disk(str(existing_part(folder)))._replace(folder=str(folder))


def _shared_memory() -> int | None:
    return shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.exists() else None


def _token() -> tuple[str, int | None]:
    """Where it would lie, and who may read it."""
    path = token_file()
    return str(path), path.stat().st_mode & 0o777 if path.is_file() else None


def _unwritable_home() -> str:
    """The home of this user, or `none`; empty if it can be written."""
    home = os.path.expanduser("~")  # noqa: PTH111  (`Path.home` fails where none is known)
    if not os.path.isabs(home):  # noqa: PTH117
        return "none"
    return "" if os.access(home, os.W_OK) else home


def _try_storage(storage: str, name: str, witness: str) -> StorageSpeed:
    folder = locate(storage)
    if witness and (folder / "witness").read_text() != witness:
        raise ValueError("another file than the one just written there")
    return write_own(folder, name)


def open_ports(tables: tuple[str, ...] = ("/proc/net/tcp", "/proc/net/tcp6")) -> tuple[int, ...]:
    """Ports of this machine that listen on more than its loopback interface.

    Linux only; elsewhere none is told.
    """
    found = set()
    for table in map(Path, tables):
        lines = table.read_text().splitlines()[1:] if table.exists() else []
        for local, state in ((line.split()[1], line.split()[3]) for line in lines):
            address, _, port = local.partition(":")
            if state == _LISTEN and not _is_loopback(address):
                found.add(int(port, 16))
    return tuple(sorted(found))


def _is_loopback(address: str) -> bool:
    """Whether an address as the kernel prints it, words in the machine's byte order, is 127.0.0.0/8 or ::1."""
    words = [bytes.fromhex(address[start : start + 8]) for start in range(0, len(address), 8)]
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    return (
        packed[-4] == 127
        if len(packed) == 4 or packed[:12] == b"\0" * 10 + b"\xff\xff"
        else packed == b"\0" * 15 + b"\1"
    )
