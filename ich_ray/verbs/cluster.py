"""A cluster from outside: jobs, and what is wrong with it."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ich_ray.progress import say
from ich_ray.terminal import print_json, print_line, print_log
from ich_ray.verbs.options import Json

if TYPE_CHECKING:
    from ich_ray.cluster.jobs import Job

__all__ = ["VERBS"]

Address = Annotated[
    str | None,
    typer.Option("--address", help="The cluster's dashboard; default RAY_API_SERVER_ADDRESS, else the local tunnel."),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="What `ich-ray submit` printed.")]


def submit(
    context: typer.Context,
    command: Annotated[list[str], typer.Argument(metavar="-- VERB ...", help="What to run, as it would be here.")],
    address: Address = None,
    cpus: Annotated[float, typer.Option("--cpus", min=0, help="CPUs the command itself holds; 0: on the head.")] = 0,
    gpus: Annotated[float, typer.Option("--gpus", min=0, help="GPUs it holds, to calibrate or evaluate.")] = 0,
    python: Annotated[str, typer.Option("--python", help="The interpreter of the cluster.")] = "python",
    restarts: Annotated[
        int,
        typer.Option(
            "--restarts", min=0, help="Wait for its end, and submit it again where its driver or its head was lost."
        ),
    ] = 0,
) -> None:
    """Run a verb on a cluster, and return at once unless it may be restarted."""
    from ich_ray.cluster.jobs import submit as submit_job
    from ich_ray.cluster.restarts import run_to_end

    flags = _check_flags(context, command)

    def submitted(job: str) -> None:
        say(f"submitted; `ich-ray logs {job} --follow` shows how it goes on")
        print_line(job)

    if not restarts:
        submitted(submit_job(command, address=address, cpus=cpus, gpus=gpus, python=python))
        return
    ended, number = run_to_end(
        command, restarts, knows_resume="--resume" in flags, submitted=submitted, address=address, cpus=cpus,
        gpus=gpus, python=python,
    )  # fmt: skip
    say(f"{ended.id}: {_state(ended)} after {number} of at most {restarts} restarts")
    _exit_as(ended)


def jobs(address: Address = None, as_json: Json = False) -> None:
    """The jobs of a cluster, newest first."""
    from ich_ray.cluster.jobs import jobs as list_jobs

    found = list_jobs(address)
    if as_json:
        print_json([asdict(job) for job in found])
        return
    for job in found:
        print_line(f"{job.id}  {_state(job)}  {_times(job)}  {job.command}")


def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job has ended.")] = False,
    address: Address = None,
) -> None:
    """What a job has printed; --follow ends as it ends."""
    from ich_ray.cluster.jobs import logs as job_logs
    from ich_ray.cluster.jobs import outcome

    print_log(job_logs(job, address=address, follow=follow))
    if follow:
        ended = outcome(job, address)
        say(f"{job}: {_state(ended)}")
        _exit_as(ended)


def stop(job: JobId, address: Address = None) -> None:
    """Stop a job; a search can be resumed."""
    from ich_ray.cluster.jobs import stop as stop_job

    print_line(f"{job}  {'stopping' if stop_job(job, address) else 'had ended before'}")


def doctor(
    address: Annotated[
        str | None, typer.Option("--address", help="A Ray cluster, from inside: auto on its head.")
    ] = None,
    storage: Annotated[str | None, typer.Option("--storage", help="What every machine must read and write.")] = None,
    cluster_file: Annotated[str | None, typer.Option("--cluster-file", help="Search it for secrets.")] = None,
    as_json: Json = False,
) -> None:
    """What would break a search here, or on a cluster."""
    from ich_ray.cluster.doctor import doctor as examine

    findings = examine(address=address, storage=storage, cluster_file=cluster_file)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            print_line(finding)
    if any(finding.state == "error" for finding in findings):
        raise typer.Exit(1)


def _check_flags(context: typer.Context, command: list[str]) -> set[str]:
    """Read the command as this machine would, so that a misspelt flag is told before it travels; its verb's flags."""
    verbs = context.find_root().command
    known = verbs.get_command(context, command[0])  # type: ignore[attr-defined]
    if not known:
        return set()
    known.make_context(command[0], command[1:], parent=context.find_root())
    return {flag for parameter in known.params for flag in parameter.opts}


def _exit_as(ended: Job) -> None:
    """End as a job did that was waited for."""
    if ended.state != "succeeded":
        raise typer.Exit(ended.exit_code or 1)


def _state(job: Job) -> str:
    why = {None: "", 0: "", 3: " (exit 3: some inputs were rejected)"}
    return job.state + why.get(job.exit_code, f" (exit {job.exit_code})")


def _times(job: Job) -> str:
    if job.started is None:
        return "not started"
    took = (job.ended or time.time()) - job.started
    return f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(job.started))} for {took / 60:.0f} min"


VERBS = (submit, jobs, logs, stop, doctor)
