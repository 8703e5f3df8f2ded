"""Nodes that will be taken away: who tells Ray of a notice, and who asks Ray.

Ray's own state of a node, draining, is the only place where it stands: notices of clouds, SIGTERM to `ray start
--block` (which Kubernetes sends) and `ray drain-node` all end there. Ray starts nothing more on such a node, and Ray
Train looks at it, too.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from functools import lru_cache
from typing import TYPE_CHECKING

import ray

from ich_ray.errors import ConfigError
from ich_ray.ray_internals import drain_node, draining_nodes
from ich_ray.search.tune.notices import follow, service_of
from ich_ray.storage import holds_machine_lock

if TYPE_CHECKING:
    from collections.abc import Callable

    from ich_ray.search.tune.notices import MetadataService, Notice

__all__ = ["draining", "format_deadline", "heard", "is_draining", "watch_notices"]

# Between two tries of a process to become the one of its machine that asks.
_TAKE_OVER_S = 5.0
# What this process has heard last and Ray does not know: a worker has no terminal, its reports take it along.
_heard: list[str] = []


def draining() -> dict[str, int]:
    """Nodes that will be taken away, see `ray_internals.draining_nodes`; none where Ray cannot be asked.

    Ray is asked at most once a second.
    """
    return _draining(int(time.monotonic()))


@lru_cache(maxsize=1)
def _draining(second: int) -> dict[str, int]:  # noqa: ARG001  (of the clock, as the key of the cache)
    try:
        return draining_nodes()
    except Exception:  # noqa: BLE001  (a head that is gone is told of elsewhere; whoever asks has other work)
        return {}


def is_draining(node: str) -> bool:
    """Whether a node will be taken away."""
    return node in draining()


def format_deadline(deadline_ms: int) -> str:
    """Until when a node is there."""
    if not deadline_ms:
        return "soon"
    return time.strftime("at %H:%M:%S UTC", time.gmtime(deadline_ms / 1000))


@lru_cache(maxsize=1)
def watch_notices() -> None:
    """Let a thread of this process ask the metadata service of this machine's cloud, if it has one.

    Of all processes of a node one asks, and another takes over when it ends.
    """
    try:
        service = service_of()
    except ConfigError as error:
        _heard[:] = [f"machine {platform.node()}: {error}"]
        return
    if service is None or not ray.is_initialized():
        return
    node = str(ray.get_runtime_context().get_node_id())
    threading.Thread(target=_watch, args=(service, node), daemon=True, name="notices").start()


def _watch(service: MetadataService, node: str, wait: Callable[[float], object] = time.sleep) -> None:
    while not _is_the_one(node):
        wait(_TAKE_OVER_S)
    follow(service, lambda notice: _tell(node, notice), wait)


def _is_the_one(node: str) -> bool:
    try:
        return holds_machine_lock(f"notices-{os.getuid()}-{node[:16]}")
    except OSError:
        return True  # two that ask are better than none


def _tell(node: str, notice: Notice) -> bool:
    """Drain this node; whether Ray has taken it. A recommendation is only said."""
    said = f"machine {platform.node()}: {notice.detail}"
    _heard[:] = [said]
    if notice.deadline is None:
        return False
    try:
        drain_node(node, said, int(notice.deadline * 1000))
    except Exception as error:  # noqa: BLE001  (the cloud is asked again, and Ray is told again)
        _heard[:] = [f"{said}, and Ray could not be told: {type(error).__name__}: {error}"]
        return False
    return True


def heard() -> str:
    """What this process has heard of its machine; empty without a notice."""
    return _heard[0] if _heard else ""
