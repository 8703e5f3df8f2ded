"""A stand-in of a cloud's metadata service on loopback, and the firmware's tables of a machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from ich_ray.cluster.metadata_service import Metadata, ask_metadata
from tests.loopback import serving


@dataclass
class Service:
    """Answers with one status, and keeps what it was asked."""

    url: str = ""
    status: int = 200
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()

    class Door(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append(self.path)
            self.send_response(made.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_PUT = do_GET  # noqa: N815  (the name that the base class looks for)

        def log_message(self, *_: object) -> None:
            pass

    with serving(Door) as made.url:
        yield made


@pytest.mark.parametrize(
    ("cloud", "name", "path"),
    [
        ("aws", "AWS", "/latest/api/token"),
        ("gcp", "Google Cloud", "/computeMetadata/v1/instance/preempted"),
        ("azure", "Azure", "/metadata/instance/compute/name?api-version=2021-02-01&format=text"),
    ],
)
def test_the_service_of_each_cloud_is_asked_once(
    cloud: str, name: str, path: str, service: Service, tmp_path: Path
) -> None:
    environ = {"ICH_RAY_METADATA_SERVICE": f"{cloud}={service.url}"}
    assert ask_metadata(environ, tmp_path) == Metadata(name)
    assert service.asked == [path]
    service.status = 403
    assert ask_metadata(environ, tmp_path) == Metadata(name, "HTTP Error 403: Forbidden")


def test_a_service_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:2")
    environ = {"ICH_RAY_METADATA_SERVICE": "aws=http://127.0.0.1:1"}
    assert ask_metadata(environ, tmp_path) == Metadata("AWS", "<urlopen error [Errno 111] Connection refused>")
    assert ask_metadata({"ICH_RAY_METADATA_SERVICE": "x"}, tmp_path).problem.startswith("ICH_RAY_METADATA_SERVICE: ")


@pytest.mark.parametrize("text", [None, "QEMU\n", "Microsoft Corporation\n"])
def test_a_machine_of_no_cloud_asks_nobody(text: str | None, tmp_path: Path) -> None:
    if text:
        (tmp_path / "sys_vendor").write_text(text)
    assert ask_metadata({}, tmp_path) == Metadata()
