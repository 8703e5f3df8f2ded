"""A folder below /tmp, or any other that all users share, into which nobody else can reach."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from ich_ray.errors import ConfigError
from ich_ray.storage.places import system_reason

__all__ = ["folder_of_home", "name_a_home", "own_temporary_folder", "private_folder"]

# A UNIX socket path has 107 characters at most, of which Ray's session and the name of a socket take 64: below
# $TMPDIR, or a home, there may be no room.
_TMP = Path("/tmp")  # noqa: S108
# The home that systems give to users who must have none. Nothing can be written there: no key gets lost in a folder
# that goes away.
_NO_HOME = "/nonexistent"


def name_a_home() -> None:
    """Give this process, and those that it starts, a home where none is known.

    Ray Tune could not be imported without one, and numba would make a folder named `~` in the working directory.
    """
    if os.path.expanduser("~") == "~":  # noqa: PTH111
        os.environ["HOME"] = _NO_HOME


def folder_of_home(variable: str, folder: str, instead: str) -> Path:
    """The folder that a variable such as XDG_CONFIG_HOME names, else one in the home.

    Args:
        variable: is looked at first.
        folder: within the home.
        instead: of the error, what may be set in place of HOME.

    Raises:
        ConfigError: neither the environment nor the list of users tells a home.
    """
    named = os.environ.get(variable)
    if named:
        return Path(named).expanduser()
    try:
        return Path.home() / folder
    except RuntimeError:
        raise ConfigError(
            f"HOME: must be set for a user whom the system does not list, got none for {os.geteuid()}; set it, or "
            f"{instead}"
        ) from None


def own_temporary_folder() -> Path:
    """A folder below /tmp that only this user may enter.

    Raises:
        ConfigError: something that is not this user's lies there.
    """
    return private_folder(_TMP / f"ich{os.geteuid()}")


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
