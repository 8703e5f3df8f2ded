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
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from ich_ray.errors import ConfigError, IchRayError, Interrupted, first_line
from ich_ray.local_ray import own_token, start_ray
from ich_ray.progress import say
from ich_ray.storage import holds_credentials, name_a_home
from ich_ray.terminal import complain, guard_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["cluster_address", "connected", "knock", "last_words", "signals_given_back", "terminated_as_interrupted"]

# Ray warns about its own future defaults on every start; none of these concern a user of this package.
_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}

_KNOCK_S = 10.0
# A head that comes back within this time is none that was lost; after 60 s Ray ends the process without a word of ours.
_PATIENCE_S = 40.0
# Whoever ends this process may end a Ray beside it in the same moment: a group of processes, a job of a batch system.
_PATIENCE_TERMINATED_S = 3.0
_KNOCK_EVERY_S = 2.0
# While nobody answers: Ray's own threads connect again after a second, and abort with a page of addresses when the
# head is another one.
_KNOCK_AGAIN_S = 0.1
_HINT = "see to the cluster and run the command again, a search with --resume: nothing finished is lost"
_terminated = threading.Event()
_last_words: list[Callable[[], None]] = []


@contextmanager
def connected(address: str | None = None, cpus: int | None = None) -> Iterator[None]:
    """Use this process's Ray, else join `address` (or ``RAY_ADDRESS``), else start one.

    A Ray started here is private (``address="local"``: with no address Ray would attach to any cluster already
    running on the machine) and ends with the block.

    SIGTERM, with which schedulers and containers end a process, does in the block what Ctrl-C does.

    A head that dies meanwhile, or is started again, ends the process with one line and exit code 1: calls into Ray hang
    from then on, its shutdown among them, until Ray's own core ends the process.

    After the block a call into Ray fails until one is started again; Ray would start one by itself.

    Args:
        address: a cluster address such as ``auto`` or ``10.0.0.1:6379``.
        cpus: CPUs of a Ray started here; all of the machine's if not given.

    Raises:
        ConfigError: no cluster answers at the address.
    """
    os.environ.update({key: value for key, value in _QUIET.items() if key not in os.environ})
    name_a_home()
    import ray

    from ich_ray.ray_internals import DriverPathJob, start_none_unasked, worker

    if ray.is_initialized():
        yield
        return
    start_none_unasked()
    where = cluster_address(address)
    # Ray's handler of SIGTERM would stay, and end with 15 what comes after the block.
    with signals_given_back(signal.SIGTERM), nullcontext() if where else own_token():
        if where:
            _join(where, _source(address))
        else:
            start_ray(DriverPathJob(), cpus)
        worker.print_to_stdstream = _say_first_line
        guard_logger("ray")
        over = threading.Event()
        if not (where or "").startswith("ray://"):
            threading.Thread(
                target=_watch, args=(ray.get_runtime_context().gcs_address, over, not where), daemon=True
            ).start()
        try:
            with terminated_as_interrupted():
                yield
        finally:
            over.set()
            ray.shutdown()


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Within the block SIGTERM does what Ctrl-C does.

    Ray's own handler would end the process where it stands.
    """

    def interrupt(*_: object) -> None:
        _terminated.set()
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as for what a script has started with &
            raise KeyboardInterrupt
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
        ConfigError: there is a user, a password or a token in it, or it is the address of something else.
    """
    where, source = address or os.environ.get("RAY_ADDRESS"), _source(address)
    if where and (holds_credentials(where) or "@" in where):
        raise ConfigError(
            f"{source}: an address is shown and stored and must hold no user, password or token, got one; leave it out"
        )
    scheme, is_url, _ = (where or "").partition("://")
    if is_url and scheme != "ray":  # for another one Ray imports a module of that name
        got = "that of a dashboard, to which jobs are sent" if scheme in {"http", "https"} else f"a {scheme} address"
        unset = "leave it out" if address else "unset it"
        raise ConfigError(
            f"{source} {where}: must be where the head of a Ray cluster listens, HOST:6379, or auto on a machine of "
            f"the cluster, got {got}; correct it, or {unset} for a Ray of this machine alone"
        )
    return None if where == "local" else where or None


def _source(address: str | None) -> str:
    """Who has given the address that is meant."""
    return "--address" if address else "RAY_ADDRESS"


def _say_first_line(data: Any, ignore_prefix: bool = False) -> None:  # noqa: ARG001
    """What Ray says of lost nodes, without the page of its log that follows; Ray prints both where results belong."""
    say(f"Ray: {' '.join(data['lines'][:1]).strip().partition(chr(10))[0]}")


def _watch(head: str, over: threading.Event, is_own: bool) -> None:
    """End the process when nobody has answered at the head's address for a while, or another head does."""
    host, _, port = head.rpartition(":")
    silent_since: float | None = None
    while not over.wait(_KNOCK_EVERY_S if silent_since is None else _KNOCK_AGAIN_S):
        try:
            knock(host, int(port))
            # Asked last: the block may have ended while the head was asked, and Ray knows no cluster then.
            if silent_since is not None and _is_another(head) and not over.is_set():
                _leave(
                    f"{head}: the head of the cluster must stay the one that it was, got one that was started again; "
                    f"{_HINT}"
                )
            silent_since = None
        except OSError:
            if over.is_set():
                return
            # From the first knock in vain, not the last answer: this machine may have stood still in between.
            if silent_since is None:
                silent_since = time.monotonic()
            silent_s = time.monotonic() - silent_since
            if _terminated.is_set() and silent_s >= _PATIENCE_TERMINATED_S:
                if is_own:
                    _leave(
                        "interrupted; nothing finished is lost, run the command again, a search with --resume",
                        Interrupted.exit_code,
                    )
                _leave(f"{head}: the head of the cluster was ended together with this process; {_HINT}")
            if silent_s >= _PATIENCE_S:
                _leave(f"{head}: the head of the cluster must answer, got nothing for {_PATIENCE_S:.0f} s; {_HINT}")


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


def _leave(problem: str, code: int = IchRayError.exit_code) -> None:
    complain(problem)
    for say_them in _last_words:
        with suppress(Exception):
            say_them()
    os._exit(code)


@contextmanager
def last_words(say_them: Callable[[], None]) -> Iterator[None]:
    """Within the block `say_them` is called, in another thread, before a lost head ends this process."""
    _last_words.append(say_them)
    try:
        yield
    finally:
        _last_words.remove(say_them)


def _join(address: str, source: str) -> None:
    """Join the cluster at `address`.

    Raises:
        ConfigError: none answers there.
    """
    import ray
    from ray.exceptions import AuthenticationError

    from ich_ray.ray_internals import DriverPathJob, is_unwelcome

    # The server of a Ray client has no working directory of this process.
    job: Any = None if address.startswith("ray://") else DriverPathJob()
    host, _, port = address.removeprefix("ray://").rpartition(":")
    listens = False
    try:
        if host and port.isdigit():
            knock(host, int(port))
            listens = True
            if not address.startswith("ray://") and is_unwelcome(address):
                raise AuthenticationError("unwelcome")
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, job_config=job)
    except (AuthenticationError, OSError, RuntimeError, ValueError, SystemExit) as error:
        problem = first_line(error)
        if isinstance(error, AuthenticationError) or (listens and "Failed to connect" in problem):
            mode = os.environ.get("RAY_AUTH_MODE", "not set")
            problem = f"no welcome: a token that is wrong or missing (RAY_AUTH_MODE is {mode}), or no Ray"
        raise ConfigError(
            f"{source} {address}: a Ray cluster must answer there, got {problem}; check the address, that the cluster "
            "is up, and for one with a token RAY_AUTH_MODE=token and its token in RAY_AUTH_TOKEN or ~/.ray/auth_token"
        ) from None


def knock(host: str, port: int) -> None:
    """Fail within seconds where nobody listens: Ray itself tries for 327 s and then leaves by SystemExit.

    Raises:
        OSError: nobody does.
    """
    with socket.create_connection((host, port), timeout=_KNOCK_S):
        pass
