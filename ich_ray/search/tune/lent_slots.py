"""Slots that the driver of a search lends to a trial, held by an actor on the trial's machine.

Such a keeper holds the CPUs and accelerators of its slots and does nothing. It is named after its trial, so that the
trial's process finds it; it ends with the driver, or when that takes the slots back.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ActorUnavailableError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ich_ray.storage import sha256

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["NOTHING_LENT", "Keeper", "Lent", "LentSlots", "lend"]

_ANSWER_WITHIN_S = 2.0
# A keeper that has not started by then is asked again after the next report: training stands still meanwhile.
_START_WITHIN_S = 0.5
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


class LentSlots:
    """What is held for a trial, asked from its process.

    A keeper that answers late holds what it held before.
    """

    def __init__(self, search: str, seed: int) -> None:
        self._prefix = _prefix(search, seed)
        self._known: dict[str, Lent] = {}
        self._first: dict[str, Any] = {}  # the question that each keeper answers as soon as it has started

    def now(self) -> Lent:
        if not ray.is_initialized():
            return NOTHING_LENT
        asked = self._ask()
        self._first = {name: self._first.get(name, question) for name, question in asked.items()}
        started = _answered(self._first.values(), 0.0)
        ready = [
            *_answered([asked[name] for name in asked if self._first[name] in started], _ANSWER_WITHIN_S),
            *_answered([asked[name] for name in asked if self._first[name] not in started], _START_WITHIN_S),
        ]
        self._known = {name: self._told(name, asked[name] in ready, asked[name]) for name in asked}
        held = [lent for lent in self._known.values() if lent.slots]
        return Lent(sum(lent.slots for lent in held), tuple(device for lent in held for device in lent.devices))

    def _ask(self) -> dict[str, Any]:
        """A question to each keeper, the oldest first."""
        names = [name for name in ray.util.list_named_actors() if name and name.startswith(self._prefix)]
        asked: dict[str, Any] = {}
        for name in sorted(names, key=_age):
            with suppress(ValueError):  # gone meanwhile
                asked[name] = ray.get_actor(name).lent.remote()
        return asked

    def _told(self, name: str, is_ready: bool, question: Any) -> Lent:
        before = self._known.get(name, NOTHING_LENT)
        try:
            answer: Lent = ray.get(question) if is_ready else before
        except ActorUnavailableError:
            return before
        except RayError:
            return NOTHING_LENT
        return answer


def _answered(questions: Collection[Any], within_s: float) -> list[Any]:
    asked = [*questions]
    ready: list[Any] = ray.wait(asked, num_returns=len(asked), timeout=within_s)[0] if asked else []
    return ready


def _prefix(search: str, seed: int) -> str:
    return f"ich-ray-slots-{sha256(f'{search} {seed}'.encode())[:16]}-"


def _age(name: str) -> int:
    return int(name.rpartition("-")[2])
