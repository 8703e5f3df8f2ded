"""A driver of which people hear who are not there: what happens, and how it ends."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ich_ray.errors import IchRayError
from ich_ray.runtime import last_words
from ich_ray.search.search_messages import SearchMessages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ich_ray.notify.notifier import Notifier
    from ich_ray.search.tune.driver import Driver

__all__ = ["announced"]


@contextmanager
def announced(driver: Driver, notifier: Notifier | None) -> Iterator[None]:
    """Tell what happens while the block runs the driver, and how that ends; nothing without a notifier."""
    if notifier is None:
        yield
        return
    callback, record = driver.ledger_callback, driver.ledger.record
    messages = SearchMessages(record.name, notifier.send, driver.watchdog.longest_limit_s, len(record.quarantines))

    def break_off(error: BaseException) -> None:
        messages.broken_off(callback.standing(time.monotonic()), error)

    def cluster_lost() -> None:
        break_off(IchRayError())
        notifier.close()

    callback.messages, notifier.look = messages, messages.look
    with last_words(cluster_lost):
        try:
            yield
        except BaseException as error:
            break_off(error)
            raise
        messages.ended(callback.standing(time.monotonic()))
