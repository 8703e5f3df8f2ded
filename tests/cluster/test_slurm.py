"""clusters/slurm.sh for real: a Slurm on loopback, a search to its end, and one that is preempted and comes back."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import pytest

import ich_ray
from ich_ray.search.audit.search_audit import audit
from tests.cluster.heads import ray_environment, write_token
from tests.cluster.slurm import REPOSITORY, Slurm, missing, running_slurm
from tests.cluster.test_jobs import SPACE
from tests.prepared import make_dataset

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]

SCRIPT = str(REPOSITORY / "clusters/slurm.sh")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    folder = tmp_path_factory.mktemp("slurm")
    with running_slurm(folder, ray_environment(write_token(folder / "token"))) as made:
        make_dataset(folder / "data", patients=20)
        (folder / "small.yaml").write_text(SPACE)
        # Trials that do not end by themselves while they are interrupted, however fast the machine is.
        (folder / "endless.yaml").write_text(SPACE.replace("images: 400, ", "images: 1000000, "))
        yield made


def submit(slurm: Slurm, space: str, out: str, trials: int) -> str:
    """The search as a user submits it, on the partition that this Slurm has."""
    search = ["search", "data", "--space", space, "--out", out, "--trials", str(trials)]
    return slurm.run("sbatch", "--parsable", "--partition=idle", "--time=30", "--output=%j.log", SCRIPT, *search)


def printed(slurm: Slurm, job: str) -> str:
    path = slurm.folder / f"{job}.log"
    return path.read_text() if path.exists() else ""


def until(holds: Callable[[], bool], slurm: Slurm, job: str, failed: str = "FAILED") -> None:
    deadline = time.monotonic() + 500
    while not holds():
        assert time.monotonic() < deadline, printed(slurm, job)[-4000:]
        assert slurm.job(job, "JobState") != (failed,), printed(slurm, job)[-4000:]
        time.sleep(0.5)


def images(slurm: Slurm, out: str) -> dict[int, int]:
    """Images that each trial of a search has reported."""
    path = slurm.folder / out
    trials = ich_ray.open_search(path).trials if (path / "search.json").exists() else ()
    return {trial.number: trial.reports[-1].images_seen for trial in trials if trial.reports}


def test_a_search_runs_to_its_end(slurm: Slurm) -> None:
    job = submit(slurm, "small.yaml", "small", 2)
    until(lambda: slurm.job(job, "JobState") == ("COMPLETED",), slurm, job)
    assert slurm.job(job, "ExitCode", "Restarts") == ("0:0", "0")
    found = ich_ray.open_search(slurm.folder / "small")
    assert (len(found.trials), found.count("completed")) == (2, 2)
    told = printed(slurm, job)
    (hours,) = re.findall(r"'--hours', '([0-9.]+)'", told)
    assert 0.25 < float(hours) <= 20 / 60  # of the 30 minutes that it was given
    assert "2 trials ended (2 completed" in told
    assert "scripts.py" not in told


def test_a_search_comes_back_after_it_was_preempted_and_after_its_limit(slurm: Slurm) -> None:
    job = submit(slurm, "endless.yaml", "endless", 2)
    until(lambda: len(images(slurm, "endless")) == 2, slurm, job)

    urgent = slurm.run("sbatch", "--parsable", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=true")
    until(lambda: slurm.job(job, "JobState") == ("PENDING",), slurm, job)
    until(lambda: slurm.job(urgent, "JobState") == ("COMPLETED",), slurm, job)
    assert f"slurm.sh: interrupted; job {job} goes back into the queue" in printed(slurm, job)
    before = images(slurm, "endless")
    assert {trial.state for trial in ich_ray.open_search(slurm.folder / "endless").trials} == {"running"}

    # Slurm lets it wait for two minutes, and starts nothing in the second in which it has ended the job.
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now+5seconds")
    until(lambda: all(images(slurm, "endless")[trial] > seen for trial, seen in before.items()), slurm, job)
    assert slurm.job(job, "JobState", "Restarts") == ("RUNNING", "1")

    slurm.run("scancel", "--signal=USR1", "--batch", job)  # as Slurm itself does 5 minutes before the limit
    until(lambda: slurm.job(job, "JobState") == ("PENDING",), slurm, job)
    assert printed(slurm, job).count(f"job {job} goes back into the queue") == 2
    slurm.run("scancel", job)

    found = ich_ray.open_search(slurm.folder / "endless")
    assert {trial.number: trial.state for trial in found.trials} == {0: "running", 1: "running"}
    for trial in found.trials:
        seen = [report.images_seen for report in trial.reports]
        assert seen == list(range(200, 200 * len(seen) + 1, 200))  # none was lost, none was made twice
    assert audit(slurm.folder / "endless").breached == ()


def test_an_array_of_jobs_is_refused_in_a_line(slurm: Slurm) -> None:
    options = ["--parsable", "--partition=idle", "--array=1-1", "--output=array.log"]
    job = slurm.run("sbatch", *options, SCRIPT, "search", "data")
    until(lambda: slurm.job(job, "JobState", "ExitCode") == ("FAILED", "2:0"), slurm, job, failed="COMPLETED")
    (line,) = (slurm.folder / "array.log").read_text().splitlines()
    assert line.startswith("slurm.sh: one job must be one search")
    assert line.endswith("leave --array out")
