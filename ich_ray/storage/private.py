"""A folder below /tmp, or any other that all users share, into which nobody else can reach."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from ich_ray.errors import ConfigError
from ich_ray.storage.places import system_reason

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["private_folder"]


def private_folder(folder: Path) -> Path:
    """Make a folder that only this user may enter, or take one of this user's and close it to all others.

    What lies at `folder` is opened without following a link, and then checked and closed through the descriptor, so
    that nothing can be exchanged in between.

    Raises:
        ConfigError: a link, a file or another user's folder lies there, or none can be made.
    """
    try:
        with suppress(FileExistsError):
            folder.mkdir(0o700)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            facts = os.fstat(descriptor)
            if facts.st_uid == os.geteuid():
                if stat.S_IMODE(facts.st_mode) & 0o077:
                    os.fchmod(descriptor, 0o700)
                return folder
            got = f"a folder of user {facts.st_uid}"
        finally:
            os.close(descriptor)
    except OSError as error:
        got = "a link" if folder.is_symlink() else system_reason(error)
    there = os.path.lexists(folder)
    remedy = "let its owner, or root, remove it" if there else f"let this user write to {folder.parent}"
    raise ConfigError(f"{folder}: must be a folder of user {os.geteuid()} alone, got {got}; {remedy}")
