"""`ich-ray doctor`: ask this machine, or every node of a cluster, and judge the answers."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

from ich_ray.cluster.checks import Finding, check, check_cluster_file
from ich_ray.cluster.machine_facts import Facts, look
from ich_ray.cluster.secrets import find_secrets
from ich_ray.errors import ConfigError
from ich_ray.local_ray import sessions_folder
from ich_ray.machines import on_node
from ich_ray.runtime import cluster_address, connected
from ich_ray.storage import Location, locate, remove, write_bytes

if TYPE_CHECKING:
    from upath import UPath

__all__ = ["doctor"]

_ANSWER_WITHIN_S = 120.0


def doctor(
    *, address: str | None = None, storage: Location | None = None, cluster_file: Location | None = None
) -> list[Finding]:
    """Find what would break a search, or let strangers in.

    Args:
        address: a Ray cluster to look at from inside, such as ``auto`` on its head; ``RAY_ADDRESS`` if not given,
            else this machine alone. From outside, submit it: ``submit(["doctor", ...])``.
        storage: a folder or URI that must be readable and writable from everywhere; a folder for the test is made in
            it and removed.
        cluster_file: a cluster file to look through for secrets.

    Returns:
        Findings; a `problem` among them means that a search should not be started.

    Raises:
        ConfigError: no cluster answers at the address, or the cluster file is not there.
    """
    findings = _read_cluster_file(locate(cluster_file)) if cluster_file is not None else []
    scratch = locate(storage) / f".ich-ray-doctor-{secrets.token_hex(4)}" if storage is not None else None
    witness = secrets.token_hex(8)
    problem = _leave_witness(scratch, witness)
    try:
        where = cluster_address(address)
        if where is None:
            return findings + check([_here(scratch, witness, problem)], None, is_cluster=False)
        with connected(address):
            machines, dashboard = _ask_all(str(scratch) if scratch is not None else None, witness)
    finally:
        if scratch is not None and not problem:
            remove(scratch)
    return findings + check(machines, dashboard, is_cluster=True)


def _read_cluster_file(path: UPath) -> list[Finding]:
    if not path.is_file():
        raise ConfigError(f"--cluster-file {path}: must be a file, got none; check the path")
    return check_cluster_file(path.name, find_secrets(path.read_text(errors="replace")))


def _leave_witness(scratch: UPath | None, witness: str) -> str:
    if scratch is None:
        return ""
    try:
        write_bytes(scratch / "witness", witness.encode())
    except Exception as error:  # noqa: BLE001  (credentials, mounts, permissions, missing drivers: all are findings)
        return f"{type(error).__name__}: {error}"
    return ""


def _here(scratch: UPath | None, witness: str, problem: str) -> Facts:
    facts = look("this", None if scratch is None or problem else str(scratch), witness)
    return facts.model_copy(update={"ray_folder": _no_ray_folder()} | ({"storage": problem} if problem else {}))


def _no_ray_folder() -> str:
    try:
        sessions_folder()
    except ConfigError as error:
        return str(error)
    return ""


def _ask_all(storage: str | None, witness: str) -> tuple[list[Facts], str | None]:
    """Every node that is up, each asked at once; what the driver sees of the storage is part of the answer."""
    import ray

    from ich_ray.ray_internals import get_dashboard_url

    sent = time.time()
    nodes = {
        on_node(node["NodeID"], _look_there, node["NodeManagerAddress"], storage, witness): node
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    }
    waiting, machines = list(nodes), []
    while waiting:
        ready, waiting = ray.wait(waiting, timeout=_ANSWER_WITHIN_S)
        received = time.time()
        if not ready:
            silent = ", ".join(nodes[reference]["NodeManagerAddress"] for reference in waiting)
            raise ConfigError(f"machine {silent}: must answer within {_ANSWER_WITHIN_S:.0f} s, got nothing; restart it")
        node = nodes[ready[0]]
        try:
            machines.append(_placed(ray.get(ready[0]), node, sent, received))
        except ray.exceptions.RayError as error:
            raise ConfigError(
                f"machine {node['NodeManagerAddress']}: must run this package, got {str(error).splitlines()[-1]}; "
                "`ich-ray submit -- doctor` sends it along"
            ) from None
    return sorted(machines, key=lambda facts: facts.machine), get_dashboard_url()  # type: ignore[no-untyped-call]


def _look_there(machine: str, storage: str | None, witness: str) -> Facts:
    """What a worker of Ray says of its machine; it knows where Ray keeps its files there."""
    from ich_ray.ray_internals import worker

    node = worker.global_worker.node
    return look(machine, storage, witness, temporary=node and node.get_session_dir_path())


def _placed(facts: Facts, node: dict[str, Any], sent: float, received: float) -> Facts:
    resources = node["Resources"]
    return facts.model_copy(
        update={
            "is_head": "node:__internal_head__" in resources,
            "gpus": resources.get("GPU", 0.0),
            "sent": sent,
            "received": received,
        }
    )
