"""Resources of a connected cluster: machines that are up, and those it may still start.

Counts them and what they hold, as often as asked; plans nothing with them: preflight.py does.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import yaml

from ich_ray.machines import nodes_up, on_node, staying
from ich_ray.ray_internals import (
    DEBUG_AUTOSCALING_STATUS,
    get_cluster_status,
    internal_kv_get,
    is_autoscaler_v2,
)
from ich_ray.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ich_ray.ray_internals import ClusterStatus

__all__ = [
    "ClusterResources",
    "FailedLaunch",
    "Machine",
    "address_of",
    "autoscaled",
    "failed_launches",
    "gpu_machines",
    "host_of",
    "nodes_that_hold",
    "slots_of_nodes",
]

_ANSWER_WITHIN_S = 30
# An autoscaler that does not tell its limits (KubeRay's) is asked for this many machines more than are up. Each is one
# trial that was drawn before its time where no more come; where they come, the next ones are asked for.
_UNTOLD = 8
# The driver of a search waits so long for an answer.
_STATUS_WITHIN_S = 2
# A start that failed longer ago says nothing of now.
_OF_LATE_S = 1800.0
_MOST_KINDS, _LONGEST_KIND, _LONGEST_REASON = 20, 100, 300
_IDS = re.compile(r"arn:\S+|\b[0-9a-f]{8}-[0-9a-f-]{27}\b|\S{60,}")


@dataclass(frozen=True)
class Machine:
    """A kind of machine: `count` of them are there or can be started; an unknown resource is None."""

    name: str
    cpus: float | None
    gpus: float | None
    count: int

    @property
    def is_unknown(self) -> bool:
        """Whether it holds nobody knows what."""
        return self.cpus is None and not self.gpus

    def fits(self, cpus: float, gpus: float) -> int:
        """Trials that one such machine holds at a time; of those that are not known, one until they are up."""
        by_cpu = sys.maxsize if self.cpus is None or not cpus else int(self.cpus / cpus)
        if not gpus or self.gpus is None:
            by_gpu = sys.maxsize
        elif gpus < 1:
            by_gpu = int(self.gpus) * int(1 / gpus + 1e-9)
        else:
            by_gpu = int(self.gpus / gpus)
        least = min(by_cpu, by_gpu)
        return 1 if least == sys.maxsize else least

    def describe(self) -> str:
        def amount(value: float | None) -> str:
            return "?" if value is None else f"{value:g}"

        return f"{self.count} x {self.name} ({amount(self.cpus)} CPU, {amount(self.gpus)} GPU)"


@dataclass(frozen=True)
class FailedLaunch:
    """A kind of machine that the autoscaler could not start, what its cloud said, and when."""

    kind: str
    reason: str
    time: float


class ClusterResources:
    """A cluster's machines, counted whenever asked."""

    def __init__(self) -> None:
        self._limits = _limits(nodes_up())

    def machines(self) -> list[Machine]:
        """Those that are up, by what they hold, then those that may still come."""
        alive = nodes_up()
        kinds: dict[tuple[float, float], int] = {}
        for node in staying(alive):
            resources = node["Resources"]
            kind = (resources.get("CPU", 0.0), resources.get("GPU", 0.0))
            kinds[kind] = kinds.get(kind, 0) + 1
        live = [Machine("machine", cpus, gpus, count) for (cpus, gpus), count in kinds.items()]
        return live + self._coming(len(alive))

    def coming(self) -> list[Machine]:
        """Those that may still come."""
        return self._coming(len(nodes_up()))

    def _coming(self, alive: int) -> list[Machine]:
        return [] if self._limits is None else autoscaled(self._limits, alive - 1)


def nodes_that_hold(cpus: float, gpus: float) -> dict[str, int]:
    """Accelerators of the machines that are up and large enough for a trial, by Ray's ids."""
    return {
        node: int(has.get("GPU", 0.0))
        for node, has in _resources_of_nodes().items()
        if has.get("CPU", 0.0) >= cpus and has.get("GPU", 0.0) >= gpus
    }


def slots_of_nodes(cpus: float, gpus: float) -> dict[str, int]:
    """How many trials each machine that is up, and stays, holds, by Ray's ids."""
    return {
        node: Machine("", has.get("CPU", 0.0), has.get("GPU", 0.0), 1).fits(cpus, gpus)
        for node, has in _resources_of_nodes().items()
    }


def gpu_machines() -> dict[str, tuple[float, float]]:
    """CPUs and accelerators of the machines that are up, stay, and have any, by Ray's ids."""
    held = _resources_of_nodes()
    return {node: (has.get("CPU", 0.0), has["GPU"]) for node, has in held.items() if has.get("GPU")}


def address_of(node: str) -> str:
    """Of a machine that is up, by Ray's id; the id of one that is not."""
    return next((str(one["NodeManagerAddress"]) for one in nodes_up() if one["NodeID"] == node), node)


def host_of(node: str) -> str:
    """The name of a machine by Ray's id, also of one that is gone; else the start of its id."""
    named = {one["NodeID"]: one.get("NodeManagerHostname") for one in ray.nodes()}  # type: ignore[no-untyped-call]
    return named.get(node) or node[:8]


def _resources_of_nodes() -> dict[str, dict[str, float]]:
    """What each machine holds that is up, and stays, by Ray's ids."""
    return {node["NodeID"]: node["Resources"] for node in staying(nodes_up())}


def _limits(alive: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The configuration that `ray up` left on the head for its autoscaler; empty with another, None without one."""
    head = next((node for node in alive if "node:__internal_head__" in node["Resources"]), None)
    if head is None or not _scales():
        return None
    try:
        return dict(ray.get(on_node(head["NodeID"], _bootstrap_config), timeout=_ANSWER_WITHIN_S))
    except (ray.exceptions.RayError, TimeoutError):
        return {}


def _scales() -> bool:
    """Whether an autoscaler with node types of its own is at work; without one Ray reports `node_<id>` as types."""
    return any(not name.startswith("node_") for name in _node_types())


def _node_types() -> set[str]:
    """The types of the nodes that are up, as the autoscaler calls them; its second version keeps them elsewhere."""
    if not is_autoscaler_v2(fetch_from_server=True):
        status = json.loads(internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}")
        return set(status.get("autoscaler_report", {}).get("active_nodes") or {})
    address, deadline = ray.get_runtime_context().gcs_address, time.monotonic() + _ANSWER_WITHIN_S
    while True:
        found = get_cluster_status(address)
        names = {node.ray_node_type_name for node in [*found.active_nodes, *found.idle_nodes]}
        if names or time.monotonic() > deadline:
            return names
        time.sleep(1)  # a head that has just started has not reported yet


def failed_launches() -> list[FailedLaunch]:
    """Kinds of machines that could not be started of late, each with its last reason.

    None without an autoscaler.
    """
    last: dict[str, FailedLaunch] = {}
    try:
        if is_autoscaler_v2(fetch_from_server=True):
            found = _failed_by_status(get_cluster_status(ray.get_runtime_context().gcs_address, _STATUS_WITHIN_S))
        else:
            found = _failed_by_report(json.loads(internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}"))
        for one in sorted(found, key=lambda one: one.time):
            if 0 <= time.time() - one.time <= _OF_LATE_S:
                last[one.kind] = one
    except Exception:  # noqa: BLE001  (Ray's, protobuf's or of another form of the report: it is a courtesy)
        return []
    return list(last.values())[:_MOST_KINDS]


def _failed_by_status(status: ClusterStatus) -> list[FailedLaunch]:
    """By the second version of the autoscaler, which keeps a failure for ever."""
    return [
        FailedLaunch(_kind(one.ray_node_type_name), _reason(one.details or ""), one.failed_ts_s or one.request_ts_s)
        for one in status.failed_launches
    ]


def _failed_by_report(status: Mapping[str, Any]) -> list[FailedLaunch]:
    """By the first one, as it lies in Ray's own store."""
    summary = status.get("autoscaler_report", {}).get("node_availability_summary", {})
    found = []
    for kind, one in summary.get("node_availabilities", {}).items():
        if not one["is_available"] and (why := one["unavailable_node_information"]):
            reason = _reason(f"{why['category']}: {why['description']}")
            found.append(FailedLaunch(_kind(kind), reason, one["last_checked_timestamp"]))
    return found


def _kind(name: str) -> str:
    return printable(name)[:_LONGEST_KIND]


def _reason(said: str) -> str:
    """What a cloud said, in a line: without ids of accounts and requests, and what only the cloud can read."""
    line = printable(" ".join(said.split()))
    short = _IDS.sub(lambda found: found[0][:4] + "…" if found[0][:4] == "arn:" else "…", line)
    without = short.replace("launch failed with ", "").replace(" with request id …", "").strip(" :")
    return without[:_LONGEST_REASON] or "no reason was given"


def autoscaled(config: Mapping[str, Any], workers: int) -> list[Machine]:
    """The machines that an autoscaler with this configuration can add to `workers` running ones.

    Without limits in it as many as a search should wait for, of which nothing is known.
    """
    if "max_workers" not in config:
        return [Machine("machine to come", None, None, _UNTOLD)]
    room = max(0, int(config["max_workers"]) - workers)
    found = []
    for name, kind in (config.get("available_node_types") or {}).items():
        # On machines of one's own the head and the workers are of one type; elsewhere the head's has no workers.
        most = 0 if name == config.get("head_node_type") else room
        count = min(int(kind.get("max_workers", most)), room)
        resources = kind.get("resources") or {}
        cpus, gpus = resources.get("CPU"), resources.get("GPU", 0.0 if resources else None)
        if count:
            found.append(Machine(name, cpus, gpus, count))
    return found


def _bootstrap_config() -> dict[str, Any]:
    path = Path(os.path.expanduser("~/ray_bootstrap_config.yaml"))  # noqa: PTH111  (there may be no home)
    return (yaml.safe_load(path.read_text()) or {}) if os.access(path, os.R_OK) else {}
