"""A stand-in on loopback for the metadata service of a cloud."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.loopback import serving

TOKEN = "PUT /latest/api/token"  # noqa: S105
ACTION = "GET /latest/meta-data/spot/instance-action"


@dataclass
class Service:
    """What a server answers by path, 404 elsewhere, and what it was asked."""

    url: str = ""
    answers: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)


@contextmanager
def running_service() -> Iterator[Service]:
    made = Service()

    class Door(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = f"{self.command} {self.path.partition('?')[0]}"
            made.asked.append(name)
            made.headers.append({key.lower(): value for key, value in self.headers.items()})
            status = made.statuses.pop(name, 200 if name in made.answers else 404)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(made.answers.get(name, "").encode() if status == 200 else b"<html>no</html>")

        do_PUT = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with serving(Door) as made.url:
        yield made
