"""A stand-in on loopback for a webhook: it keeps what it is sent, and answers as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.loopback import serving

# Far beyond what any machine takes; no test waits for it.
LONG_S = 60.0


@dataclass
class Webhook:
    """What it was sent.

    Attributes:
        status: of its answers.
        location: where it sends others to, empty for nowhere.
        open: it answers once this is set.
        arrived: called with each message before it is answered.
    """

    url: str = ""
    status: int = 200
    location: str = ""
    open: threading.Event = field(default_factory=threading.Event)
    arrived: Callable[[dict[str, Any]], None] = lambda _: None
    messages: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def running_webhook() -> Iterator[Webhook]:
    made = Webhook()
    made.open.set()

    class Door(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            made.arrived(message)
            made.messages.append(message)
            made.paths.append(self.path)
            made.headers.append({key.lower(): value for key, value in self.headers.items()})
            made.open.wait(120)
            self.send_response(made.status)
            if made.location:
                self.send_header("Location", made.location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            made.paths.append(f"GET {self.path}")

        def log_message(self, *_: object) -> None:
            pass

    with serving(Door) as made.url:
        try:
            yield made
        finally:
            made.open.set()
