"""List every regular file below a folder, sorted, and what is refused unopened.

Knows names only. Links and special files that could lead out of the folder or never end are rows with a reason, not
files that vanish.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from upath import UPath

from ich_ray.ct.elements import FILE_LIMIT_BYTES
from ich_ray.storage import is_local, unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Listing", "list_files"]

# It comes whole into memory, for each process that reads: 1,000 frames of 512x512.
_REMOTE_LIMIT_BYTES = 8 * FILE_LIMIT_BYTES

_UNSAFE = frozenset({"Cc", "Cs", "Zl", "Zp"})  # controls, lone surrogates, line and paragraph separators
_DIRECTIONS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})


@dataclass(frozen=True)
class Listing:
    """What lies below a folder.

    Attributes:
        files: relative paths, sorted.
        refused: relative path and reason (`path_escape`, `not_regular` or `name_invalid`, on object storage also
            `size_limit`) of what is not opened.
        digest: of the names, sizes and times of change of `files`: it changes when an input does.
    """

    files: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    digest: str

    def __len__(self) -> int:
        return len(self.files) + len(self.refused)


def list_files(root: UPath, skip: Sequence[UPath] = ()) -> Listing:
    """List a local folder or one on object storage; `skip`, such as the label table, is left out.

    Raises:
        ConfigError: a folder cannot be read, so that nobody knows what lies in it.
    """
    found = sorted(_walk_local(Path(str(root))) if is_local(root) else _walk_remote(root))
    left_out = {os.path.relpath(one.path, root.path) for one in skip if one.protocol == root.protocol}
    found = [entry for entry in found if entry[0] not in left_out]
    digest = hashlib.sha256()
    for name, reason, stamp in found:
        if not reason:
            digest.update(f"{name}\0{stamp}\n".encode())
    return Listing(
        tuple(name for name, reason, _ in found if not reason),
        tuple((name, reason) for name, reason, _ in found if reason),
        digest.hexdigest(),
    )


def _walk_local(root: Path) -> Iterator[tuple[str, str, str]]:
    """(relative path, reason it is refused, size and time of change), links to folders inside the root aside."""
    home = root.resolve()
    folders = [str(root)]
    while folders:
        for entry in _entries(folders.pop()):
            name = os.path.relpath(entry.path, root)
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_folder:
                folders.append(entry.path)
                if not name.lower().endswith(".dcm"):
                    continue
            if not _is_safe(name):
                yield name.encode("utf-8", "backslashreplace").decode(), "name_invalid", ""
                continue
            reason = "not_regular" if is_folder else _refusal(entry, home)
            if reason is not None:
                facts = None if reason else entry.stat()
                yield name, reason, f"{facts.st_size} {facts.st_mtime_ns}" if facts else ""


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise unreadable(UPath(folder), error) from None


def _refusal(entry: os.DirEntry[str], home: Path) -> str | None:
    """Why an entry that is no folder is refused; empty if it is not, None for a link to a folder that is listed."""
    if entry.is_symlink():
        target = Path(os.path.realpath(entry.path))  # `Path.resolve` raises where a link leads to itself
        if not target.is_relative_to(home):
            return "path_escape"
        if target.is_dir():
            return None
        return "" if target.is_file() else "not_regular"
    return "" if entry.is_file() else "not_regular"


def _is_safe(name: str) -> bool:
    """Whether a name can deceive nobody: no controls, line breaks, orders of direction or bytes that are no text.

    Spaces of every width, soft hyphens and joiners are parts of names.
    """
    return name.isprintable() or not any(
        unicodedata.category(one) in _UNSAFE or unicodedata.bidirectional(one) in _DIRECTIONS for one in name
    )


def _walk_remote(root: UPath) -> Iterator[tuple[str, str, str]]:
    base = root.path.rstrip("/")
    for path, facts in root.fs.find(base, detail=True).items():
        stamp = facts.get("ETag") or facts.get("LastModified") or facts.get("created") or ""
        reason = "size_limit" if (facts.get("size") or 0) > _REMOTE_LIMIT_BYTES else ""
        name = path[len(base) :].lstrip("/") if path.startswith(base) else path
        yield name, reason if _is_safe(name) else "name_invalid", f"{facts.get('size')} {stamp}"
