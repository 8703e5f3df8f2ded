"""Messages of a stage that is one piece of work: when it has ended, was interrupted or failed."""

from __future__ import annotations

import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from ich_ray.errors import Interrupted
from ich_ray.notify.notifier import notifying

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ending_of", "telling"]


@contextmanager
def telling(stage: str, told: str | None) -> Iterator[None]:
    """Tell how the block ends.

    Args:
        stage: what it is called.
        told: where to; None for nowhere.

    Raises:
        ConfigError: what was told is no address.
    """
    began = time.monotonic()
    with notifying(told) as notifier:
        if notifier is None:
            yield
            return
        how = "has ended"
        try:
            yield
        except BaseException as error:
            how = ending_of(error)
            raise
        finally:
            notifier.send(f"{stage} {how}; it took {timedelta(seconds=round(time.monotonic() - began))}")


def ending_of(error: BaseException) -> str:
    """What may be said of an error elsewhere: its kind, as its text may hold paths and names."""
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return "was interrupted"
    return f"failed ({type(error).__name__}, its output says why)"
