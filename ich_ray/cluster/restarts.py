"""A job that is submitted again with `--resume` when its driver or the cluster's head was lost.

The process that submitted it waits for its end, wherever that process runs: nothing on a cluster outlives its head.
Only what was lost is brought back. A command that ended by itself, whatever its exit code, would end so again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ich_ray.cluster.jobs import outcome
from ich_ray.cluster.jobs import submit as submit_job
from ich_ray.cluster.ray_errors import UnknownJob, Unreachable
from ich_ray.errors import ConfigError, IchRayError, Interrupted
from ich_ray.progress import say
from ich_ray.runtime import terminated_as_interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ich_ray.cluster.jobs import Job

__all__ = ["RestartedJob", "run_to_end"]

Answer = TypeVar("Answer")
_LOOK_EVERY_S = 10.0
# A driver that has lost its head ends within 60 s, and lets go of its search then.
_PAUSE_S = 60.0
# A head may have to be rented again.
_PATIENCE_S = 3600.0
# The highest exit code of ours; above are signals as a shell tells them, and 130, an interrupt from outside.
_LARGEST_OWN_CODE = 5
# Of a job that never ran, and would not the next time.
_NEVER_RAN = ("runtime_env setup failed", "could not be scheduled", "failed to start within")


class RestartedJob(NamedTuple):
    """The last job of a command, and how often it was submitted again."""

    job: Job
    restarts: int


def run_to_end(
    command: Sequence[str],
    restarts: int,
    *,
    knows_resume: bool,
    submitted: Callable[[str], None],
    address: str | None = None,
    cpus: float = 0,
    gpus: float = 0,
    python: str = "python",
) -> RestartedJob:
    """Submit a command, wait for its end, and bring it back where it was lost.

    Args:
        command: a verb and its arguments, see `jobs.submit`.
        restarts: how often at most.
        knows_resume: whether the verb has a flag `--resume`; others go on by themselves.
        submitted: told the id of each job.
        address: the cluster's dashboard, which a new head must answer at, too.
        cpus: see `jobs.submit`.
        gpus: see `jobs.submit`.
        python: see `jobs.submit`.

    Raises:
        ConfigError: the command, the address or the token is not right.
        IchRayError: the cluster did not answer for an hour, or its last job was lost without a trace.
        Interrupted: nobody waits for it any more; the message tells whether a job goes on.
    """
    again = [command[0], "--resume", *command[1:]] if knows_resume and "--resume" not in command else [*command]
    with terminated_as_interrupted():
        job = submit_job(command, address=address, cpus=cpus, gpus=gpus, python=python)
        for number in range(restarts + 1):
            submitted(job)
            try:
                ended = _end_of(job, address)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"{job}: is brought back only while this command waits for it, got interrupted; the job goes on, "
                    "and `ich-ray stop` ends it"
                ) from None
            why = "the cluster has no record of it" if ended is None else _loss(ended)
            if number == restarts or not why:
                break
            say(f"{job}: lost ({why}), submitted again in {_PAUSE_S:.0f} s: restart {number + 1} of {restarts}")
            try:
                time.sleep(_PAUSE_S)
                job = _once_there(lambda: submit_job(again, address=address, cpus=cpus, gpus=gpus, python=python))
            except KeyboardInterrupt:
                raise Interrupted(
                    f"{job}: was lost and is not known to be submitted again, got interrupted; see `ich-ray jobs`, and "
                    f"submit it{' with --resume' * knows_resume} to go on"
                ) from None
    if ended is None:
        raise IchRayError(
            f"{job}: must end on the cluster that it was sent to, got lost with its head after {number} restart(s); "
            "start the cluster again and submit with --resume, nothing else is lost"
        )
    return RestartedJob(ended, number)


def _end_of(job: str, address: str | None) -> Job | None:
    """How a job ended; None where the cluster that answers has no record of it: it has another head."""
    while True:
        try:
            found = _once_there(lambda: outcome(job, address))
        except UnknownJob:
            return None
        if found.has_ended:
            return found
        time.sleep(_LOOK_EVERY_S)


def _once_there(ask: Callable[[], Answer]) -> Answer:
    """What the cluster answers, as soon as it does: a new head may be on its way.

    Raises:
        IchRayError: it does not for an hour, or it answers that something is wrong.
    """
    began, told = time.monotonic(), False
    while True:
        try:
            return ask()
        except IchRayError as error:
            passing = isinstance(error, Unreachable) or not isinstance(error, ConfigError)
            if not passing or time.monotonic() - began > _PATIENCE_S:
                raise
            if not told:
                told = True
                say(f"waiting for the cluster for at most {_PATIENCE_S / 60:.0f} minutes: {error}")
        time.sleep(_LOOK_EVERY_S)


def _loss(ended: Job) -> str:
    """What has ended a job that did not end by itself; empty for every other one."""
    if ended.state != "failed":
        return ""
    code, (message, *_) = ended.exit_code, ended.message.splitlines() or [""]
    if code is None:
        return "" if any(words in ended.message for words in _NEVER_RAN) else message[:200] or "its process is gone"
    return "" if 0 <= code <= _LARGEST_OWN_CODE else f"its process ended with {code}"
