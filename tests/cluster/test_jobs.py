"""Jobs on a real Ray that demands a token."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import ich_ray
from ich_ray import cli
from ich_ray.cluster import jobs, restarts
from ich_ray.errors import ConfigError
from ich_ray.ray_internals import forget_authentication
from ich_ray.results import open_search
from ich_ray.runtime import connected
from tests.cluster.heads import Head, running_head, write_token
from tests.prepared import make_dataset

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

SPACE = """
name: tiny
budget: {images: 400, report_every: 200, first_rung: 200, reduction: 3, min_peers: 2}
parameters:
  architecture: {choice: [plain_cnn]}
  filters: {fixed: 4}
  batch_size: {choice: [16]}
  learning_rate: {loguniform: [1.0e-4, 1.0e-2]}
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with running_head(tmp_path_factory.mktemp("head")) as made:
        yield made


@pytest.fixture
def token(head: Head, monkeypatch: pytest.MonkeyPatch) -> Head:
    """What a user of this cluster has: its token."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(head.token_file))
    return head


def test_a_search_is_submitted_followed_and_read(
    token: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path / "data", patients=20)
    (tmp_path / "mine.yaml").write_text(SPACE)
    monkeypatch.chdir(tmp_path)
    command = ["search", str(tmp_path / "data"), "--space", "mine.yaml", "--out", str(tmp_path / "s"), "--trials", "2"]
    began = time.monotonic()
    assert cli.call(["submit", "--address", token.url, "--", *command]) == 0
    assert time.monotonic() - began < 30
    job = capsys.readouterr().out.strip()
    assert job.startswith("ich-search-")
    assert cli.call(["logs", job, "--follow", "--address", token.url]) == 0
    printed = capsys.readouterr().out
    assert printed.count("2 of 2 trials") == 1
    assert open_search(tmp_path / "s").count("completed") + open_search(tmp_path / "s").count("pruned") == 2
    assert "py_modules_files" not in printed
    (listed,) = [found for found in ich_ray.jobs(token.url) if found.id == job]
    assert (listed.state, listed.exit_code) == ("succeeded", 0)
    assert listed.command.startswith(f"ich-ray search {tmp_path}/data --space mine.yaml ")


def test_a_job_that_fails_ends_with_its_own_exit_code(token: Head, capsys: pytest.CaptureFixture[str]) -> None:
    job = ich_ray.submit(["report", "/nowhere"], address=token.url)
    assert cli.call(["logs", job, "--follow", "--address", token.url]) == 2
    assert "a search holds search.json, got none" in capsys.readouterr().out
    assert ich_ray.stop(job, token.url) is False
    assert cli.call(["jobs", "--address", token.url]) == 0
    assert f"{job}  failed (exit 2)" in capsys.readouterr().out


def test_a_stopped_search_stops(token: Head, tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", patients=20)
    (tmp_path / "mine.yaml").write_text(SPACE.replace("400", "400000000"))
    command = ["search", f"{tmp_path}/data", f"--space={tmp_path}/mine.yaml", "--out", f"{tmp_path}/s"]
    job = ich_ray.submit(command, address=token.url)
    deadline = time.monotonic() + 120
    while not (tmp_path / "s" / "trials").exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert ich_ray.stop(job, token.url) is True
    while not jobs.outcome(job, token.url).has_ended and time.monotonic() < deadline:
        time.sleep(0.5)
    assert jobs.outcome(job, token.url).state == "stopped"
    assert open_search(tmp_path / "s").count("running") > 0


@pytest.mark.timeout(600)
def test_a_search_whose_driver_is_killed_is_brought_back(
    token: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "_LOOK_EVERY_S", 0.5)
    monkeypatch.setattr(restarts, "_PAUSE_S", 1.0)
    make_dataset(tmp_path / "data", patients=20)
    (tmp_path / "mine.yaml").write_text(SPACE)
    command = ["search", f"{tmp_path}/data", f"--space={tmp_path}/mine.yaml", "--out", f"{tmp_path}/s", "--trials", "3"]
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        deadline = time.monotonic() + 300
        while not killed and not over.is_set() and time.monotonic() < deadline:
            time.sleep(0.05)
            if not (tmp_path / "s" / "search.json").exists():
                continue
            for process in psutil.process_iter(["cmdline"]):
                if {"ich_ray.cli", f"{tmp_path}/s"} <= {*(process.info["cmdline"] or ())}:
                    with suppress(psutil.NoSuchProcess):  # it has ended by itself, or another one of that name
                        process.kill()
                        killed.append(process.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        code = cli.call(["submit", "--restarts", "2", "--address", token.url, "--", *command])
    finally:
        over.set()
        thread.join()
    first, second = capsys.readouterr().out.split()
    assert (code, len(killed)) == (0, 1)
    assert jobs.outcome(first, token.url).state == "failed"
    assert "--resume" in jobs.outcome(second, token.url).command
    found = open_search(tmp_path / "s")
    assert found.count("completed") + found.count("pruned") == 3


class Line:
    """A connection to the head that can be cut: a TCP relay on loopback."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self.target, self.open, self.ends = (host, int(port)), True, list[socket.socket]()
        self.door = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.door.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self.door.accept()
            if not self.open:
                near.close()
                continue
            far = socket.create_connection(self.target)
            self.ends += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._move, args=(one, other), daemon=True).start()

    @staticmethod
    def _move(one: socket.socket, other: socket.socket) -> None:
        with other, suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)

    def cut(self) -> None:
        self.open = False
        for end in self.ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_following_survives_a_lost_connection(token: Head, tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", patients=20)
    (tmp_path / "mine.yaml").write_text(SPACE)
    command = ["search", f"{tmp_path}/data", f"--space={tmp_path}/mine.yaml", "--out", f"{tmp_path}/s", "--trials", "3"]
    line = Line(token.url)
    job = ich_ray.submit(command, address=line.url)
    followed, cuts = "", 0
    for piece in ich_ray.logs(job, address=line.url, follow=True):
        followed += piece
        if cuts < 2 and ("Running entrypoint" in followed if cuts == 0 else "trial 0" in followed):
            cuts += 1
            line.cut()
            threading.Timer(2, setattr, (line, "open", True)).start()
    assert cuts == 2
    assert followed == "".join(ich_ray.logs(job, address=token.url))
    assert followed.count("3 of 3 trials") == 1


@pytest.mark.parametrize("call", [["jobs"], ["logs", "x"], ["stop", "x"], ["submit", "--", "report", "/nowhere"]])
def test_without_the_token_nothing_is_told_or_done(
    call: list[str], head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = [call[0], "--address", head.url, *call[1:]]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    assert cli.call(call) == 2
    assert "must be shown the cluster's token, got none" in capsys.readouterr().err
    wrong = write_token(tmp_path / "wrong", "wrong" * 10)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(wrong))
    assert cli.call(call) == 2
    assert f"must be shown the cluster's token, got another one from {wrong}" in capsys.readouterr().err
    wrong.chmod(0o644)
    assert cli.call(call) == 2
    said = capsys.readouterr()
    assert "only you may read a token, got mode 0644" in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)


def test_a_job_that_is_not_there_is_told(token: Head, capsys: pytest.CaptureFixture[str]) -> None:
    for call in (["logs", "nothing"], ["logs", "nothing", "--follow"], ["stop", "nothing"]):
        assert cli.call([*call, "--address", token.url]) == 2
        assert f"job nothing: must be known at {token.url}, got none; `ich-ray jobs`" in capsys.readouterr().err


@pytest.fixture
def _forgets() -> Iterator[None]:
    yield
    forget_authentication()  # after the environment is as before


@pytest.mark.usefixtures("_forgets")
@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_joining_without_the_token_says_so_at_once(
    mode: str, head: Head, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(write_token(tmp_path / "wrong", "f" * 64)))
    forget_authentication()
    with pytest.raises(ConfigError, match="a token that is wrong or missing"), connected(head.address):
        pass
    assert capfd.readouterr().err == "", "Ray has not tried twenty times"
