"""What is asked of a dashboard, and what its answers become, without a Ray behind it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ich_ray import cli
from tests.cluster.heads import TOKEN


@contextmanager
def answering(status: int) -> Iterator[tuple[str, list[str]]]:
    """A server on loopback that answers nothing but `status`: its address, and the paths that it was asked for."""
    asked: list[str] = []

    class Door(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(status)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def test_no_proxy_is_shown_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with answering(502) as (proxy, overheard), answering(404) as (dashboard, asked):
        monkeypatch.setenv("http_proxy", proxy)
        assert cli.call(["jobs", "--address", dashboard]) == 1
    assert (overheard, asked) == ([], ["/api/version"])
