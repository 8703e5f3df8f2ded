"""Jobs that are brought back, with a cluster that answers from a list."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from ich_ray import cli
from ich_ray.cluster import jobs, restarts
from ich_ray.cluster.jobs import Job
from ich_ray.cluster.ray_errors import UnknownJob, Unreachable
from ich_ray.errors import ConfigError, IchRayError
from ich_ray.verbs import cluster as verbs

SEARCH = ["search", "/shared/D", "--space", "/shared/space.yaml", "--out", "/shared/S"]
RUNNING = Job("", "running", "", 0.0, None, None, "")
DONE = Job("", "succeeded", "", 0.0, 1.0, 0, "")
KILLED = Job("", "failed", "", 0.0, 1.0, -9, "Job entrypoint command failed with exit code -9, last available logs")
HEADLESS = Job("", "failed", "", 0.0, 1.0, None, "Job supervisor actor died: node failed\nmore")
STOPPED = Job("", "stopped", "", 0.0, 1.0, None, "")
AWAY, NEW_HEAD = Unreachable("must answer"), UnknownJob("must be known")


def failed(code: int | None, message: str = "") -> Job:
    return Job("", "failed", "", 0.0, 1.0, code, message)


class Cluster:
    """Answers from a list, job after job; time passes only where somebody waits."""

    def __init__(self) -> None:
        self.answers: list[Job | Exception] = []
        self.refusals: list[Exception] = []
        self.sent: list[list[str]] = []
        self.said: list[str] = []
        self.now = 0.0

    def submit(self, command: list[str], **_: Any) -> str:
        if self.sent and self.refusals:
            raise self.refusals.pop(0)
        self.sent.append([*command])
        return f"job-{len(self.sent)}"

    def outcome(self, job: str, _: str | None) -> Job:
        assert job == f"job-{len(self.sent)}"
        found = self.answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return Job(job, found.state, "", found.started, found.ended, found.exit_code, found.message)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    made = Cluster()
    monkeypatch.setattr(jobs, "submit", made.submit)
    for module in (restarts, verbs):
        monkeypatch.setattr(module, "say", made.said.append)
    monkeypatch.setattr(restarts, "submit_job", made.submit)
    monkeypatch.setattr(restarts, "outcome", made.outcome)
    monkeypatch.setattr(restarts.time, "sleep", made.sleep)
    monkeypatch.setattr(restarts.time, "monotonic", lambda: made.now)
    yield made
    assert made.answers == []


def submit(*flags: str, command: list[str] = SEARCH) -> int:
    return cli.call(["submit", *flags, "--address", "http://localhost:1", "--", *command])


@pytest.mark.parametrize("lost", [KILLED, failed(137), failed(143), failed(130), HEADLESS, NEW_HEAD, failed(None)])
def test_what_was_lost_is_submitted_again_with_resume(
    cluster: Cluster, lost: Job | Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.answers = [RUNNING, lost, RUNNING, DONE]
    assert submit("--restarts", "3") == 0
    assert cluster.sent == [SEARCH, ["search", "--resume", *SEARCH[1:]]]
    assert capsys.readouterr().out == "job-1\njob-2\n"
    assert cluster.said[-1] == "job-2: succeeded after 1 of at most 3 restarts"
    assert cluster.now == 10.0 + 60.0 + 10.0


@pytest.mark.parametrize("code", [1, 2, 4, 5])
def test_what_ended_by_itself_is_not_brought_back(cluster: Cluster, code: int) -> None:
    cluster.answers = [failed(code, "Job entrypoint command failed")]
    assert submit("--restarts", "3") == code
    assert cluster.sent == [SEARCH]
    assert cluster.said[-1] == f"job-1: failed (exit {code}) after 0 of at most 3 restarts"


@pytest.mark.parametrize(
    "ended",
    [
        STOPPED,
        failed(None, "runtime_env setup failed: no such package"),
        failed(None, "Job supervisor actor could not be scheduled: no node"),
        failed(None, "Job supervisor actor failed to start within 900 seconds."),
    ],
)
def test_what_was_stopped_or_never_ran_is_not_brought_back(cluster: Cluster, ended: Job) -> None:
    cluster.answers = [ended]
    assert submit("--restarts", "3") == 1
    assert len(cluster.sent) == 1


def test_it_is_brought_back_so_often_and_no_more(cluster: Cluster) -> None:
    cluster.answers = [KILLED] * 3
    assert submit("--restarts", "2") != 0
    assert [command.count("--resume") for command in cluster.sent] == [0, 1, 1]
    assert cluster.said[-1] == "job-3: failed (exit -9) after 2 of at most 2 restarts"


def test_resume_is_added_once_and_only_to_verbs_that_know_it(cluster: Cluster) -> None:
    cluster.answers = [KILLED, DONE]
    assert submit("--restarts", "1", command=[*SEARCH, "--resume"]) == 0
    assert cluster.sent == [[*SEARCH, "--resume"]] * 2
    cluster.answers, retrain = [KILLED, DONE], ["retrain", "/shared/S"]
    cluster.sent.clear()
    assert submit("--restarts", "1", command=retrain) == 0
    assert cluster.sent == [retrain] * 2


def test_a_head_that_is_on_its_way_is_waited_for(cluster: Cluster) -> None:
    cluster.answers = [RUNNING, *[AWAY] * 30, NEW_HEAD, DONE]
    cluster.refusals = [AWAY, IchRayError("No available agent to submit job, please try again later")]
    assert submit("--restarts", "1") == 0
    assert len(cluster.sent) == 2
    assert cluster.said.count("waiting for the cluster for at most 60 minutes: must answer") == 2


def test_a_head_that_does_not_come_back_in_an_hour_ends_it(cluster: Cluster) -> None:
    cluster.answers = [AWAY] * 362
    assert submit("--restarts", "1") == 2
    assert cluster.now == pytest.approx(3610.0)


def test_a_job_that_was_lost_with_its_last_head_is_told(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.answers = [NEW_HEAD, NEW_HEAD]
    assert submit("--restarts", "1") == 1
    assert "job-2: must end on the cluster that it was sent to, got lost with its head after 1 restart(s)" in (
        capsys.readouterr().err
    )


def test_a_new_head_with_another_token_is_told_at_once(cluster: Cluster) -> None:
    cluster.answers = [ConfigError("must be shown the cluster's token")]
    assert submit("--restarts", "1") == 2
    assert cluster.now == 0.0


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("answers", "refused", "asleep_s", "told"),
    [
        ([RUNNING], False, 10.0, "job-1: is brought back only while this command waits for it, got interrupted; "
         "the job goes on, and `ich-ray stop` ends it"),
        ([KILLED], False, 60.0, "job-1: was lost and is not known to be submitted again, got interrupted; "
         "see `ich-ray jobs`, and submit it with --resume to go on"),
        ([KILLED], True, 10.0, "job-1: was lost and is not known to be submitted again, got interrupted; "
         "see `ich-ray jobs`, and submit it with --resume to go on"),
    ],
)  # fmt: skip
def test_a_signal_says_whether_a_job_goes_on(
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    by: signal.Signals,
    answers: list[Job | Exception],
    refused: bool,
    asleep_s: float,
    told: str,
) -> None:
    """In the wait for its end, in the pause after its loss, and while a new head is waited for."""

    def sleep(seconds: float) -> None:
        if seconds == asleep_s:
            signal.raise_signal(by)

    def ended(*_: object) -> None:
        raise AssertionError("SIGTERM must be caught")

    cluster.answers, cluster.refusals = [*answers], [AWAY] * refused
    monkeypatch.setattr(restarts.time, "sleep", sleep)
    before = signal.signal(signal.SIGTERM, ended)
    try:
        assert submit("--restarts", "1") == 130
        assert signal.getsignal(signal.SIGTERM) is ended
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err.strip() == f"ich-ray: {told}"
    assert cluster.sent == [SEARCH]


def test_without_restarts_it_returns_at_once(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit() == 0
    assert capsys.readouterr().out == "job-1\n"
