"""Verbs run as jobs of a cluster: submit, list, follow, stop, through Ray's Jobs API.

A job is given this package and its search space, nothing else: datasets and searches lie where the cluster's machines
see them. What a connection can do to a job it does not survive is nothing: jobs run on without us.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import secrets
import shlex
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ich_ray import __version__
from ich_ray.cluster.access import Access, go_past_proxies, reach
from ich_ray.cluster.packing import pack
from ich_ray.cluster.ray_errors import remote_line, translate_errors
from ich_ray.errors import IchRayError
from ich_ray.progress import say
from ich_ray.runtime import knock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Job", "jobs", "logs", "stop", "submit"]

PACKAGE = Path(__file__).parents[1]
_ENDED = frozenset({"succeeded", "failed", "stopped"})
_ATTEMPTS = 6
# A search says how it stands every 30 s at the latest; a connection that is silent for longer may be dead.
_SILENT_S = 60.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_PATIENCE_S = 600.0
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Job:
    """A job, as the cluster knows it.

    Attributes:
        state: pending, running, succeeded, failed or stopped.
        started: seconds since 1970, None before.
        exit_code: of its command, None before the end; 3 means done, though some inputs were rejected.
    """

    id: str
    state: str
    command: str
    started: float | None
    ended: float | None
    exit_code: int | None
    message: str

    @property
    def has_ended(self) -> bool:
        return self.state in _ENDED


def submit(
    command: Sequence[str], *, address: str | None = None, cpus: float = 0, gpus: float = 0, python: str = "python"
) -> str:
    """Start a verb of `ich-ray` on a cluster and return at once.

    This package, as it is here, and the file of ``--space`` travel with it; every other path must mean the same on the
    machines of the cluster.

    Args:
        command: a verb and its arguments, such as ``["search", "/shared/DATASET", "--space", "my.yaml", ...]``.
        address: the cluster's dashboard; see `access.reach` for the default.
        cpus: CPUs that the command itself holds. Without any it runs on the head; a search, a preparation or a
            retraining does its work elsewhere and needs none.
        gpus: GPUs that the command itself holds, for `calibrate`, `evaluate` and `predict`.
        python: the interpreter of the cluster, on its PATH or as an absolute path.

    Returns:
        The id of the job.

    Raises:
        ConfigError: the command, the address or the token is not right; nothing was started.
    """
    parcel = pack(command)
    access = reach(address)
    job = f"ich-{parcel.command[0]}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
    entrypoint = shlex.join([python, "-P", "-m", "ich_ray.cli", *parcel.command])  # -P: no folder of the head
    with tempfile.TemporaryDirectory() as folder, translate_errors(access):
        environment: dict[str, Any] = {"py_modules": [str(PACKAGE)], "excludes": ["__pycache__/"]}
        if parcel.files:
            for name, data in parcel.files.items():
                (Path(folder) / name).write_bytes(data)
            environment["working_dir"] = folder
        asked = {"entrypoint": entrypoint, "submission_id": job, "runtime_env": environment}
        _send(access, {**asked, "entrypoint_num_cpus": cpus, "entrypoint_num_gpus": gpus})
    return job


def _send(access: Access, asked: dict[str, Any]) -> None:
    """Submit once, whatever the connection does: the id is ours, so a lost answer can be asked for again."""
    client = _client(access)  # a wrong address is told at once
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            if attempt > 1:
                client = _client(access)
                if any(there.submission_id == asked["submission_id"] for there in client.list_jobs()):
                    return
            client.submit_job(**asked, metadata={"ich_ray": __version__})
        except (OSError, RuntimeError) as error:
            # A head that has just started answers "No available agent to submit job, please try again later".
            passing = isinstance(error, OSError) or "try again" in str(error)
            if attempt == _ATTEMPTS or not passing:
                raise
            time.sleep(_FIRST_WAIT_S * 2**attempt)
        else:
            return


def jobs(address: str | None = None) -> list[Job]:
    """The jobs of a cluster, newest first.

    Raises:
        ConfigError: the address or the token is not right.
    """
    access = reach(address)
    with translate_errors(access):
        found = [_job(details) for details in _client(access).list_jobs() if details.submission_id]
    return sorted(found, key=lambda job: job.started or float("inf"), reverse=True)


def stop(job: str, address: str | None = None) -> bool:
    """Ask a job to end; a search can be resumed later.

    Returns:
        Whether it was running.

    Raises:
        ConfigError: there is no such job, or the address or the token is not right.
    """
    access = reach(address)
    with translate_errors(access, job):
        return bool(_client(access).stop_job(job))


def logs(job: str, *, address: str | None = None, follow: bool = False) -> Iterator[str]:
    """What a job has printed, in pieces.

    Args:
        job: its id.
        address: the cluster's dashboard.
        follow: go on until the job has ended; a lost connection is taken up again where it broke.

    Raises:
        ConfigError: there is no such job, or the address or the token is not right.
        IchRayError: the connection was lost and did not come back for ten minutes; the job is not touched by that.
    """
    access = reach(address)
    with translate_errors(access, job):
        client = _client(access)
        client.get_job_info(job)
        if not follow:
            yield client.get_job_logs(job)
            return
        yield from _follow(access, job)


def outcome(job: str, address: str | None = None) -> Job:
    """How a job stands.

    Raises:
        ConfigError: there is no such job, or the address or the token is not right.
    """
    access = reach(address)
    with translate_errors(access, job):
        return _job(_client(access).get_job_info(job))


def _follow(access: Access, job: str) -> Iterator[str]:
    """Ray sends a log from its beginning to whoever connects: what was seen before is left out.

    It may close the connection before the last lines of a job that has ended; those are fetched.
    """
    seen = 0
    while True:
        skip = seen
        try:
            for piece in _tail(access, job):
                fresh = piece[skip:]
                skip = max(0, skip - len(piece))
                seen += len(fresh)
                yield fresh
        except _lost():
            pass
        if _persist(access, lambda client: _job(client.get_job_info(job))).has_ended:
            yield _persist(access, lambda client: str(client.get_job_logs(job)))[seen:]
            return


def _lost() -> tuple[type[Exception], ...]:
    """What a broken connection raises: the web socket's errors, Ray's own, and silence."""
    import aiohttp

    return (aiohttp.ClientError, OSError, RuntimeError, queue.Empty)


def _tail(access: Access, job: str) -> Iterator[str]:
    """The log of a job from its beginning until the connection ends, in whichever way.

    The event loop has a thread of its own, because a notebook has one running in this thread.
    """
    stream = _client(access).tail_job_logs(job)
    pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    pump = loop.create_task(_pump(stream, pieces))
    thread = threading.Thread(target=loop.run_until_complete, args=(pump,), daemon=True)
    thread.start()
    try:
        while (piece := pieces.get(timeout=_SILENT_S)) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        loop.call_soon_threadsafe(pump.cancel)
        thread.join()
        loop.close()


async def _pump(stream: Any, pieces: queue.SimpleQueue[str | BaseException | None]) -> None:
    try:
        async for piece in stream:
            pieces.put(piece)
    except BaseException as error:  # noqa: BLE001  (raised again by who waits for the pieces)
        pieces.put(error)
    else:
        pieces.put(None)


def _persist(access: Access, ask: Callable[[Any], Answer]) -> Answer:
    """Ask the cluster until it answers."""
    began, wait = time.monotonic(), _FIRST_WAIT_S
    while True:
        try:
            return ask(_client(access))
        except OSError as error:
            if time.monotonic() - began > _PATIENCE_S:
                raise IchRayError(
                    f"{access}: must answer, got {remote_line(error)} "
                    f"for {_PATIENCE_S / 60:.0f} minutes; "
                    "the job goes on: follow it again when the connection is back"
                ) from None
            if wait == _FIRST_WAIT_S:
                say(f"connection to {access.url} lost, trying again; the job goes on")
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_S)


def _client(access: Access) -> Any:
    from ray.job_submission import JobSubmissionClient

    go_past_proxies(access.host_and_port[0])
    knock(*access.host_and_port)  # Ray's requests have no limit in time
    for chatty in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{chatty}").setLevel(logging.WARNING)
    return JobSubmissionClient(access.url, headers=access.headers)


def _job(details: Any) -> Job:
    return Job(
        id=str(details.submission_id),
        state=str(details.status.value).lower(),
        command=_verb(details.entrypoint),
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        exit_code=details.driver_exit_code,
        message=details.message or "",
    )


def _verb(entrypoint: str) -> str:
    """`ich-ray search ...` for a job of ours; another one's command as it is."""
    _, ours, command = entrypoint.partition(" -m ich_ray.cli ")
    return f"ich-ray {command}" if ours else entrypoint
