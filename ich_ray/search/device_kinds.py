"""The accelerators of a cluster by their memory: each machine is asked once.

Those that come later are asked meanwhile. Plans nothing with them: gpu_shares.py does. Asks through accelerators.py,
and counts machines through cluster_resources.py.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ich_ray.errors import ConfigError
from ich_ray.progress import say
from ich_ray.search import accelerators, cluster_resources
from ich_ray.search.gpu_shares import DeviceKind, grouped, is_alike
from ich_ray.search.plan.expected import mapped_bytes
from ich_ray.search.plan.share_plan import SharePlan, TrialNeeds, plan_shares

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.search.cluster_resources import ClusterResources
    from ich_ray.search.preflight import Slots
    from ich_ray.search.request import SearchRequest
    from ich_ray.search.space.space import SearchSpace

__all__ = ["DeviceKinds", "MemoryPlan", "kinds_there", "plan_memory"]

_COUNT_EVERY_S = 5.0


class DeviceKinds:
    """Kinds of devices, counted again every few seconds.

    Where no machine is left they are those that there were.

    Args:
        fleet: whose machines they are; of those that may still come it is expected that their devices are as those of
            the smallest there are.
        cpus: of a trial.
        now: in seconds.

    Raises:
        ConfigError: no machine with an accelerator is up, or one does not say how much memory it has.
    """

    def __init__(self, fleet: ClusterResources, cpus: float, now: Callable[[], float] = time.monotonic) -> None:
        self._fleet, self._cpus, self._now = fleet, cpus, now
        there = cluster_resources.gpu_machines()
        if not there:
            raise ConfigError(
                "--gpus-per-trial auto: a machine with GPUs must be up, so that it can be asked for their memory, got "
                "none; keep one up (min_workers: 1), or leave it out"
            )
        self._memories = dict(accelerators.device_memories(list(there)))
        if mute := [node for node in there if not self._memories.get(node)]:
            raise ConfigError(
                f"--gpus-per-trial auto: each machine must say how much memory its GPUs have, got nothing from "
                f"{cluster_resources.address_of(mute[0])}; check it with `ich-ray doctor`, or give a number"
            )
        self._mute: set[str] = set()
        self._asked: Future[Mapping[str, int]] | None = None
        self._counted = now()
        self._kinds = self._count(there)
        if not self._kinds:
            raise ConfigError(
                f"--cpus-per-trial: a trial must fit on one machine with GPUs, got {cpus:g} CPUs, which none of them "
                "has; lower it"
            )

    def __call__(self) -> list[DeviceKind]:
        if self._now() - self._counted >= _COUNT_EVERY_S:
            self._counted = self._now()
            there = cluster_resources.gpu_machines()
            self._hear(there)
            self._kinds = self._count(there) or self._kinds
        return self._kinds

    def others(self, memory: float) -> list[str]:
        """Machines that have devices of another kind than those of that memory, or do not say of which."""
        known = (node for node, there in self._memories.items() if not is_alike(there, memory))
        return sorted({*known, *self._mute})

    def _hear(self, there: Mapping[str, tuple[float, float]]) -> None:
        """Take an answer, and ask machines that are new, or have not said."""
        if self._asked and self._asked.done():
            if self._asked.exception() is None:
                self._take(self._asked.result())
            self._asked = None
        unknown = [node for node in there if node not in self._memories]
        # Those that are mute make the others wait for their answer.
        asked = [node for node in unknown if node not in self._mute] or unknown
        if asked and not self._asked:
            self._asked = _in_background(asked)

    def _take(self, told: Mapping[str, int]) -> None:
        self._memories.update({node: memory for node, memory in told.items() if memory})
        for node in told.keys() - self._memories.keys() - self._mute:
            say(
                f"machine {cluster_resources.address_of(node)}: it must say how much memory its GPUs have, got "
                "nothing; it gets no trial before it does; check it with `ich-ray doctor`"
            )
        self._mute = (self._mute | told.keys()) - self._memories.keys()

    def _count(self, there: Mapping[str, tuple[float, float]]) -> list[DeviceKind]:
        found = kinds_there(there, self._memories, self._cpus)
        if not found:
            return []
        smallest, *larger = found
        coming = [(one.gpus if one.gpus is not None else 1.0, one.count) for one in self._fleet.coming()]
        devices = smallest.devices + sum(gpus * count for gpus, count in coming)
        trials = smallest.trials + sum(count * max(1, int(8 * gpus)) for gpus, count in coming if gpus)
        return [DeviceKind(smallest.memory, devices, trials, smallest.nodes), *larger]


def _in_background(nodes: list[str]) -> Future[Mapping[str, int]]:
    """Ask machines for their memory; a thread that no command waits for at its end: it may take minutes."""
    asked: Future[Mapping[str, int]] = Future()

    def ask() -> None:
        try:
            asked.set_result(accelerators.device_memories(nodes))
        except Exception as error:  # noqa: BLE001  (whoever looks at the answer sees it)
            asked.set_exception(error)

    threading.Thread(target=ask, daemon=True, name="device-memories").start()
    return asked


def kinds_there(
    machines: Mapping[str, tuple[float, float]], memories: Mapping[str, int], cpus: float
) -> list[DeviceKind]:
    """Machines by the memory of their devices, the smallest first.

    Those too small for a trial are left out.

    Args:
        machines: CPUs and accelerators, by Ray's ids.
        memories: bytes of the smallest device of each; 0 or nothing where that is not known.
        cpus: of a trial.
    """
    return grouped(
        DeviceKind(memories[node], gpus, int(there / cpus), frozenset({node}))
        for node, (there, gpus) in machines.items()
        if memories.get(node) and there >= cpus
    )


class MemoryPlan(NamedTuple):
    """Shares by memory, as they are planned, and what each trial's follows from."""

    shares: SharePlan
    kinds: DeviceKinds
    needs: TrialNeeds


def plan_memory(
    space: SearchSpace, dataset: PreparedDataset, request: SearchRequest, fleet: ClusterResources, slots: Slots
) -> tuple[Slots, MemoryPlan | None]:
    """The shares of a search that asks for `auto`, with slots as many as they make.

    Else the slots as they are.

    Raises:
        ConfigError: there are no such shares.
    """
    if request.gpus_per_trial != "auto":
        return slots, None
    if slots.workers > 1:
        raise ConfigError(
            f"--gpus-per-trial auto: a trial with a share of a GPU trains in one process, got --workers-per-trial "
            f"{slots.workers}; leave one of them out"
        )
    if space.drawn.name != "network":
        raise ConfigError(
            f"--gpus-per-trial auto: memory is planned for networks, got a space of {space.drawn.name} models; give a "
            "number"
        )
    needs = TrialNeeds(dataset.image_shape, mapped_bytes(dataset), request.placement)
    kinds = DeviceKinds(fleet, slots.cpus)
    plan = plan_shares(space, needs, kinds())
    most = plan.concurrent if request.concurrent is None else min(plan.concurrent, request.concurrent)
    return replace(slots, concurrent=most), MemoryPlan(plan, kinds, needs)
