"""A Ray of this process alone: where it keeps its files, and its token.

Needs no home: containers run with any user id, and daemons without HOME. Imports Ray only to start it.
"""

from __future__ import annotations

import logging
import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ich_ray.errors import ConfigError, IchRayError
from ich_ray.storage import own_temporary_folder, private_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ray.job_config import JobConfig

__all__ = ["own_token", "sessions_folder", "start_ray"]

_TOKEN, _TOKEN_FILE, _MODE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"
_START_S = 120.0


def start_ray(job: JobConfig, cpus: int | None) -> None:
    """Start a Ray that only this process uses.

    Raises:
        ConfigError: its folder cannot be made, or belongs to another user.
        IchRayError: it has not started after minutes.
    """
    import ray

    from ich_ray.ray_internals import started_within

    folder = sessions_folder()
    try:
        with started_within(_START_S):
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                job_config=job,
                _temp_dir=str(folder),
            )
    except TimeoutError as error:
        raise IchRayError(
            f"Ray: must start on this machine within {_START_S:.0f} s, got {error}; see {folder}/session_latest/logs"
        ) from None


def sessions_folder() -> Path:
    """Where a Ray started here keeps logs, sockets and what it spills; no other user may enter.

    Ray itself opens the folder that it is given to all users (mode 0777), so there is one around it.

    Raises:
        ConfigError: something that is not this user's lies there.
    """
    return private_folder(own_temporary_folder() / "r")


@contextmanager
def own_token() -> Iterator[None]:
    """Give a Ray that is started in the block a token of its own, unless the user has one.

    Ray would write one into the home of the user, for all to read (mode 0644), and fail where it cannot.

    Raises:
        ConfigError: RAY_AUTH_TOKEN_PATH names no file that can be read; Ray would end the process.
    """
    named = os.environ.get(_TOKEN_FILE)
    if named and not os.environ.get(_TOKEN) and not os.access(named, os.R_OK):
        raise ConfigError(f"{_TOKEN_FILE}: must name a file that can be read, got {named}; correct it, or unset it")
    from ich_ray.ray_internals import forget_authentication

    drawn = not (os.environ.get(_TOKEN) or named or os.access(os.path.expanduser("~/.ray/auth_token"), os.R_OK))  # noqa: PTH111
    mode = os.environ.get(_MODE)
    if drawn:
        os.environ[_TOKEN] = secrets.token_hex(32)
    forget_authentication()  # what a Ray before this one was given
    try:
        yield
    finally:
        if drawn:
            del os.environ[_TOKEN]
        if mode is None:
            os.environ.pop(_MODE, None)  # Ray has set it, for this process and all Rays that it might join
        forget_authentication()
