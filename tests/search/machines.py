"""Ray clusters whose machines are processes of this one, and what takes such a machine away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import ray
from ray._private.node import Node
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from ich_ray.ray_internals import GcsClient

# A machine that stands still is given up after about ten seconds, where Ray's own settings take half a minute.
HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 4,
}


@contextmanager
def running_cluster(**head: Any) -> Iterator[Cluster]:
    """A cluster of its head alone, of one slot unless `head` says otherwise; tests may add others."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **head})
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def family(node: Node) -> list[psutil.Process]:
    """The processes of a machine, those of trials included."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [raylet, *raylet.children(recursive=True)]


def kill(cluster: Cluster, node: Node) -> None:
    """At once and altogether, as when a machine loses its power."""
    for process in family(node):
        process.kill()
    cluster.remove_node(node, allow_graceful=False)


def drain(address: str, node: str, within_s: float) -> tuple[bool, str]:
    """Announce that a machine will be taken away, as for a spot instance; whether Ray accepts that, or why not."""
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + within_s) * 1000)
    accepted, why_not = GcsClient(address=address).drain_node(node, reason, "spot", deadline_ms)
    return bool(accepted), str(why_not)
