"""File locks: one process at a time writes a folder, or has a task of its whole machine."""

from __future__ import annotations

import fcntl
import tempfile
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from ich_ray.errors import ConfigError
from ich_ray.storage.places import is_local, system_reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upath import UPath

__all__ = ["file_lock", "holds_machine_lock", "is_held"]


@contextmanager
def file_lock(lock: UPath, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold `lock` while the block runs, so that two processes never write one folder.

    Only local and shared folders can be locked; on object storage the block runs unguarded.

    Args:
        lock: a file of its own.
        what: is written, for the message.
        wait: for as long as another process holds it.

    Raises:
        ConfigError: another process holds it, and nobody waits; or it cannot be written.
    """
    if not is_local(lock):
        yield
        return
    guard = FileLock(str(lock))
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        guard.acquire(timeout=-1 if wait else 1)
    except Timeout:
        raise ConfigError(
            f"{lock.parent}: one process at a time may write {what}, another one is at work; wait for it or stop it"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{lock.parent}: must be a folder where {what} can be written, got {system_reason(error)}; choose another"
        ) from None
    try:
        yield
    finally:
        guard.release()


def is_held(lock: UPath) -> bool:
    """Whether a process is inside `file_lock(lock)` now; without writing, and never so on object storage."""
    if not is_local(lock) or lock.is_symlink() or not lock.is_file():  # a pipe would wait for a writer
        return False
    with Path(str(lock)).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def holds_machine_lock(name: str) -> bool:
    """Whether this process has a lock of its machine.

    It takes one that nobody has, and keeps it until it ends.

    Raises:
        OSError: it can be neither read nor written.
    """
    try:
        _machine_lock(name).acquire(blocking=False)
    except Timeout:
        return False
    return True


@lru_cache
def _machine_lock(name: str) -> FileLock:
    return FileLock(Path(tempfile.gettempdir()) / f"ich-ray-{name}.lock", mode=0o600)
