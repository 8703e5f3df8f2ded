"""Storage as one machine meets it: files written, read by others, and how long that takes.

Every file proves itself: what stands in it is a digest and the bytes that it is of.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ich_ray.storage import Record, Seconds, is_local, locate, read_bytes, write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from upath import UPath

__all__ = ["StorageSpeed", "read_others", "write_own"]

_LARGE_BYTES, _SMALL_BYTES, _SMALL_WRITES = 8 << 20, 64, 3
_STATE_MB = 100.0
_Rate = Annotated[float, Field(gt=0)]


class StorageSpeed(Record):
    """How fast a machine writes and reads, all machines at once.

    Attributes:
        latency_s: of a small file that is written as a report of a trial is.
        write_mb_per_s, read_mb_per_s: of one of some MB, without that; None if it was not measured.
    """

    latency_s: Seconds
    write_mb_per_s: _Rate
    read_mb_per_s: _Rate | None = None

    @property
    def state_s(self) -> float:
        """How long it writes a state of 100 MB."""
        return self.latency_s + _STATE_MB / self.write_mb_per_s


def write_own(folder: UPath, name: str) -> StorageSpeed:
    """Write files of this name into the folder, and measure."""
    took = []
    for _ in range(_SMALL_WRITES):
        data, began = _sealed(_SMALL_BYTES), time.perf_counter()
        write_bytes(folder / name, data)
        took.append(time.perf_counter() - began)
    latency_s = statistics.median(took)
    data, began = _sealed(_LARGE_BYTES), time.perf_counter()
    write_bytes(_large(folder, name), data)
    took_s = time.perf_counter() - began
    # Where the small files met a busy moment, the rest would be nothing.
    return StorageSpeed(latency_s=latency_s, write_mb_per_s=_rate(max(took_s - latency_s, took_s / 10)))


def read_others(folder: UPath | str, names: Iterable[str], large_of: str) -> tuple[dict[str, str], float | None]:
    """Read what these have written.

    Args:
        folder: in which they wrote.
        names: of the files.
        large_of: whose large file is read, too, to measure.

    Returns:
        what is wrong with files, by their names; MB/s of the large one.
    """
    folder = locate(folder)
    wrong = {name: problem for name in names if (problem := _problem(folder / name))}
    large = _large(folder, large_of)
    _drop_cached(large)
    began = time.perf_counter()
    problem = _problem(large)
    took_s = time.perf_counter() - began
    return (wrong | {large_of: problem} if problem else wrong), None if problem else _rate(took_s)


def _large(folder: UPath, name: str) -> UPath:
    return folder / f"{name}.large"


def _sealed(size: int) -> bytes:
    data = os.urandom(size)
    return hashlib.sha256(data).digest() + data


def _problem(path: UPath) -> str:
    try:
        data = read_bytes(path)
    except Exception as error:  # noqa: BLE001  (credentials, mounts, permissions: all are findings)
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return "" if hashlib.sha256(data[32:]).digest() == data[:32] else "other bytes than were written"


def _rate(took_s: float) -> float:
    return _LARGE_BYTES / 1e6 / max(took_s, 1e-4)


def _drop_cached(path: UPath) -> None:
    """Let the kernel forget what this machine itself has written, where it can."""
    if not is_local(path) or not hasattr(os, "posix_fadvise"):
        return
    try:
        descriptor = os.open(str(path), os.O_RDONLY)
    except OSError:  # which reading it tells
        return
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
