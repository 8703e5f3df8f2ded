"""clusters/slurm.sh with stand-ins of Slurm's and Ray's programs: what it starts, what it refuses, how it ends."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
from ray.scripts import scripts
from ray.scripts.symmetric_run import symmetric_run

from ich_ray import cli

SCRIPT = Path(__file__).parents[1] / "clusters" / "slurm.sh"
NUMBER = str(1_000_000 + os.getpid())  # the folder of the job in /tmp has it
SEARCH = ("search", "/mnt/DATASET", "--space", "my.yaml", "--out", "/mnt/SEARCH")
# `srun` notes what it was told, and starts its command once, as on the first machine, or ends as if it had been ended.
SRUN = """
printf '%s\\0' "$@" >"$NOTES/srun"
case $SRUN_CODE in command) ;; *) echo 1 >"$STARTED"; exit "$SRUN_CODE" ;; esac
while [ "$1" != bash ]; do shift; done
"$@"
code=$?
echo $code >"$NOTES/machine"
exit $code
"""
RAY = """
echo "$1 $2" >>"$NOTES/ray"
case $1 in
    get-auth-token) echo made >"$HOME/.ray/auth_token" ;;
    symmetric-run)
        [ -d "$RAY_TMPDIR" ] && [ -z "$RAY_ENDS" ] || exit "${RAY_ENDS:-9}"
        while [ "$1" != -- ]; do shift; done
        shift
        "$@"
        code=$?
        echo "2026-11-29 23:30:24,931 VINFO scripts.py:1421 -- Send termination request to ..." >&2
        exit $code
        ;;
esac
"""
PROGRAMS = {
    "srun": SRUN,
    "squeue": 'case "$*" in *%L*) echo "$LEFT" ;; *) echo "$STATE" ;; esac',
    "scontrol": 'case "$*" in *hostnames*) printf "gpu01\\ngpu02\\n" ;; *) echo "$@" >"$NOTES/scontrol" ;; esac',
    "sleep": "exit 0",
    "ray": RAY,
    "ich-ray": 'echo "$RAY_ADDRESS $RAY_AUTH_MODE $*" >"$NOTES/ich-ray"; eval "$COMMAND"',
}


@dataclass
class Job:
    """A batch job on two machines, whose steps end with `SRUN_CODE`, or as its command does."""

    folder: Path
    environ: dict[str, str]

    def start(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        given = {name: value for name, value in (self.environ | environ).items() if value}
        return subprocess.Popen(
            ["/bin/bash", str(SCRIPT), *arguments],
            env=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
        )

    def run(self, *arguments: str, **environ: str) -> tuple[int, str]:
        process = self.start(*arguments, **environ)
        told, _ = process.communicate(timeout=120)
        return process.returncode, told

    def note(self, program: str) -> str:
        path = self.folder / "notes" / program
        return path.read_text() if path.exists() else ""

    def steps(self) -> list[str]:
        """The arguments of `srun`."""
        return self.note("srun").split("\0")[:-1]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    for name in ("bin", "notes", "home/.ray"):
        (tmp_path / name).mkdir(parents=True)
    for name, text in PROGRAMS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    (tmp_path / "home/.ray/auth_token").write_text("token")
    environ = {
        "PATH": f"{tmp_path}/bin:/usr/bin:/bin",
        "HOME": f"{tmp_path}/home",
        "NOTES": f"{tmp_path}/notes",
        "SLURM_JOB_ID": NUMBER,
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "gpu[01-02]",
        "SRUN_CODE": "command",
        "COMMAND": "exit 0",
        "LEFT": "1-00:00:00",
        "STATE": "RUNNING",
    }
    return Job(tmp_path, environ)


def split(arguments: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Options of `srun`, arguments of `ray symmetric-run`, and the command of the first machine."""
    shell, separator = arguments.index("bash"), arguments.index("--")
    return arguments[:shell], arguments[shell + 4 : separator], arguments[separator + 1 :]


def test_ray_takes_its_arguments_and_we_ours(job: Job) -> None:
    assert job.run(*SEARCH) == (0, "")
    options, started, command = split(job.steps())
    assert {"--nodes=2", "--ntasks=2", "--kill-on-bad-exit=1", "--no-kill"} <= set(options)
    given = symmetric_run.make_context("symmetric-run", list(started)).params
    assert (given["address"], given["min_nodes"]) == ("gpu01:6379", 2)
    # What `ray symmetric-run` does not know it hands to `ray start`.
    more = list(given["ray_args_and_entrypoint"])
    start: dict[str, Any] = scripts.start.make_context("start", ["--head", *more]).params
    assert (start["include_dashboard"], start["disable_usage_stats"]) == (False, True)
    assert not {"--head", "--node-ip-address", "--port", "--block"} & {one.partition("=")[0] for one in more}
    verb, *flags = command[4:]
    search = typer.main.get_group(cli.app).commands[verb].make_context(verb, list(flags)).params
    assert (search["dataset"], search["resume"], search["hours"]) == ("/mnt/DATASET", True, 23.833)
    assert job.note("ich-ray").startswith("gpu01:6379 token search /mnt/DATASET --space my.yaml")


@pytest.mark.parametrize(
    ("left", "hours"),
    [
        ("30:00", "0.333"),
        ("1:00:00", "0.833"),
        ("9:59:59", "9.833"),
        ("2-01:10:00", "49.000"),
        ("10:01", "0.000"),
    ],
)
def test_a_search_ends_itself_ten_minutes_before_the_limit(job: Job, left: str, hours: str) -> None:
    code, told = job.run(*SEARCH, LEFT=left)
    if hours == "0.000":
        assert code == 2
        assert told == "slurm.sh: must have more than 10 minutes until the job's limit; give more with --time\n"
    else:
        assert job.steps()[-2:] == ["--hours", hours]


@pytest.mark.parametrize("left", ["UNLIMITED", "NOT_SET", "INVALID"])
def test_a_job_without_a_limit_gives_none(job: Job, left: str) -> None:
    assert job.run(*SEARCH, LEFT=left) == (0, "")
    assert job.steps()[-1] == "--resume"


@pytest.mark.parametrize("own", [("--hours", "100"), ("--hours=100",), ("--plan",)])
def test_hours_of_your_own_are_yours(job: Job, own: tuple[str, ...]) -> None:
    assert job.run(*SEARCH, "--resume", *own) == (0, "")
    _, _, command = split(job.steps())
    assert command[4:] == [*SEARCH, "--resume", *own]


def test_another_verb_is_started_as_it_is(job: Job) -> None:
    assert job.run("prepare", "/mnt/scans", "--out", "/mnt/DATASET") == (0, "")
    _, _, command = split(job.steps())
    assert command[4:] == ["prepare", "/mnt/scans", "--out", "/mnt/DATASET"]


@pytest.mark.parametrize(
    ("arguments", "environ", "told"),
    [
        (SEARCH, {"SLURM_ARRAY_JOB_ID": "16"}, "one job must be one search, whose trials share its machines"),
        (SEARCH, {"SLURM_JOB_ID": ""}, "must be a batch job, got started by hand"),
        ((), {}, "must be told what to run, got nothing"),
        (SEARCH, {"PATH": "/usr/bin:/bin"}, "must find ich-ray, got none on the PATH"),
    ],
)
def test_what_cannot_run_is_refused_in_a_line(
    job: Job, arguments: tuple[str, ...], environ: dict[str, str], told: str
) -> None:
    code, line = job.run(*arguments, **environ)
    assert code == 2
    assert line.startswith(f"slurm.sh: {told}")
    assert line.count("\n") == 1
    assert job.steps() == []


def test_a_token_is_made_where_there_is_none_and_is_private(job: Job) -> None:
    token = job.folder / "home/.ray/auth_token"
    token.unlink()
    assert job.run(*SEARCH) == (0, "")
    assert job.note("ray").startswith("get-auth-token --generate\n")
    assert token.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("code", [0, 1, 2, 3, 5])
def test_it_ends_as_its_command(job: Job, code: int) -> None:
    assert job.run(*SEARCH, COMMAND=f"exit {code}")[0] == code
    assert job.note("scontrol") == ""
    assert list(Path("/tmp").glob(f"ich-ray-{NUMBER}*")) == []


def test_what_the_command_says_is_kept_and_pages_of_ray_are_not(job: Job) -> None:
    assert job.run(*SEARCH, COMMAND="echo a result; echo progress >&2") == (0, "a result\nprogress\n")


@pytest.mark.parametrize(("code", "stops"), [(0, 1), (130, 1), (143, 2)])
def test_a_ray_that_was_left_behind_is_stopped(job: Job, code: int, stops: int) -> None:
    """Before, and after a signal to all: `ray symmetric-run` has ended then without doing it."""
    assert job.run(*SEARCH, COMMAND=f"exit {code}", STATE="COMPLETING")[0] == code
    told = job.note("ray").splitlines()
    assert (told[0], told.count("stop --force")) == ("stop --force", stops)


@pytest.mark.parametrize("code", [130, 143])
@pytest.mark.parametrize(("state", "back"), [("RUNNING", True), ("COMPLETING", False), ("CANCELLED", False)])
def test_a_job_that_was_preempted_goes_back_and_a_canceled_one_does_not(
    job: Job, code: int, state: str, back: bool
) -> None:
    assert job.run(*SEARCH, SRUN_CODE=str(code), STATE=state)[0] == code
    assert job.note("scontrol") == (f"requeue {NUMBER}\n" if back else "")


def test_a_step_that_was_killed_does_not_go_back(job: Job) -> None:
    """For its memory, as a rule: the next one would be, too."""
    assert job.run(*SEARCH, SRUN_CODE="137")[0] == 137
    assert job.note("scontrol") == ""


@pytest.mark.parametrize("code", [0, 1, 143])
def test_a_ray_that_did_not_start_is_no_good_end(job: Job, code: int) -> None:
    """On the first machine; on another one it must not end the first."""
    ended, told = job.run(*SEARCH, RAY_ENDS=str(code))
    assert job.note("machine") == "0\n"
    assert ended == 1
    assert told.startswith("slurm.sh: Ray must start on the first machine")


def test_near_the_limit_the_command_alone_is_ended_and_the_job_goes_back(job: Job) -> None:
    """By the signal that Slurm sends to the script 5 minutes before."""
    waits = 'trap "exit 130" TERM; touch "$NOTES/waits"; while :; do /bin/sleep 0.1; done'
    process = job.start(*SEARCH, COMMAND=waits, STATE="COMPLETING")
    deadline = time.monotonic() + 120
    while not (job.folder / "notes/waits").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert told == f"slurm.sh: interrupted; job {NUMBER} goes back into the queue\n"
    assert job.note("scontrol") == f"requeue {NUMBER}\n"


def test_slurm_is_told_to_warn_and_to_bring_it_back() -> None:
    lines = SCRIPT.read_text().splitlines()
    told = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert {"--requeue", "--signal=B:USR1@300", "--open-mode=append", "--no-kill", "--exclusive"} <= told
    assert os.access(SCRIPT, os.X_OK)


def test_the_command_of_its_comment_is_one_of_ours() -> None:
    (line,) = (line for line in SCRIPT.read_text().splitlines() if line.startswith("#   sbatch"))
    _, script, verb, *arguments = shlex.split(line.removeprefix("#"))
    assert (SCRIPT.parents[1] / script) == SCRIPT
    typer.main.get_group(cli.app).commands[verb].make_context(verb, arguments)
