"""A stand-in of a cloud's metadata service on loopback, and the firmware's tables of a machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ich_ray.cluster.metadata_service import Metadata, ask_metadata


class Service(ThreadingHTTPServer):
    """Answers with one status, and keeps what it was asked."""

    status = 200

    def __init__(self) -> None:
        asked: list[tuple[str, str, dict[str, str]]] = []

        class Door(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append((self.command, self.path, dict(self.headers.items())))
                self.send_response(service.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_PUT = do_GET  # noqa: N815  (the name that the base class looks for)

            def log_message(self, *_: Any) -> None:
                pass

        service = self
        self.asked = asked
        super().__init__(("127.0.0.1", 0), Door)


@pytest.fixture
def service() -> Iterator[Service]:
    server = Service()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(service: Service, dmi: Path) -> Metadata:
    return ask_metadata(dmi, f"http://127.0.0.1:{service.server_port}")


CLOUDS = [
    ("sys_vendor", "Amazon EC2\n", "AWS", ("PUT", "/latest/api/token")),
    ("product_name", "Google Compute Engine\n", "Google Cloud", ("GET", "/computeMetadata/v1/instance/preempted")),
    (
        "chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77\n", "Azure",
        ("GET", "/metadata/scheduledevents?api-version=2020-07-01"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("table", "text", "cloud", "request_"), CLOUDS)
def test_the_service_of_each_cloud_is_asked_its_own_question(
    table: str, text: str, cloud: str, request_: tuple[str, str], service: Service, tmp_path: Path
) -> None:
    (tmp_path / table).write_text(text)
    assert ask(service, tmp_path) == Metadata(cloud)
    assert [asked[:2] for asked in service.asked] == [request_]
    service.status = 403
    assert ask(service, tmp_path) == Metadata(cloud, "HTTP status 403")


def test_a_service_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:2")
    (tmp_path / "sys_vendor").write_text("Amazon EC2\n")
    assert ask_metadata(tmp_path, "http://127.0.0.1:1") == Metadata("AWS", "[Errno 111] Connection refused")


@pytest.mark.parametrize("text", [None, "QEMU\n", "Microsoft Corporation\n"])
def test_a_machine_of_no_cloud_asks_nobody(text: str | None, service: Service, tmp_path: Path) -> None:
    if text:
        (tmp_path / "sys_vendor").write_text(text)
    assert ask(service, tmp_path) == Metadata()
    assert service.asked == []
