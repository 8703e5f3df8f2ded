"""`ich-ray doctor`: ask this machine, or every node of a cluster, and judge the answers."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ich_ray.cluster.checks import check, check_cluster_file
from ich_ray.cluster.device_facts import ASKED_WITHIN_S
from ich_ray.cluster.findings import Finding
from ich_ray.cluster.machine_facts import Facts, look
from ich_ray.cluster.secrets import find_secrets
from ich_ray.cluster.storage_speed import read_others
from ich_ray.cluster.time_limits import Question, answers
from ich_ray.errors import ConfigError, first_line
from ich_ray.local_ray import sessions_folder
from ich_ray.machines import nodes_up, on_node, with_versions
from ich_ray.runtime import cluster_address, connected, terminated_as_interrupted
from ich_ray.storage import Location, is_local, locate, remove, write_bytes
from ich_ray.versions import version_reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from upath import UPath

__all__ = ["doctor"]

# Each machine ends its own checks before: with PyTorch on a slow share, and a device that hangs.
_ANSWER_WITHIN_S = ASKED_WITHIN_S + 60.0
_WITHIN_S = 60.0
_THIS = "this"


def doctor(
    *, address: str | None = None, storage: Location | None = None, cluster_file: Location | None = None
) -> list[Finding]:
    """Find what would break a search, or let strangers in.

    Args:
        address: a Ray cluster to look at from inside, such as ``auto`` on its head; ``RAY_ADDRESS`` if not given,
            else this machine alone. From outside, submit it: ``submit(["doctor", ...])``.
        storage: a folder or URI that must be readable and writable from everywhere; a folder for the test is made in
            it and removed. A local one must be there.
        cluster_file: a cluster file to look through for secrets.

    Returns:
        Findings; an `error` among them means that a search should not be started.

    Raises:
        ConfigError: no cluster answers at the address, or the cluster file or a local folder of the storage is not
            there.
    """
    if storage is not None:
        _check_folder(storage)
    given = _read_cluster_file(locate(cluster_file)) if cluster_file is not None else []
    where = cluster_address(address)
    of_scratch: list[Finding] = []
    machines: list[Facts] = []
    dashboard: str | None = None
    with terminated_as_interrupted(), _scratch(storage, of_scratch) as (scratch, witness):
        if where is None:
            machines = [_here(scratch, witness)]
        else:
            with connected(address):
                machines, dashboard = _ask_all(scratch, witness)
    return given + check(machines, dashboard, is_cluster=where is not None, of_storage=of_scratch)


def _read_cluster_file(path: UPath) -> list[Finding]:
    if not path.is_file():
        raise ConfigError(f"--cluster-file {path}: must be a file, got none; check the path")
    return check_cluster_file(path.name, find_secrets(path.read_text(errors="replace")))


def _check_folder(storage: Location) -> None:
    """A local folder is there already: one that is made by a misspelt path tells nothing of the one that was meant."""
    if not str(storage):
        raise ConfigError("--storage: must be a folder or a URI, got an empty text; leave it out to test none")
    path = locate(storage)
    if not is_local(path):
        return
    told, _ = answers({"kind": Question(_WITHIN_S, lambda: (path.exists(), path.is_dir()))})
    is_there, is_folder = told.get("kind", (True, True))  # what hangs is a finding
    if not is_folder:
        got = "a file" if is_there else "nothing there"
        raise ConfigError(
            f"--storage {path}: must be a folder that is there, got {got}; correct it, or make that folder"
        )


@contextmanager
def _scratch(storage: Location | None, findings: list[Finding]) -> Iterator[tuple[str | None, str]]:
    """A folder of the storage for the block, with what stands in its witness.

    None where it cannot be made, which is a finding then.
    """
    if storage is None:
        yield None, ""
        return
    folder = locate(storage)
    scratch, witness = folder / f".ich-ray-doctor-{secrets.token_hex(4)}", secrets.token_hex(8)
    failed: dict[str, str] = {}
    try:
        _, failed = answers({"write": Question(_WITHIN_S, partial(write_bytes, scratch / "witness", witness.encode()))})
        if failed:
            findings.append(
                Finding(
                    "error",
                    "storage",
                    f"{folder}: must be writable from this machine, got {failed['write']}",
                    "mount it here with write access, or give this machine credentials for it",
                    (_THIS,),
                )
            )
        yield None if failed else str(scratch), witness
    finally:
        _, left = answers({"remove": Question(1.0 if failed else _WITHIN_S, partial(remove, scratch))})
        if left and not failed:
            findings.append(
                Finding("warning", "storage", f"{scratch}: could not be removed, got {left['remove']}", "remove it")
            )


def _here(scratch: str | None, witness: str) -> Facts:
    """This machine, which reads what it has written."""
    folder, problem = None, ""
    try:
        folder = str(sessions_folder())
    except ConfigError as error:
        problem = str(error)
    facts = look(_THIS, scratch, witness, folder)
    if scratch is not None and facts.speed is not None:
        facts = _with_reading(facts, _read(scratch, [], _THIS), {})
    return facts.model_copy(update={"ray_folder": problem})


def _read(scratch: str, names: list[str], large_of: str) -> tuple[dict[str, str], float | None]:
    told, missing = answers({"read": Question(_WITHIN_S, partial(read_others, scratch, names, large_of))})
    answer: tuple[dict[str, str], float | None] = told.get("read") or ({large_of: missing["read"]}, None)
    return answer


def _with_reading(facts: Facts, read: tuple[dict[str, str], float | None], names: Mapping[str, str]) -> Facts:
    """What a machine has read of others, by the names of their files."""
    wrong, rate = read
    speed = facts.speed and facts.speed.model_copy(update={"read_mb_per_s": rate})
    return facts.model_copy(
        update={"unread": {names.get(name, name): why for name, why in wrong.items()}, "speed": speed}
    )


def _ask_all(scratch: str | None, witness: str) -> tuple[list[Facts], str | None]:
    """Every node that is up, all at once; then each reads what the others have written."""
    from ich_ray.ray_internals import get_dashboard_url

    nodes = {node["NodeID"]: node for node in nodes_up()}
    names = _names(nodes)
    read_versions = version_reader()
    asked = _ask({
        node: with_versions(read_versions, _look_there, (names[node], scratch, witness, node)) for node in nodes
    })  # fmt: skip
    machines = {node: _facts(names[node], answer, nodes[node]) for node, answer in asked.items()}
    writers = [node for node, facts in machines.items() if facts.speed is not None]
    again = _ask({node: _again(scratch, writers, node) for node in nodes if not machines[node].silent})
    for node, answer in again.items():
        machines[node] = _second(machines[node], answer, names)
    return sorted(machines.values(), key=lambda facts: facts.machine), get_dashboard_url()  # type: ignore[no-untyped-call]


def _names(nodes: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """What each machine is called: its address, with its id where several have one."""
    count = Counter(node["NodeManagerAddress"] for node in nodes.values())
    return {
        key: address if count[address := node["NodeManagerAddress"]] == 1 else f"{address} ({key[:8]})"
        for key, node in nodes.items()
    }


class _Answer(NamedTuple):
    """What a machine has said, and when by the clock here; or why it has not."""

    sent: float
    received: float
    said: Any
    silent: str = ""


def _ask(questions: Mapping[str, Callable[[], Any]]) -> dict[str, _Answer]:
    """The answer of each node, all asked at once."""
    import ray

    began, sent = time.monotonic(), time.time()
    waiting = {on_node(node, question): node for node, question in questions.items()}
    found: dict[str, _Answer] = {}
    while waiting:
        left_s = max(0.0, began + _ANSWER_WITHIN_S - time.monotonic())
        ready, _ = ray.wait([*waiting], timeout=left_s)
        received = time.time()
        if not ready:
            silent = f"nothing within {_ANSWER_WITHIN_S:.0f} s"
            return found | {node: _Answer(sent, received, None, silent) for node in waiting.values()}
        try:
            found[waiting[ready[0]]] = _Answer(sent, received, ray.get(ready[0]))
        except ray.exceptions.RayError as error:
            found[waiting[ready[0]]] = _Answer(sent, received, None, first_line(error))
        del waiting[ready[0]]
    return found


def _look_there(machine: str, storage: str | None, witness: str, node: str) -> dict[str, Any]:
    """What a worker of Ray says of its machine; it knows where Ray keeps its files there."""
    from ich_ray.ray_internals import worker

    here = worker.global_worker.node
    temporary = here and here.get_session_dir_path()
    # Plain, as another version of this package may have another record.
    return look(machine, storage, witness, temporary, name=node, is_of_ray=True).model_dump(mode="json")


def _again(scratch: str | None, writers: list[str], node: str) -> Callable[[], tuple[float, Any, float]]:
    return lambda: _look_again(scratch, writers, node)  # Ray takes no partial


def _look_again(scratch: str | None, writers: list[str], node: str) -> tuple[float, Any, float]:
    """What a machine reads of others, with its clock before and after: this time nothing had to be loaded."""
    began = time.time()
    read = None
    if scratch is not None and writers:
        ring = sorted({*writers, node})
        beside = ring[(ring.index(node) + 1) % len(ring)]  # what it has written itself is in its memory
        read = _read(scratch, [each for each in writers if each != node], beside)
    return began, read, time.time()


def _facts(machine: str, answer: _Answer, node: dict[str, Any]) -> Facts:
    resources = node["Resources"]
    known = {
        "machine": machine,
        "is_head": "node:__internal_head__" in resources,
        "gpus": resources.get("GPU", 0.0),
        "sent": answer.sent,
        "received": answer.received,
    }
    if answer.silent:
        return Facts(versions={}, silent=answer.silent, **known)
    versions, said = answer.said
    if isinstance(said, str):
        return Facts(versions=versions, silent=said, **known)
    try:
        return Facts.model_validate(said | {"versions": versions} | known)
    except (TypeError, ValueError) as error:
        return Facts(versions=versions, silent=f"an answer of another version, {first_line(error)}", **known)


def _second(facts: Facts, answer: _Answer, names: Mapping[str, str]) -> Facts:
    """With what a machine has read, and the times of the quicker of two round trips."""
    if answer.silent:
        return facts.model_copy(update={"unanswered": facts.unanswered | {"storage": answer.silent}})
    began, read, answered = answer.said
    if read is not None:
        facts = _with_reading(facts, read, names)
    first_s = (facts.received - facts.sent) - (facts.answered - facts.began)
    second_s = (answer.received - answer.sent) - (answered - began)
    times = {"sent": answer.sent, "began": began, "answered": answered, "received": answer.received}
    return facts.model_copy(update=times if second_s < first_s else {})
