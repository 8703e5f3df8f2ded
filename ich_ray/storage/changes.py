"""Which files of a folder have changed since somebody last looked, without opening them.

Knows names and what a file system says of them: times and sizes, or the tags of an object store.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ich_ray.storage.places import exists, is_local, unreadable
from ich_ray.storage.retries import retried

if TYPE_CHECKING:
    from upath import UPath

__all__ = ["Stamp", "stamp", "stamps"]

# Differs once a file was written anew; files are replaced, so that even a second write of one time has another inode.
Stamp: TypeAlias = "tuple[object, ...]"
# By one name or another, what object stores say of a file: s3fs, gcsfs, adlfs, and file systems behind fsspec.
_TAGS = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "updated", "created", "size")


def stamps(folder: UPath) -> dict[str, Stamp]:
    """The stamp of each entry of a folder by its name; empty where there is no folder.

    Raises:
        ConfigError: nobody may look there.
    """
    if not exists(folder):
        return {}
    try:
        return retried(folder, lambda: _local(folder) if is_local(folder) else _remote(folder))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise unreadable(folder, error) from None


def stamp(path: UPath) -> Stamp:
    """The stamp of one file; empty where it is not there."""
    if is_local(path):
        try:
            return _of(Path(str(path)).stat())
        except OSError:
            return ()
    try:
        told = retried(path, lambda: path.fs.info(path.path))
    except OSError:
        return ()
    return tuple(str(told.get(name)) for name in _TAGS)


def _local(folder: UPath) -> dict[str, Stamp]:
    found = {}
    with os.scandir(str(folder)) as entries:
        for entry in entries:
            try:
                found[entry.name] = _of(entry.stat())
            except FileNotFoundError:  # replaced or removed meanwhile
                continue
    return found


def _of(told: os.stat_result) -> Stamp:
    return told.st_mtime_ns, told.st_size, told.st_ino


def _remote(folder: UPath) -> dict[str, Stamp]:
    listed = folder.fs.ls(folder.path, detail=True)
    return {one["name"].rstrip("/").rpartition("/")[2]: tuple(str(one.get(name)) for name in _TAGS) for one in listed}
