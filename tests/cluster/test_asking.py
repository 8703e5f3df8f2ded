"""What is asked of a dashboard, and what its answers become, without a Ray behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ich_ray
from ich_ray import cli
from ich_ray.cluster import jobs
from ich_ray.cluster.jobs import Job
from ich_ray.errors import ConfigError
from tests.cluster.heads import TOKEN
from tests.loopback import serving


@pytest.fixture(autouse=True)
def _no_token_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray writes one there for all to read, which a user may have."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)


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

    with serving(Door) as url:
        yield url, asked


def test_no_proxy_is_shown_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with answering(502) as (proxy, overheard), answering(404) as (dashboard, asked):
        monkeypatch.setenv("http_proxy", proxy)
        assert cli.call(["jobs", "--address", dashboard]) == 1
    assert (overheard, asked) == ([], ["/api/version"])


ADDRESS = "http://localhost:1"


def test_a_job_that_is_gone_while_it_is_followed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that was started again answers at the old one's address and knows none of its jobs."""
    answers: list[Any] = [None]

    def known(job: str) -> Any:
        if not answers:
            raise RuntimeError(f"Request failed with status code 404: Job {job} does not exist.")
        return answers.pop()

    def cut(*_: object) -> Iterator[str]:
        yield "half of it"
        raise ConnectionError("cut")

    monkeypatch.setattr(jobs, "_client", lambda _: SimpleNamespace(get_job_info=known))
    monkeypatch.setattr(jobs, "_tail", cut)
    pieces = ich_ray.logs("mine", address=ADDRESS, follow=True)
    assert next(pieces) == "half of it"
    with pytest.raises(ConfigError, match="job mine: must be known at http://localhost:1, got none"):
        next(pieces)


def test_an_answer_that_was_lost_is_asked_for_again_and_nothing_is_submitted_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tunnel breaks after the job has arrived, and is back a moment later."""
    arrived: list[str] = []

    def submit_job(submission_id: str, entrypoint: str, **_: object) -> None:
        assert entrypoint == "python -P -m ich_ray.cli report /shared/S", "the folder in which Ray runs it comes first"
        arrived.append(submission_id)
        raise ConnectionError("cut")

    def listed() -> list[SimpleNamespace]:
        return [SimpleNamespace(submission_id=job) for job in arrived]

    there = SimpleNamespace(submit_job=submit_job, list_jobs=listed)
    connections: list[Any] = [there, ConnectionRefusedError("down"), there]

    def client(_: object) -> Any:
        found = connections.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(jobs, "_client", client)
    monkeypatch.setattr(jobs.time, "sleep", lambda _: None)
    assert ich_ray.submit(["report", "/shared/S"], address=ADDRESS) == arrived[0]
    assert (len(arrived), connections) == (1, [])


@pytest.mark.parametrize("verb", [["logs"], ["logs", "--follow"], ["stop"]])
def test_an_empty_id_is_no_job(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What a shell makes of a variable that was never set."""
    assert cli.call([*verb, "", "--address", ADDRESS]) == 2
    assert "job: an id must be given, got an empty one" in capsys.readouterr().err


def test_other_jobs_can_neither_pass_for_one_nor_steer_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job("theirs", "failed", "sleep 1 # \x1b]0;x\x07\nmine  succeeded", 0.0, 60.0, 1, "")
    monkeypatch.setattr(jobs, "jobs", lambda _: [job])
    assert cli.call(["jobs"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("theirs  failed (exit 1)")
    assert line.endswith(r"sleep 1 # \x1b]0;x\x07\nmine  succeeded")
