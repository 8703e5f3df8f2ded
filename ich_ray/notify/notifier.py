"""A thread that sends messages, so that whoever has one never waits for a network.

A destination that is dead, slow or wrong costs one line and nothing else. Knows nothing of what messages say.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from ssl import SSLError
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from ich_ray.notify.destinations import Mail, parse_destination
from ich_ray.progress import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ich_ray.notify.destinations import Destination, Webhook

__all__ = ["Notifier", "deliver", "notifying"]

# For each try.
TIME_LIMIT_S = 5.0
# Some sendmail programs deliver before they return.
_SENDMAIL_S = 20.0
_AGAIN_AFTER_S = 1.0
_TRIES = 2
# More wait for no destination that works; the oldest go.
_MOST_WAITING = 50
# At the end; a network that takes longer has had its chance.
_LAST_WAIT_S = 6.0
_LOOK_EVERY_S = 5.0


class Notifier:
    """Sends messages one after another, each tried twice.

    Attributes:
        look: called every few seconds between messages, in the thread that sends.
    """

    def __init__(self, destination: Destination) -> None:
        self.look: Callable[[], None] = lambda: None
        self._destination = destination
        self._waiting: deque[str] = deque(maxlen=_MOST_WAITING)
        self._changed = threading.Condition()
        self._closing = self._has_failed = False
        self._thread = threading.Thread(target=self._run, name="notify", daemon=True)
        self._thread.start()

    def send(self, text: str) -> None:
        """Hand over a message; returns at once."""
        with self._changed:
            self._waiting.append(text)
            self._changed.notify()

    def close(self, wait_s: float | None = None) -> None:
        """Wait a few seconds for the last messages, then leave them."""
        wait_s = _LAST_WAIT_S if wait_s is None else wait_s
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(wait_s)
        if self._thread.is_alive():
            self._fail(f"no answer within {wait_s:.0f} s")

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting and not self._closing:
                    self._changed.wait(_LOOK_EVERY_S)
                text = self._waiting.popleft() if self._waiting else None
                if text is None and self._closing:
                    return
            if text is None:
                self._look()
            else:
                self._deliver(text)

    def _look(self) -> None:
        try:
            self.look()
        except Exception as error:  # noqa: BLE001  (in a thread beside the work, which must not end by it)
            self.look = lambda: None
            say(f"notify: nobody looks for a standstill any more ({type(error).__name__})")

    def _deliver(self, text: str) -> None:
        for attempt in range(1, _TRIES + 1):
            try:
                deliver(self._destination, text)
            except Exception as error:  # noqa: BLE001  (whatever it is, it costs a message and not the work)
                if attempt == _TRIES:
                    self._fail(_reason(error))
                else:
                    time.sleep(_AGAIN_AFTER_S)
            else:
                return

    def _fail(self, why: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            say(f"notify: a message could not be sent ({why}); the work goes on, and no further failure is said")


@contextmanager
def notifying(told: str | None) -> Iterator[Notifier | None]:
    """A notifier for the block; None where nobody is to be told.

    Raises:
        ConfigError: what was told is no address.
    """
    if told is None:
        yield None
        return
    notifier = Notifier(parse_destination(told))
    try:
        yield notifier
    finally:
        notifier.close()


def deliver(destination: Destination, text: str) -> None:
    """Send a message now.

    Raises:
        OSError: it has not been taken; there are other errors, too, for what is no answer of HTTP.
    """
    if isinstance(destination, Mail):
        _mail(destination, text)
    else:
        _post(destination, text)


def _post(webhook: Webhook, text: str) -> None:
    # A proxy of the environment is for other machines than this one.
    handlers: list[Any] = [_NoRedirect, *([ProxyHandler({})] if webhook.is_loopback else [])]
    request = Request(webhook.url, webhook.body(text), webhook.headers(), method="POST")  # noqa: S310  (parsed: http)
    build_opener(*handlers).open(request, timeout=TIME_LIMIT_S).close()


def _mail(mail: Mail, text: str) -> None:
    nothing = subprocess.DEVNULL
    subprocess.run(
        mail.command(), input=mail.body(text), stdout=nothing, stderr=nothing, timeout=_SENDMAIL_S, check=True
    )


class _NoRedirect(HTTPRedirectHandler):
    """A message goes where it was sent, or nowhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _reason(error: BaseException) -> str:
    """What an error says, without anything of the address, which many of them repeat."""
    if isinstance(error, HTTPError):
        with suppress(Exception):
            error.close()
        return f"status {error.code}"
    if isinstance(error, URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    if isinstance(error, TimeoutError):
        return f"no answer within {TIME_LIMIT_S:.0f} s"
    if isinstance(error, SSLError):
        return "its certificate is not accepted"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"sendmail took more than {_SENDMAIL_S:.0f} s"
    if isinstance(error, subprocess.CalledProcessError):
        return f"sendmail ended with {error.returncode}"
    return getattr(error, "strerror", None) or type(error).__name__
