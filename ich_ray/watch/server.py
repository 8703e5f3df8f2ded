"""The server of `ich-ray watch`: a page and its data, on this machine, for who has its address.

It answers GET alone and changes nothing. The address that is printed holds a random key; the page takes it out of the
address bar at once, keeps it for its tab, and sends it in a header, so that another site, whose requests a browser
would send along with cookies, has no way to ask. The cookie opens the empty page again when it is reloaded, no data.
"""

from __future__ import annotations

import gzip
import hmac
import secrets
import socketserver
import threading
import time
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from ich_ray.errors import ConfigError
from ich_ray.search.trial_output import read_output
from ich_ray.storage import not_read, system_reason
from ich_ray.watch.board import Board, compact_json
from ich_ray.watch.followed import ASKED_AGAIN, FollowedSearch
from ich_ray.watch.page_source import page_source

if TYPE_CHECKING:
    from ich_ray.storage import Location

__all__ = ["KEY_HEADER", "Watch"]

KEY_HEADER = "X-Watch-Key"
_HOSTS = ("127.0.0.1", "localhost", "::1")
# So long a page waits for news, shorter than proxies and tunnels keep a silent connection.
_LONGEST_WAIT_S = 20.0
_SILENT_S = 60.0
_MOST_CONNECTIONS = 64
# The folder is listed so often, or as seldom as keeps it to a ninth of the time.
_EVERY_S = 2.0
_SHARE_OF_TIME = 8.0
_COMPRESSED_FROM = 64 << 10


class Watch:
    """A search on a page of this machine, followed by a thread of its own.

    Args:
        where: the search, a folder or a URI.
        port: 0 for one that is free.
        price: of an accelerator hour, to show money.

    Raises:
        ConfigError: there is no search, or the port is taken.
        IntegrityError: its search.json is damaged.
    """

    def __init__(self, where: Location, port: int, price: float | None = None) -> None:
        self._followed = FollowedSearch(where)
        self.key = secrets.token_urlsafe(32)
        self.session = secrets.token_urlsafe(32)
        self.board = Board(self._followed, price)
        self.changed = threading.Condition()
        self._ended, self._serving = threading.Event(), False
        self._computed: tuple[int, bytes] | None = None
        self._computing = threading.Lock()
        try:
            self._server = _Server(("127.0.0.1", port), self)
        except OSError as error:
            raise ConfigError(
                f"--port {port}: must be free on 127.0.0.1, got {system_reason(error)}; another `watch` may have it: "
                "give another port, or 0 for any that is free"
            ) from None
        self.page, self.policy = page_source()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def address(self) -> str:
        """With the key: whoever has it sees the search."""
        return f"http://127.0.0.1:{self.port}/?open={self.key}"

    def serve(self) -> None:
        """Answer until `close`."""
        threading.Thread(target=self._follow, name="watch", daemon=True).start()
        self._serving = True
        self._server.serve_forever(poll_interval=0.2)

    def close(self) -> None:
        """End `serve` and give the port back."""
        self._ended.set()
        with self.changed:
            self.changed.notify_all()
        if self._serving:
            self._server.shutdown()
        self._server.server_close()

    def read(self) -> None:
        """Read what has changed and tell the pages that wait."""
        problem = ""
        try:
            numbers = self._followed.refresh()
        except Exception as error:  # noqa: BLE001  (of a storage, and this thread goes on; the page shows it)
            numbers, problem = set(), str(not_read(self._followed.files.root, error, ASKED_AGAIN))
        with self.changed:
            if self.board.update(numbers, problem):
                self.changed.notify_all()

    def _follow(self) -> None:
        took = 0.0
        while not self._ended.wait(max(_EVERY_S, _SHARE_OF_TIME * took)):
            began = time.monotonic()
            self.read()
            took = time.monotonic() - began

    def news(self, since: int | None) -> str | None:
        """What a page lacks that has shown version `since`, once there is any; None after a while."""
        until = time.monotonic() + _LONGEST_WAIT_S
        with self.changed:
            while since == self.board.version:
                left = until - time.monotonic()
                if left <= 0 or self._ended.is_set():
                    return None
                self.changed.wait(left)
            return self.board.message(since)

    def trial(self, number: int) -> dict[str, Any] | None:
        """All that is known of a trial, with the last lines of its processes; None where there is none."""
        with self.changed:
            found = self.board.trial(number)
        if found is None:
            return None
        files = self._followed.files
        logs = {"log": read_output(files.log(number)), "lost_log": read_output(files.lost_log(number))}
        return {**found, **logs}

    def parameters(self) -> bytes:
        """Importances and parallel coordinates, computed once for a version."""
        with self._computing:
            with self.changed:
                version, search = self.board.version, self.board.as_result()
            if self._computed is None or self._computed[0] != version:
                self._computed = version, compact_json(self.board.parameters(search)).encode()
            return self._computed[1]


class _Server(ThreadingHTTPServer):
    """Threads for a few connections; more are closed at once."""

    daemon_threads = True
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], watch: Watch) -> None:
        self.watch = watch
        self._free = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without the question after this machine's name that HTTPServer asks, which may take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that went away is no error, and nothing of a request is printed."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = _SILENT_S

    def do_GET(self) -> None:
        if refused := self._refusal():
            self._refuse(*refused)
            return
        place = urlsplit(self.path)
        asked = {name: values[-1] for name, values in parse_qs(place.query, max_num_fields=8).items()}
        watch = self.server.watch
        if place.path == "/":
            self._send_page(asked.get("open", ""))
        elif not _same(self.headers.get(KEY_HEADER, ""), watch.key):
            self._refuse(HTTPStatus.UNAUTHORIZED, "data need the key of the address that `ich-ray watch` printed")
        elif place.path == "/data":
            self._send_news(asked.get("since"))
        elif place.path == "/trial":
            number = _number(asked.get("number"))
            found = None if number is None else watch.trial(number)
            if found is None:
                self._refuse(HTTPStatus.NOT_FOUND, "there is no trial of this number")
            else:
                self._send(HTTPStatus.OK, compact_json(found).encode(), "application/json")
        elif place.path == "/parameters":
            self._send(HTTPStatus.OK, watch.parameters(), "application/json")
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _refusal(self) -> tuple[HTTPStatus, str] | None:
        """Why a request is not looked at: names that lead here by a trick, and pages of other sites."""
        host = self.headers.get("Host", "")
        if _host_name(host) not in _HOSTS:
            return HTTPStatus.FORBIDDEN, "the page is asked for as 127.0.0.1 or localhost only"
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            return HTTPStatus.FORBIDDEN, "other sites may not ask"
        if self.headers.get("Sec-Fetch-Site", "none") == "cross-site" and urlsplit(self.path).path != "/":
            return HTTPStatus.FORBIDDEN, "other sites may not ask"
        return None

    def _send_page(self, key: str) -> None:
        watch = self.server.watch
        name = f"ich_ray_watch_{watch.port}"
        if _same(key, watch.key):
            cookie = f"{name}={watch.session}; HttpOnly; SameSite=Strict; Path=/"
            self._send(HTTPStatus.OK, watch.page, "text/html", {"Set-Cookie": cookie})
        elif _same(_cookie(self.headers.get("Cookie", ""), name), watch.session):
            self._send(HTTPStatus.OK, watch.page, "text/html")
        else:
            self._refuse(HTTPStatus.UNAUTHORIZED, "open the whole address that `ich-ray watch` printed")

    def _send_news(self, since: str | None) -> None:
        told = self.server.watch.news(_number(since))
        if told is None:
            self._send(HTTPStatus.NO_CONTENT, b"", "application/json")
        else:
            self._send(HTTPStatus.OK, told.encode(), "application/json")

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self.close_connection = True
        self._send(status, f"{why}\n".encode(), "text/plain")

    def _send(self, status: HTTPStatus, body: bytes, kind: str, more: dict[str, str] | None = None) -> None:
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Security-Policy": self.server.watch.policy,
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            **(more or {}),
        }
        if len(body) >= _COMPRESSED_FROM and "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, compresslevel=1)
            headers["Content-Encoding"] = "gzip"
        if self.close_connection:
            headers["Connection"] = "close"
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status is not HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Anything that is no GET; what was sent is not repeated."""
        self.close_connection = True
        if not hasattr(self, "headers"):
            self.headers = self.MessageClass()
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self._send(status, b"only GET is answered here\n", "text/plain")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: a line of a request would show the key."""


def _same(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode())


def _cookie(header: str, name: str) -> str:
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def _host_name(host: str) -> str:
    """Of a Host header, whatever its port: a tunnel has one of its own."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _number(text: str | None) -> int | None:
    return int(text) if text and len(text) < 16 and text.isascii() and text.isdecimal() else None
