"""Which share of which kind of accelerator a trial takes, so that what it needs has room there.

Ray packs fractions: it lets no two trials have more than one device between them. A share times the memory of the
smallest device that it may be of is at least what its trial needs, so memory is packed as well. Shares are few sizes,
each twice the one before, so that workers are reused and what is left over is of use. Nothing smaller overtakes a trial
that waits for room. Knows no Ray and asks nobody: trial_shares.py in tune/ does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["STEPS", "DeviceKind", "GpuShares", "Share", "grouped", "is_alike", "share_of"]

STEPS = (0.125, 0.25, 0.5, 1.0)
# Devices of one model tell memories that differ by less.
_ALIKE = 1.05
_ROUNDING = 1e-9


@dataclass(frozen=True)
class DeviceKind:
    """Machines whose accelerators have the same memory.

    Attributes:
        memory: of a device; of a machine with several kinds the least one counts, as Ray gives a trial any of them.
        devices: of all these machines together.
        trials: for which their CPUs are enough.
        nodes: the machines, by Ray's ids.
    """

    memory: float
    devices: float
    trials: int
    nodes: frozenset[str] = frozenset()


class Share(NamedTuple):
    """What a trial takes: so much of a device, of the kind with that memory."""

    gpus: float
    memory: float

    @property
    def bytes(self) -> float:
        return self.gpus * self.memory


@dataclass
class _Held:
    need: float
    share: Share
    waits: bool
    has_started: bool = False


def share_of(need: float, memory: float, steps: Sequence[float] = STEPS) -> float | None:
    """The least share of a device of that memory that holds `need`; None where all of it does not."""
    return next((step for step in steps if step * memory >= need * (1 - _ROUNDING)), None)


def is_alike(one: float, other: float) -> bool:
    """Whether two memories are of devices of one kind."""
    return one <= other * _ALIKE and other <= one * _ALIKE


def grouped(machines: Iterable[DeviceKind]) -> list[DeviceKind]:
    """Machines by the memory of their devices, the smallest first.

    Of those that are alike the least counts.
    """
    found: list[DeviceKind] = []
    for one in sorted(machines, key=lambda kind: kind.memory):
        if found and is_alike(found[-1].memory, one.memory):
            last = found.pop()
            more = last.devices + one.devices, last.trials + one.trials, last.nodes | one.nodes
            found.append(DeviceKind(last.memory, *more))
        else:
            found.append(one)
    return found


class GpuShares:
    """The shares of the trials that are under way.

    Args:
        kinds: of devices that there are now.
        least: that any trial needs: as long as so much is free, there is room for one more.
        steps: the sizes of shares, the smallest first.
    """

    def __init__(
        self,
        kinds: Callable[[], Sequence[DeviceKind]],
        least: float = 0.0,
        steps: Sequence[float] = STEPS,
    ) -> None:
        self._ask, self._least, self._steps = kinds, least, steps
        self._held: dict[int, _Held] = {}  # in the order in which they were asked for

    def kinds(self) -> list[DeviceKind]:
        """Those that have devices, the smallest first."""
        return sorted((kind for kind in self._ask() if kind.devices), key=lambda kind: kind.memory)

    def has_room(self) -> bool:
        """Whether a trial more may be drawn: it may have to wait, but one for each kind of device at most."""
        kinds = self.kinds()
        if sum(self._waiting(kind) for kind in kinds) >= len(kinds):
            return False
        return any(self._is_free(kind, share) for kind, share in self._fit(self._least, kinds))

    def assign(self, number: int, need: float) -> Share:
        """The share of a trial that asks for one, the last in the queue.

        Of the smallest devices that hold it and are free; where it fits none at all, a whole one of the largest.
        """
        self._held.pop(number, None)
        fit = self._fit(need, self.kinds())
        free = [(kind, share) for kind, share in fit if self._is_free(kind, share)]
        soonest = min(fit, key=lambda option: (self._waiting(option[0]), -option[0].devices))
        kind, share = free[0] if free else soonest
        self._held[number] = _Held(need, Share(share, kind.memory), waits=not free)
        return self._held[number].share

    def again(self, number: int) -> Share:
        """The share of a trial whose attempt was lost, at the end of the queue."""
        return self.assign(number, self._held[number].need)

    def is_there(self, number: int) -> bool:
        """Whether there are devices of the kind that a trial has a share of."""
        return any(is_alike(kind.memory, self._held[number].share.memory) for kind in self.kinds())

    def grow(self, number: int) -> Share | None:
        """Twice the share, at the end of the queue, or what comes nearest to it.

        None where there is no larger one.
        """
        had, most = self._held[number].share.bytes, self._most_bytes()
        return self.assign(number, min(2 * had, most)) if most > had * (1 + _ROUNDING) else None

    def can_grow(self, number: int) -> bool:
        """Whether there is a larger share than that of a trial."""
        return self._most_bytes() > self._held[number].share.bytes * (1 + _ROUNDING)

    def _most_bytes(self) -> float:
        """Of the largest share that there is."""
        return self._steps[-1] * max((kind.memory for kind in self.kinds()), default=0.0)

    def share(self, number: int) -> Share:
        return self._held[number].share

    def started(self, number: int) -> None:
        """A trial has got its share.

        One that asked for a larger one before, and has none yet, waits for room.
        """
        if (mine := self._held.get(number)) is None:  # it has been ended meanwhile
            return
        mine.has_started, mine.waits = True, False
        for other, held in self._held.items():
            if other == number:
                return
            larger = held.share.gpus > mine.share.gpus and is_alike(held.share.memory, mine.share.memory)
            held.waits = held.waits or (larger and not held.has_started)

    def ended(self, number: int) -> None:
        self._held.pop(number, None)

    def _fit(self, need: float, kinds: Sequence[DeviceKind]) -> list[tuple[DeviceKind, float]]:
        """The share of a trial of each kind that holds it; of the largest where none does."""
        shares = ((kind, share_of(need, kind.memory, self._steps)) for kind in kinds)
        return [(kind, share) for kind, share in shares if share is not None] or [(kinds[-1], self._steps[-1])]

    def _of(self, kind: DeviceKind) -> list[_Held]:
        return [held for held in self._held.values() if is_alike(kind.memory, held.share.memory)]

    def _waiting(self, kind: DeviceKind) -> int:
        return sum(held.waits for held in self._of(kind))

    def _is_free(self, kind: DeviceKind, share: float) -> bool:
        held = self._of(kind)
        used = sum(one.share.gpus for one in held)
        return not self._waiting(kind) and len(held) < kind.trials and used + share <= kind.devices + _ROUNDING
