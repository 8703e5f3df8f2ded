"""Files of object storage on this machine: fetched once for all processes, verified, the oldest dropped.

Copies lie in `$ICH_RAY_CACHE`, else in the user's cache folder: a folder per dataset, each file under its SHA-256.
Knows nothing of what they hold. All of it may be removed when nothing runs.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from upath import UPath

from ich_ray import progress
from ich_ray.errors import ConfigError, IchRayError, IntegrityError
from ich_ray.storage import sha256, write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["local_copy"]

_DEFAULT_GB = 200.0
_USED = ".used"
# Hashing costs 1 s per GB, too much for every trial of a search: whoever writes to a file changes its times, and a disk
# that loses what nobody wrote is found out within a day.
_TRUSTED_S = 24 * 3600.0


def local_copy(path: UPath, digest: str, dataset: str) -> Path:
    """The copy of a remote file on this machine, right to the last byte.

    A copy that was changed or damaged is fetched again. When all copies together exceed `$ICH_RAY_CACHE_GB` (200),
    datasets are dropped, least recently used first, but never this one; who has mapped a dropped file keeps it.

    Args:
        path: what to fetch.
        digest: its SHA-256, in hexadecimal.
        dataset: what it belongs to, a name.

    Raises:
        ConfigError: `$ICH_RAY_CACHE_GB` is no size.
        IchRayError: the copy cannot be written.
        IntegrityError: the remote file is missing or another one.
    """
    home = _home()
    copy = home / dataset / f"{digest}{path.suffix}"
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        (copy.parent / _USED).touch()
        if not _is_trusted(copy):
            with FileLock(str(copy.with_suffix(".lock"))):
                if not _is_trusted(copy):
                    _provide(path, digest, copy)
    except OSError as error:
        raise IchRayError(
            f"{home}: copies of remote files must be written, got {error.strerror or error}; free space, or name "
            "another folder in ICH_RAY_CACHE"
        ) from None
    return copy


def _home() -> Path:
    cache = os.environ.get("ICH_RAY_CACHE")
    home = Path(cache) if cache else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ich_ray"
    return home.expanduser()


def _provide(path: UPath, digest: str, copy: Path) -> None:
    """Verify the copy that is there, or fetch it."""
    if not copy.exists() or sha256(UPath(copy)) != digest:
        if copy.exists():
            progress.say(f"{copy}: damaged since it was fetched; fetching it again")
        data = _fetched(path, digest)
        _make_room(copy.parent, len(data))
        write_bytes(UPath(copy), data)
    write_bytes(UPath(_stamp(copy)), _facts(copy).encode())


def _fetched(path: UPath, digest: str) -> bytes:
    try:
        data: bytes = path.read_bytes()
    except FileNotFoundError:
        raise IntegrityError(f"{path}: a file of the manifest must be there, got none") from None
    if sha256(data) != digest:
        raise IntegrityError(f"{path}: SHA-256 must equal the manifest's; prepare the dataset again")
    return data


def _stamp(copy: Path) -> Path:
    """What the copy looked like when it was last verified."""
    return copy.with_suffix(".verified")


def _facts(copy: Path) -> str:
    facts = copy.stat()
    return f"{facts.st_ino} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}"


def _is_trusted(copy: Path) -> bool:
    try:
        stamp = _stamp(copy)
        return stamp.read_text() == _facts(copy) and time.time() - stamp.stat().st_mtime < _TRUSTED_S
    except FileNotFoundError:
        return False


def _make_room(folder: Path, needed_bytes: int) -> None:
    """Drop other datasets until `needed_bytes` more are within the limit, or there is no other."""
    limit_bytes = _limit_gb() * 1e9
    sizes = {each: _size_bytes(each.iterdir()) for each in folder.parent.iterdir() if (each / _USED).exists()}
    total_bytes = sum(sizes.values()) + needed_bytes
    for each in sorted(sizes.keys() - {folder}, key=lambda each: (each / _USED).stat().st_mtime_ns):
        if total_bytes <= limit_bytes:
            return
        progress.say(f"{each}: dropped, as the copies of remote files exceed {limit_bytes / 1e9:g} GB")
        shutil.rmtree(each, ignore_errors=True)
        total_bytes -= sizes[each]


def _size_bytes(files: Iterable[Path]) -> int:
    total = 0
    for file in files:
        try:
            total += file.stat().st_size
        except FileNotFoundError:  # another process has renamed or dropped it
            continue
    return total


def _limit_gb() -> float:
    text = os.environ.get("ICH_RAY_CACHE_GB") or str(_DEFAULT_GB)
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not limit >= 0:
        raise ConfigError(f"ICH_RAY_CACHE_GB: a size in GB must be given, got {text!r}")
    return limit
