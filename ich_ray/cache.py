"""Local cache of blocks of object storage: fetched once, verified, the oldest dropped.

Copies lie in `$ICH_RAY_CACHE`, else in the user's cache folder: a folder per dataset, each file under its SHA-256.
Names are made here, of hashes alone, and nothing that a manifest says becomes a path. All of it may be removed when
nothing runs.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from upath import UPath

from ich_ray import progress
from ich_ray.errors import ConfigError, IchRayError, IntegrityError
from ich_ray.storage import folder_of_home, retried, sha256, write_bytes, writing

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["cache_folder", "existing_part", "lacking_room", "local_copy"]

_DEFAULT_GB = 200.0
_USED = ".used"
_DATASET = re.compile(r"[0-9a-f]{32}")
_HASH = re.compile(r"[0-9a-f]{64}")
_OWN = re.compile(r"\.used|[0-9a-f]{64}\.(arrow|verified|lock)|\.[0-9a-f]{64}\.(arrow|verified)\.[0-9a-f]{8}\.tmp")
_CHUNK_BYTES = 1 << 20
# Hashing costs 1 s per GB, too much for every trial of a search: whoever writes to a file changes its times, and a disk
# that loses what nobody wrote is found out within a day.
_TRUSTED_S = 24 * 3600.0


def local_copy(path: UPath, digest: str, dataset: str, most_bytes: int) -> Path:
    """The copy of a remote file on this machine, right to the last byte.

    A copy that was changed or damaged is fetched again. When all copies together exceed `$ICH_RAY_CACHE_GB` (200),
    datasets are dropped, least recently used first, but never this one; who has mapped a dropped file keeps it.

    Args:
        path: what to fetch.
        digest: its SHA-256, 64 hexadecimal digits.
        dataset: the fingerprint of the dataset it belongs to, 32 of them.
        most_bytes: what it can hold if it is what its manifest says; no more is fetched.

    Raises:
        ConfigError: `$ICH_RAY_CACHE_GB` is no size.
        IchRayError: the copy cannot be written, or a link stands in its place.
        IntegrityError: the remote file is missing, larger or another one, or these are no hashes.
    """
    if not _DATASET.fullmatch(dataset) or not _HASH.fullmatch(digest):
        raise IntegrityError(f"{path}: its dataset must have hexadecimal hashes, got others; prepare the dataset again")
    folder = cache_folder() / dataset
    copy = folder / f"{digest}.arrow"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for own in (folder, folder / _USED, copy, _stamp(copy), copy.with_suffix(".lock")):
            _check_no_link(own)
        (folder / _USED).touch()
        if not _is_trusted(copy):
            with FileLock(str(copy.with_suffix(".lock"))):
                if not _is_trusted(copy):
                    _provide(path, digest, copy, most_bytes)
    except OSError as error:
        raise IchRayError(
            f"{folder.parent}: copies of remote files must be written, got {error.strerror or error}; free space, or "
            "name another folder in ICH_RAY_CACHE"
        ) from None
    return copy


def lacking_room(path: UPath, dataset: str, most_bytes: int) -> str:
    """Why this machine has no room for copies of a dataset, and what to set; empty if it has.

    Args:
        path: of the dataset, to be named.
        dataset: its fingerprint.
        most_bytes: that the blocks can hold.
    """
    try:
        home, limit_gb = cache_folder(), _limit_gb()
        there = _size_bytes(home / dataset) if (home / dataset).is_dir() else 0
        others = sum(size for folder, size in _sizes(home).items() if folder.name != dataset)
        free = shutil.disk_usage(existing_part(home)).free
    except (ConfigError, OSError) as error:
        return str(error)
    needed_gb = math.ceil(most_bytes / 1e9)
    if most_bytes > limit_gb * 1e9:
        return (
            f"ICH_RAY_CACHE_GB: must be at least {needed_gb} for copies of {path}, got {limit_gb:g}; set it where Ray "
            "is started"
        )
    # Others are dropped where all together would pass the limit: on a disk that takes as much, before it is full.
    if most_bytes - there > free and limit_gb * 1e9 > free + there + others:
        return (
            f"{home}: {math.ceil((most_bytes - there) / 1e9)} GB must be free for copies of {path}, got "
            f"{free / 1e9:.1f}; name a folder on a larger disk in ICH_RAY_CACHE, where Ray is started"
        )
    return ""


def existing_part(folder: Path) -> Path:
    """The folder, or the nearest above it that is there: whose disk it will be on."""
    return next(part for part in (folder, *folder.absolute().parents) if part.exists())


def _check_no_link(own: Path) -> None:
    """What is written and removed lies in the cache, and not where somebody's link leads."""
    if own.is_symlink():
        raise IchRayError(
            f"{own}: a cache holds files and folders of its own, got a link; remove it, or name another folder in "
            "ICH_RAY_CACHE"
        )


def cache_folder() -> Path:
    """Where copies lie on this machine.

    Raises:
        ConfigError: neither the environment nor the list of users tells.
    """
    cache = os.environ.get("ICH_RAY_CACHE")
    if cache:
        return Path(cache).expanduser()
    return folder_of_home("XDG_CACHE_HOME", ".cache", "name a folder for copies in ICH_RAY_CACHE") / "ich_ray"


def _provide(path: UPath, digest: str, copy: Path, most_bytes: int) -> None:
    """Verify the copy that is there, or fetch it."""
    if not copy.exists() or sha256(UPath(copy)) != digest:
        if copy.exists():
            progress.say(f"{copy}: damaged since it was fetched; fetching it again")
        _make_room(copy.parent, most_bytes)
        retried(path, lambda: _fetch(path, digest, copy, most_bytes))
    write_bytes(UPath(_stamp(copy)), _facts(copy).encode())


def _fetch(path: UPath, digest: str, copy: Path, most_bytes: int) -> None:
    """Piece by piece; nothing stays of what is not the file that was asked for."""
    found, left = hashlib.sha256(), most_bytes
    try:
        source = path.open("rb")
    except FileNotFoundError:
        raise IntegrityError(f"{path}: a file of the manifest must be there, got none") from None
    with source, writing(UPath(copy)) as target:
        while chunk := source.read(_CHUNK_BYTES):
            if (left := left - len(chunk)) < 0:
                raise IntegrityError(
                    f"{path}: at most {most_bytes:,} bytes must be there, as the manifest says of its rows, got more; "
                    "prepare the dataset again"
                )
            found.update(chunk)
            target.write(chunk)
        if found.hexdigest() != digest:
            raise IntegrityError(f"{path}: SHA-256 must equal the manifest's; prepare the dataset again")


def _stamp(copy: Path) -> Path:
    """What the copy looked like when it was last verified."""
    return copy.with_suffix(".verified")


def _facts(copy: Path) -> str:
    facts = copy.stat()
    return f"{facts.st_ino} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}"


def _is_trusted(copy: Path) -> bool:
    """Whether this user has verified the copy, and nobody has written to it since.

    Of a copy, or in a folder, of another user a stamp says nothing: whoever owns them can make it.
    """
    try:
        stamp = _stamp(copy)
        if {path.stat().st_uid for path in (copy.parent, copy, stamp)} != {os.geteuid()}:
            return False
        return stamp.read_text() == _facts(copy) and time.time() - stamp.stat().st_mtime < _TRUSTED_S
    except FileNotFoundError:
        return False


def _make_room(folder: Path, needed_bytes: int) -> None:
    """Drop other datasets until `needed_bytes` more are within the limit, or there is no other."""
    limit_bytes = _limit_gb() * 1e9
    sizes = _sizes(folder.parent)
    total_bytes = sum(sizes.values()) + needed_bytes
    for each in sorted(sizes.keys() - {folder}, key=lambda each: (each / _USED).stat().st_mtime_ns):
        if total_bytes <= limit_bytes:
            return
        progress.say(f"{each}: dropped, as the copies of remote files exceed {limit_bytes / 1e9:g} GB")
        _drop(each)
        total_bytes -= sizes[each]


def _sizes(home: Path) -> dict[Path, int]:
    """Bytes of each dataset that the cache holds."""
    return {each: _size_bytes(each) for each in home.iterdir() if _is_own(each)} if home.is_dir() else {}


def _is_own(folder: Path) -> bool:
    """Whether the cache has made a folder: named by a fingerprint, marked as used, and no link."""
    marked = folder / _USED
    named = _DATASET.fullmatch(folder.name) is not None
    return named and not folder.is_symlink() and marked.is_file() and not marked.is_symlink()


def _own_files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.iterdir() if _OWN.fullmatch(file.name))


def _drop(folder: Path) -> None:
    """Remove what the cache has written there; what somebody else has put there stays, and the folder with it."""
    for file in [*_own_files(folder)]:
        file.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _size_bytes(folder: Path) -> int:
    total = 0
    for file in _own_files(folder):
        try:
            total += file.lstat().st_size
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
