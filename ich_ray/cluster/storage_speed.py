"""Storage as one machine meets it: files written, read by others, and how long that takes.

Every file proves itself: what stands in it is a digest and the bytes that it is of.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ich_ray.errors import first_line
from ich_ray.storage import Record, Seconds, is_local, locate, read_bytes, write_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from upath import UPath

__all__ = ["StorageSpeed", "read_others", "write_own"]

_LARGE_BYTES, _SMALL_BYTES = 8 << 20, 64
# Others of this machine may be busy meanwhile, so that the best counts; what takes long is told well enough by once.
_TIMES, _LONG_S = 3, 5.0
_STATE_MB = 100.0
_Rate = Annotated[float, Field(gt=0)]


class StorageSpeed(Record):
    """How fast a machine writes and reads, all machines at once.

    Attributes:
        latency_s: of a small file that is written as a report of a trial is.
        write_mb_per_s, read_mb_per_s: of one of some MB, the best of some; None if it was not measured.
    """

    latency_s: Seconds
    write_mb_per_s: _Rate
    read_mb_per_s: _Rate | None = None

    @property
    def state_s(self) -> float:
        """How long it writes a state of 100 MB."""
        return _STATE_MB / self.write_mb_per_s


def write_own(folder: UPath, name: str) -> StorageSpeed:
    """Write files of this name into the folder, and measure."""
    latency_s = _best(partial(_write, folder / name, _SMALL_BYTES))
    return StorageSpeed(
        latency_s=latency_s, write_mb_per_s=_rate(_best(partial(_write, _large(folder, name), _LARGE_BYTES)))
    )


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
    problems: list[str] = []
    took_s = _best(lambda: problems.append(_problem(large)), before=lambda: _drop_cached(large))
    problem = next(filter(None, problems), "")
    return (wrong | {large_of: problem} if problem else wrong), None if problem else _rate(took_s)


def _best(act: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """The least time that it takes."""
    best = math.inf
    for _ in range(_TIMES):
        before()
        began = time.perf_counter()
        act()
        best = min(best, time.perf_counter() - began)
        if best > _LONG_S:
            break
    return best


def _write(path: UPath, size: int) -> None:
    write_bytes(path, _sealed(size))


def _large(folder: UPath, name: str) -> UPath:
    return folder / f"{name}.large"


def _sealed(size: int) -> bytes:
    data = os.urandom(size)
    return hashlib.sha256(data).digest() + data


def _problem(path: UPath) -> str:
    try:
        data = read_bytes(path)
    except Exception as error:  # noqa: BLE001  (credentials, mounts, permissions: all are findings)
        return f"{type(error).__name__}: {first_line(error)}"
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
