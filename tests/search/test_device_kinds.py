"""Kinds of devices of a cluster; its machines, and what they say of their memory, are planted."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from ich_ray.errors import ConfigError
from ich_ray.search import accelerators, cluster_resources, device_kinds
from ich_ray.search.cluster_resources import Machine
from ich_ray.search.device_kinds import DeviceKinds, kinds_there, plan_memory
from ich_ray.search.gpu_shares import DeviceKind
from ich_ray.search.preflight import Slots
from ich_ray.search.request import SearchRequest

GIB = 2**30


@dataclass
class Planted:
    """A cluster: CPUs and GPUs of each machine, the memory that it tells, and what may still come."""

    machines: dict[str, tuple[float, float]]
    memories: dict[str, int]
    to_come: list[Machine] = field(default_factory=list)
    asked: list[list[str]] = field(default_factory=list)
    now: float = 0.0

    def memories_of(self, nodes: Sequence[str]) -> dict[str, int]:
        self.asked.append([*nodes])
        return {node: self.memories.get(node, 0) for node in nodes}

    def coming(self) -> list[Machine]:
        return self.to_come


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Planted:
    planted = Planted({"a": (4, 1), "b": (16, 2)}, {"a": 24 * GIB, "b": 80 * GIB})
    monkeypatch.setattr(cluster_resources, "gpu_machines", lambda: dict(planted.machines))
    monkeypatch.setattr(cluster_resources, "address_of", lambda node: f"10.0.0.{node}")
    monkeypatch.setattr(accelerators, "device_memories", planted.memories_of)
    return planted


def made(cluster: Planted, cpus: float = 2) -> DeviceKinds:
    return DeviceKinds(cluster, cpus, lambda: cluster.now)  # type: ignore[arg-type]


def test_each_machine_is_asked_once_and_later_ones_when_they_come(cluster: Planted) -> None:
    kinds = made(cluster)
    assert kinds() == [
        DeviceKind(24 * GIB, 1, 2, frozenset({"a"})),
        DeviceKind(80 * GIB, 2, 8, frozenset({"b"})),
    ]
    assert kinds.others(24 * GIB) == ["b"]
    cluster.machines["c"], cluster.memories["c"] = (8, 1), 80 * GIB
    assert len(kinds()) == 2, "not counted again so soon"
    cluster.now = 6
    kinds()
    assert kinds._asked is not None
    kinds._asked.result(60)
    cluster.now = 12
    assert kinds()[1] == DeviceKind(80 * GIB, 3, 12, frozenset({"b", "c"}))
    assert kinds.others(24 * GIB) == ["b", "c"]
    assert cluster.asked == [["a", "b"], ["c"]]
    cluster.machines.clear()
    cluster.now = 18
    assert len(kinds()) == 2, "so that whoever waits for a machine says so to an autoscaler"


def test_a_new_machine_that_does_not_say_is_named_and_asked_again(
    cluster: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(device_kinds, "say", said.append)
    kinds = made(cluster)

    def look() -> list[DeviceKind]:
        cluster.now += 6
        found = kinds()
        if kinds._asked is not None:
            kinds._asked.result(60)
        return found

    cluster.machines["c"] = (8, 1)
    for _ in range(3):
        assert [kind.nodes for kind in look()] == [{"a"}, {"b"}]
    assert kinds.others(80 * GIB) == ["a", "c"], "it may be of any kind"
    assert said == [
        "machine 10.0.0.c: it must say how much memory its GPUs have, got nothing; it gets no trial before it does; "
        "check it with `ich-ray doctor`"
    ]
    cluster.memories["c"] = 80 * GIB
    for _ in range(3):
        found = look()
    assert [kind.nodes for kind in found] == [{"a"}, {"b", "c"}]
    assert kinds.others(80 * GIB) == ["a"]
    assert cluster.asked[1:] == [["c"]] * 4


def test_no_command_waits_at_its_end_for_a_machine_that_does_not_say(
    cluster: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds, asked, told = made(cluster), threading.Event(), threading.Event()

    def ask(nodes: Sequence[str]) -> dict[str, int]:
        asked.set()
        told.wait(60)
        return dict.fromkeys(nodes, GIB)

    monkeypatch.setattr(accelerators, "device_memories", ask)
    cluster.machines["c"], cluster.now = (8, 1), 6
    kinds()
    assert asked.wait(60)
    assert {thread.daemon for thread in threading.enumerate() if thread.name == "device-memories"} == {True}
    told.set()


def test_machines_to_come_are_expected_to_be_as_the_smallest_that_are_there(cluster: Planted) -> None:
    cluster.to_come.append(Machine("gpu", 8, 1, 3))
    assert made(cluster)()[0] == DeviceKind(24 * GIB, 4, 2 + 24, frozenset({"a"}))


@pytest.mark.parametrize(
    ("change", "cpus", "message"),
    [
        ({"machines": {}}, 2, r"auto: a machine with GPUs must be up, .* got none; keep one up \(min_workers: 1\)"),
        ({"memories": {"a": GIB}}, 2, r"auto: each machine must say how much memory its GPUs have, got .* 10.0.0.b;"),
        ({}, 32, "--cpus-per-trial: a trial must fit on one machine with GPUs, got 32 CPUs"),
    ],
)
def test_what_cannot_be_asked_is_refused(cluster: Planted, change: dict[str, Any], cpus: float, message: str) -> None:
    for name, value in change.items():
        setattr(cluster, name, value)
    with pytest.raises(ConfigError, match=message):
        made(cluster, cpus)


def test_a_machine_without_cpus_for_a_trial_or_of_unknown_memory_is_left_out() -> None:
    machines = {"a": (1.0, 4.0), "b": (8.0, 1.0), "c": (8.0, 1.0)}
    assert kinds_there(machines, {"a": 8 * GIB, "b": 8 * GIB}, 2) == [DeviceKind(8 * GIB, 1, 4, frozenset({"b"}))]


@pytest.mark.parametrize(
    ("slots", "space", "message"),
    [
        (
            Slots(2, 2, 1, 2),
            "network",
            "auto: a trial with a share .* got --workers-per-trial 2; leave one of them out",
        ),
        (Slots(1, 1, 1), "sequence", "auto: memory is planned for networks, got a space of sequence models; give a nu"),
    ],
)
def test_what_has_no_planned_memory_is_refused(slots: Slots, space: str, message: str) -> None:
    asked = SearchRequest("d", "s", "o", gpus_per_trial="auto")
    drawn: Any = SimpleNamespace(drawn=SimpleNamespace(name=space))
    with pytest.raises(ConfigError, match=message):
        plan_memory(drawn, None, asked, None, slots)  # type: ignore[arg-type]


def test_without_auto_nobody_is_asked() -> None:
    slots = Slots(1, 0.5, 4)
    asked = SearchRequest("d", "s", "o", gpus_per_trial=0.5)
    assert plan_memory(None, None, asked, None, slots) == (slots, None)  # type: ignore[arg-type]
