"""Ray, started or joined in one way for every stage that needs it.

Knows nothing of datasets or searches. Job submission is in cluster.py.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ich_ray.errors import ConfigError, first_line
from ich_ray.progress import say
from ich_ray.storage import holds_credentials, private_folder
from ich_ray.terminal import complain, guard_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ask_machines", "cluster_address", "connected", "knock", "on_node", "signals_given_back"]

# Ray warns about its own future defaults on every start; none of these concern a user of this package.
_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}

_KNOCK_S = 10.0
_TOKEN = Path("~/.ray/auth_token")
# A UNIX socket path has 107 characters at most, of which Ray's session and the name of a socket take 64: below
# $TMPDIR, or a home, there may be no room.
_TMP = Path("/tmp")  # noqa: S108
# A head that comes back within this time is none that was lost; after 60 s Ray ends the process without a word of ours.
_PATIENCE_S = 40.0
# Whoever ends this process may end a Ray beside it in the same moment: a group of processes, a job of a batch system.
_PATIENCE_TERMINATED_S = 3.0
_KNOCK_EVERY_S = 2.0
_ANSWER_WITHIN_S = 30
# While nobody answers: Ray's own threads connect again after a second, and abort with a page of addresses when the
# head is another one.
_KNOCK_AGAIN_S = 0.1
_terminated = threading.Event()


@contextmanager
def connected(address: str | None = None, cpus: int | None = None) -> Iterator[None]:
    """Use this process's Ray, else join `address` (or ``RAY_ADDRESS``), else start one.

    A Ray started here is private (``address="local"``: with no address Ray would attach to any cluster already
    running on the machine) and ends with the block.

    SIGTERM, with which schedulers and containers end a process, does in the block what Ctrl-C does.

    A head that dies meanwhile, or is started again, ends the process with one line and exit code 1: calls into Ray hang
    from then on, its shutdown among them, until Ray's own core ends the process.

    Args:
        address: a cluster address such as ``auto`` or ``10.0.0.1:6379``.
        cpus: CPUs of a Ray started here; all of the machine's if not given.

    Raises:
        ConfigError: no cluster answers at the address.
    """
    os.environ.update({key: value for key, value in _QUIET.items() if key not in os.environ})
    import ray

    from ich_ray.ray_internals import worker

    if ray.is_initialized():
        yield
        return
    where = cluster_address(address)
    with signals_given_back(signal.SIGTERM):  # Ray's handler would stay, and end with 15 what comes after the block
        _start(where, cpus)
        worker.print_to_stdstream = _say_first_line
        guard_logger("ray")
        over = threading.Event()
        if not (where or "").startswith("ray://"):
            threading.Thread(target=_watch, args=(ray.get_runtime_context().gcs_address, over), daemon=True).start()
        try:
            with _terminated_as_interrupted():
                yield
        finally:
            over.set()
            ray.shutdown()


def _start(where: str | None, cpus: int | None) -> None:
    """Join the cluster at `where`, or start a Ray of this process."""
    import ray

    if where:
        _join(where)
        return
    unwritten = not _TOKEN.expanduser().exists()
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(_sessions()),
    )
    if unwritten and _TOKEN.expanduser().exists():
        _TOKEN.expanduser().chmod(0o600)  # Ray has just made it, for all to read


def _sessions() -> Path:
    """Where a Ray started here keeps logs, sockets and what it spills: in a folder that no other user may enter.

    Ray itself opens the folder that it is given to all users (mode 0777), so there is one around it.

    Raises:
        ConfigError: something that is not this user's lies there.
    """
    return private_folder(private_folder(_TMP / f"ich{os.geteuid()}") / "r")


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Within the block SIGTERM does what Ctrl-C does; Ray's own handler would end the process where it stands."""

    def interrupt(*_: object) -> None:
        _terminated.set()
        signal.raise_signal(signal.SIGINT)

    with signals_given_back(signal.SIGTERM) as may_catch:
        if may_catch:
            signal.signal(signal.SIGTERM, interrupt)
        try:
            yield
        finally:
            _terminated.clear()


@contextmanager
def signals_given_back(*also: signal.Signals) -> Iterator[bool]:
    """Restore signal handlers after the block; whether signals can be caught here.

    They can be in the main thread alone. Ray Tune and Ray Train go on catching them after their runs: the next Ctrl-C
    would not end anything.
    """
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    before = {caught: signal.getsignal(caught) for caught in (signal.SIGINT, signal.SIGUSR1, *also)}
    try:
        yield True
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler or signal.SIG_DFL)


def cluster_address(address: str | None) -> str | None:
    """The cluster that is meant by `address` or ``RAY_ADDRESS``; None for this machine alone.

    Raises:
        ConfigError: there is a user, a password or a token in it.
    """
    where = address or os.environ.get("RAY_ADDRESS")
    if where and (holds_credentials(where) or "@" in where):
        raise ConfigError(
            "--address: an address is shown and stored and must hold no user, password or token, got one; leave it out"
        )
    return None if where == "local" else where or None


def on_node(node: str, function: Any, *arguments: Any) -> Any:
    """A reference to what `function` returns on the node of that id; it waits for no resources."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(function)
    return task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*arguments)


def ask_machines(look: Any, *arguments: Any) -> None:
    """Where a cluster has several machines, let each look whether all is as the work needs it.

    Args:
        look: runs on a machine and returns what is wrong there, empty if nothing.
        arguments: of `look`.

    Raises:
        ConfigError: something is wrong on a machine, or it does not answer; it is named.
    """
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if len(alive) < 2:
        return
    asked = {on_node(node["NodeID"], look, *arguments): node["NodeManagerAddress"] for node in alive}
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_WITHIN_S)
    for reference in ready:
        try:
            problem = ray.get(reference)
        except ray.exceptions.RayError as error:
            problem = f"must be able to look at its files, got {type(error).__name__}"
        if problem:
            raise ConfigError(f"machine {asked[reference]}: {problem}; use a folder that all machines share, or a URI")
    if late:
        where = asked[late[0]]
        raise ConfigError(
            f"machine {where}: must answer within {_ANSWER_WITHIN_S} s, got nothing; check it with `ray status`"
        )


def _say_first_line(data: Any, ignore_prefix: bool = False) -> None:  # noqa: ARG001
    """What Ray says of lost nodes, without the page of its log that follows; Ray prints both where results belong."""
    say(f"Ray: {' '.join(data['lines'][:1]).strip().partition(chr(10))[0]}")


def _watch(head: str, over: threading.Event) -> None:
    """End the process when nobody has answered at the head's address for a while, or another head does."""
    host, _, port = head.rpartition(":")
    answered, silent = time.monotonic(), False
    while not over.wait(_KNOCK_AGAIN_S if silent else _KNOCK_EVERY_S):
        try:
            knock(host, int(port))
            if silent and _is_another(head):
                _leave(f"{head}: the head of the cluster must stay the one that it was, got one that was started again")
            answered, silent = time.monotonic(), False
        except OSError:
            silent = True
            if over.is_set():
                return
            silent_s = time.monotonic() - answered
            if _terminated.is_set() and silent_s >= _PATIENCE_TERMINATED_S:
                _leave(f"{head}: the head of the cluster was ended together with this process")
            if silent_s >= _PATIENCE_S:
                _leave(f"{head}: the head of the cluster must answer, got nothing for {_PATIENCE_S:.0f} s")


def _is_another(head: str) -> bool:
    """Whether a cluster answers at the address that this process has not joined; a head with Redis stays the same.

    Raises:
        OSError: none answers.
    """
    import ray

    from ich_ray.ray_internals import GcsClient, worker

    try:
        return bool(GcsClient(address=head).cluster_id != worker.global_worker.current_cluster_and_job[0])
    except ray.exceptions.RpcError as error:  # it listens, but is not ready
        raise ConnectionError(str(error)) from None


def _leave(problem: str) -> None:
    hint = "see to the cluster and run the command again, a search with --resume: nothing finished is lost"
    complain(f"{problem}; {hint}")
    os._exit(1)


def _join(address: str) -> None:
    import ray
    from ray.exceptions import AuthenticationError

    host, _, port = address.removeprefix("ray://").rpartition(":")
    listens = False
    try:
        if host and port.isdigit():
            knock(host, int(port))
            listens = True
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (AuthenticationError, OSError, RuntimeError, ValueError, SystemExit) as error:
        problem = first_line(error)
        if isinstance(error, AuthenticationError) or (listens and "Failed to connect" in problem):
            mode = os.environ.get("RAY_AUTH_MODE", "not set")
            problem = f"no welcome: a token that is wrong or missing (RAY_AUTH_MODE is {mode}), or no Ray"
        raise ConfigError(
            f"--address {address}: a Ray cluster must answer there, got {problem}; check the address, that the cluster "
            "is up, and for one with a token RAY_AUTH_MODE=token and its token in RAY_AUTH_TOKEN or ~/.ray/auth_token"
        ) from None


def knock(host: str, port: int) -> None:
    """Fail within seconds where nobody listens: Ray itself tries for 327 s and then leaves by SystemExit.

    Raises:
        OSError: nobody does.
    """
    with socket.create_connection((host, port), timeout=_KNOCK_S):
        pass
