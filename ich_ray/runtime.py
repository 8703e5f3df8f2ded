"""Ray, started or joined in one way for every stage that needs it.

Knows nothing of datasets or searches. Job submission is in cluster.py.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ich_ray.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["connected"]

# Ray warns about its own future defaults on every start; none of these concern a user of this package.
_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}

_KNOCK_S = 10.0
# A head that comes back within this time is none that was lost; after 60 s Ray ends the process without a word of ours.
_PATIENCE_S = 40.0
_KNOCK_EVERY_S = 2.0


@contextmanager
def connected(address: str | None = None, cpus: int | None = None) -> Iterator[None]:
    """Use the Ray this process already has, else join `address` (or ``RAY_ADDRESS``), else start one for the block.

    A Ray started here is private (``address="local"``: with no address Ray would attach to any cluster already
    running on the machine) and ends with the block.

    A head that dies meanwhile ends the process with one line and exit code 1: calls into Ray hang from then on, its
    shutdown among them, until Ray's own core ends the process.

    Args:
        address: a cluster address such as ``auto`` or ``10.0.0.1:6379``.
        cpus: CPUs of a Ray started here; all of the machine's if not given.

    Raises:
        ConfigError: no cluster answers at the address.
    """
    os.environ.update({key: value for key, value in _QUIET.items() if key not in os.environ})
    import ray

    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        _join(address)
    else:
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=f"/tmp/ich{os.getuid()}",  # noqa: S108  (a UNIX socket path may have 107 characters)
        )
    over = threading.Event()
    if not (address or "").startswith("ray://"):
        threading.Thread(target=_watch, args=(ray.get_runtime_context().gcs_address, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        ray.shutdown()


def _watch(head: str, over: threading.Event) -> None:
    """End the process when nobody has answered at the head's address for a while."""
    answered = time.monotonic()
    while not over.wait(_KNOCK_EVERY_S):
        try:
            _knock(head)
            answered = time.monotonic()
        except OSError:
            if time.monotonic() - answered < _PATIENCE_S or over.is_set():
                continue
            line = f"ich-ray: {head}: the head of the cluster must answer, got nothing for {_PATIENCE_S:.0f} s"
            hint = "see to the cluster and run the command again, a search with --resume: nothing finished is lost"
            print(f"{line}; {hint}", file=sys.stderr, flush=True)
            os._exit(1)


def _join(address: str) -> None:
    import ray

    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, SystemExit) as error:
        first_line = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(
            f"--address {address}: a Ray cluster must answer there, got: {first_line}; check the address, that the "
            "cluster is up, and that RAY_AUTH_TOKEN or ~/.ray/auth_token holds its token"
        ) from None


def _knock(address: str) -> None:
    """Fail within seconds where nobody listens: Ray itself tries for 327 s and then leaves by SystemExit."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        with socket.create_connection((host, int(port)), timeout=_KNOCK_S):
            pass
