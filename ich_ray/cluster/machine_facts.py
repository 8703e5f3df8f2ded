"""Facts of one machine: versions, GPUs, storage, clock, disk, ports, token.

Judges nothing and knows no Ray. Runs in this process or in a task on any node of a cluster, so it needs nothing but
this package.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ich_ray import __version__
from ich_ray.cluster.access import token_file
from ich_ray.storage import Count, Integer, Line, Record, Text, locate, write_bytes

__all__ = ["Facts", "look", "open_ports"]

_PACKAGES = ("ray", "torch", "torchvision", "timm", "optuna", "numpy", "pyarrow")
_LISTEN = "0A"


class Facts(Record):
    """One machine.

    Attributes:
        gpus: that Ray was told of; None outside a cluster.
        torch_gpus: that PyTorch sees, or why it sees none at all.
        storage: what went wrong with it, empty if nothing, None if none was named.
        sent, received: seconds since 1970 on the asking machine; `began` and `answered` on this one.
        open_ports: that listen to other machines.
        token_mode: of the token's file; None without one.
    """

    machine: Text
    is_head: bool = False
    versions: dict[Line, Line]
    gpus: float | None = None
    torch_gpus: Count | Text = 0
    storage: Text | None = None
    sent: float = 0.0
    began: float = 0.0
    answered: float = 0.0
    received: float = 0.0
    disk_free_bytes: Integer = 0
    shm_free_bytes: Integer | None = None
    open_ports: tuple[Annotated[int, Field(ge=0, le=65535)], ...] = ()
    token_mode: Count | None = None
    token_file: Text = ""
    auth_mode: Text = ""


def look(machine: str, storage: str | None = None, witness: str = "", temporary: str | None = None) -> Facts:
    """The facts of this machine.

    Args:
        machine: what to call it; in `storage` it writes a file of this name.
        storage: a folder or URI that every machine must read and write.
        witness: what stands in the file `witness` there.
        temporary: where Ray keeps its files; the folder for temporary files if not given.
    """
    began, token = time.time(), token_file()
    shared = Path("/dev/shm")  # noqa: S108  (Ray's object store lies there)
    return Facts(
        machine=machine,
        versions=_versions(),
        torch_gpus=_torch_gpus(),
        storage=None if storage is None else _try_storage(storage, machine, witness),
        disk_free_bytes=shutil.disk_usage(temporary or tempfile.gettempdir()).free,
        shm_free_bytes=shutil.disk_usage(shared).free if shared.exists() else None,
        open_ports=open_ports(),
        token_mode=token.stat().st_mode & 0o777 if token.is_file() else None,
        token_file=str(token),
        auth_mode=os.environ.get("RAY_AUTH_MODE", ""),
        began=began,
        answered=time.time(),
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "ich_ray": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def _torch_gpus() -> int | str:
    try:
        import torch

        return torch.cuda.device_count()
    except Exception as error:  # noqa: BLE001  (a broken installation fails in any way; that is the finding)
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _try_storage(storage: str, machine: str, witness: str) -> str:
    try:
        folder = locate(storage)
        if witness and (folder / "witness").read_text() != witness:
            return "another file than the one just written there"
        write_bytes(folder / machine, witness.encode())
        if (folder / machine).read_text() != witness:
            return "another file than it wrote"
    except Exception as error:  # noqa: BLE001  (credentials, mounts, permissions, missing drivers: all are findings)
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return ""


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
