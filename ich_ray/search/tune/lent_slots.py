"""Slots that the driver of a search lends to a trial, held by an actor on the trial's machine.

Such a keeper holds the CPUs and accelerators of its slots and does nothing. It is named after its trial, so that the
trial's process finds it; it ends with the driver, or when that takes the slots back.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ich_ray.storage import sha256

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NOTHING_LENT", "Keeper", "Lent", "lend", "lent_to"]

# A keeper that has not started by then is looked for again at the next report.
_ANSWER_WITHIN_S = 2.0
_count = itertools.count()


@dataclass(frozen=True)
class Lent:
    """What a trial has beyond its own slot.

    Attributes:
        slots: so many more.
        devices: accelerators of them, by Ray's ids.
    """

    slots: int = 0
    devices: tuple[str, ...] = ()


NOTHING_LENT = Lent()


class _Keeper:
    """Holds slots; what they are, until it is asked to give them back."""

    def __init__(self, slots: int) -> None:
        self._lent = Lent(slots, tuple(str(device) for device in ray.get_gpu_ids()))

    def lent(self) -> Lent:
        return self._lent

    def take_back(self) -> None:
        self._lent = NOTHING_LENT


class Keeper:
    """A keeper, as the driver sees it."""

    def __init__(self, actor: Any, slots: int) -> None:
        self._actor, self.slots = actor, slots
        self._answer = actor.lent.remote()

    def is_there(self) -> bool:
        """Whether it holds its slots.

        Raises:
            ray.exceptions.RayError: it never will.
        """
        if not ray.wait([self._answer], timeout=0)[0]:
            return False
        ray.get(self._answer)
        return True

    def take_back(self) -> None:
        """Let the trial know that the slots are wanted elsewhere; `end` once it has gone on without them."""
        self._actor.take_back.remote()

    def end(self) -> None:
        ray.kill(self._actor)


def lend(search: str, seed: int, node: str, slots: int, *, cpus: float, gpus: float) -> Keeper:
    """Have slots of a machine held for a trial, known by its seed.

    Each has so many CPUs and accelerators.
    """
    actor = ray.remote(_Keeper).options(
        name=f"{_prefix(search, seed)}{next(_count)}",
        num_cpus=slots * cpus,
        num_gpus=slots * gpus,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    )
    return Keeper(actor.remote(slots), slots)


def lent_to(search: str, seed: int) -> Lent:
    """What is held for a trial by now, asked from its process."""
    if not ray.is_initialized():
        return NOTHING_LENT
    prefix = _prefix(search, seed)
    names = [name for name in ray.util.list_named_actors() if name and name.startswith(prefix)]
    told = [lent for name in sorted(names, key=_age) if (lent := _asked(name)).slots]
    return _together(told)


def _asked(name: str) -> Lent:
    try:
        answer: Any = ray.get(ray.get_actor(name).lent.remote(), timeout=_ANSWER_WITHIN_S)
    except (ValueError, ray.exceptions.RayError):  # gone, not there yet, or about to go
        return NOTHING_LENT
    lent: Lent = answer
    return lent


def _together(told: Sequence[Lent]) -> Lent:
    return Lent(sum(one.slots for one in told), tuple(device for one in told for device in one.devices))


def _prefix(search: str, seed: int) -> str:
    return f"ich-ray-slots-{sha256(f'{search} {seed}'.encode())[:16]}-"


def _age(name: str) -> int:
    return int(name.rpartition("-")[2])
