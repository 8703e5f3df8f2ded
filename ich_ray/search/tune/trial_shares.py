"""Shares of accelerators in Tune: each trial asks Ray for its own.

Once it asks for a larger one, if its memory ran out. Which share, gpu_shares.py says; that a trial has been given a
larger one already, the ledger. Tune takes other resources for a trial when it is added and when it goes back to the
queue, through the scheduler.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from ray.tune import Callback, PlacementGroupFactory

from ich_ray.progress import say
from ich_ray.search.gpu_shares import DeviceKind, GpuShares
from ich_ray.search.ledger import Verdict
from ich_ray.search.plan.share_plan import CONTEXT_BYTES, Need
from ich_ray.trial_records import OUT_OF_MEMORY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ray.tune.experiment import Trial

    from ich_ray.search.ledger import Ledger
    from ich_ray.trial_records import Parameter, TrialResult

__all__ = ["Kinds", "TrialShares", "equal_shares", "memory_shares"]

# Long enough for another machine of a kind to come.
_GONE_AFTER_S = 600.0


class Kinds(Protocol):
    """Kinds of devices, and the machines that have others than those of a memory."""

    def __call__(self) -> list[DeviceKind]: ...
    def others(self, memory: float) -> list[str]: ...


class TrialShares(Callback):
    """Gives each trial of a search its share, and counts who has it.

    Args:
        ledger: of the search.
        shares: to choose from.
        need: of a trial, by its parameters, as `shares` count it.
        cpus: of a trial.
        others: machines on which a share of a device with that memory is none.
        now: a clock that does not go back.
        is_memory: whether needs are bytes, so that a trial may have no more than its share of them.
    """

    def __init__(
        self,
        ledger: Ledger,
        shares: GpuShares,
        need: Callable[[Mapping[str, Parameter]], Need],
        cpus: float,
        others: Callable[[float], Sequence[str]] = lambda _: (),
        *,
        is_memory: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._shares, self._need, self._cpus = ledger, shares, need, cpus
        self._others, self._is_memory = others, is_memory
        self._needs: dict[int, Need] = {}
        self._asked: dict[int, PlacementGroupFactory] = {}
        self._gpus: dict[int, float] = {}
        self._growing: set[int] = set()
        self._now, self._missed = now, dict[int, float]()

    def has_room(self) -> bool:
        """Whether a trial more may be drawn."""
        return self._shares.has_room()

    def begin(self, record: TrialResult) -> dict[str, Any]:
        """What the config of a trial says of its share; a larger one where its memory ran out before."""
        self._needs[record.number] = need = self._need(record.parameters)
        self._shares.assign(record.number, need.bytes)
        if _ran_out(record):
            self._shares.grow(record.number)
        return self._told(record.number)

    def ended(self, number: int) -> None:
        self._shares.ended(number)
        for known in (self._needs, self._asked, self._missed):
            known.pop(number, None)

    def gpus(self, number: int) -> float:
        """Of the attempt of a trial that is under way, or was last: not of one that waits for its share."""
        return self._gpus[number]

    def place(self, trial: Trial) -> None:
        """Ask for a trial's share, before it is in Tune's queue; again for one that goes back there."""
        number = trial.config["number"]
        if trial.status == "ERROR":
            if number in self._growing:
                self._growing.discard(number)
                self._shares.grow(number)
            else:
                self._shares.again(number)
            trial.config.update(self._told(number))
        trial.update_resources(self._asked[number])

    def look(self, trial: Trial) -> PlacementGroupFactory | None:
        """What a trial that waits asks for anew, as its kind of machine has gone; None where it just waits."""
        number = trial.config["number"]
        if self._shares.is_there(number):
            self._missed.pop(number, None)
            return None
        if self._now() - self._missed.setdefault(number, self._now()) < _GONE_AFTER_S:
            return None
        del self._missed[number]
        self._shares.again(number)
        trial.config.update(self._told(number))
        say(f"trial {number}: no machine of the kind that it waits for is left, it takes a share of another kind")
        return self._asked[number]

    def ran_out(self, number: int, told: Mapping[str, Any]) -> Verdict | None:
        """Note an attempt whose memory ran out: None where the trial gets a larger share, else how it ends."""
        if _ran_out(self._ledger.trials[number]) or not self._shares.can_grow(number):
            return Verdict("failed", OUT_OF_MEMORY, told["detail"])
        detail = f"with {self.gpus(number):g} of a GPU: {told['detail']}"[:500]
        attempt = self._ledger.lose(
            number, OUT_OF_MEMORY, detail, told["node"], told["host"], told.get("devices", ())
        )  # fmt: skip
        self._growing.add(number)
        say(f"trial {number}: memory ran out on {attempt.place}, it is tried once more with a larger share of a GPU")
        return None

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        number = trial.config["number"]
        self._gpus[number] = trial.config["gpus"]
        self._shares.started(number)

    def _told(self, number: int) -> dict[str, Any]:
        share = self._shares.share(number)
        self._asked[number] = _request(self._cpus, share.gpus, tuple(self._others(share.memory)))
        self._gpus.setdefault(number, share.gpus)
        grown = _ran_out(self._ledger.trials[number])
        told: dict[str, Any] = {"gpus": share.gpus, "may_grow": not grown and self._shares.can_grow(number)}
        if self._is_memory:
            told["memory_bytes"] = max(1, int(share.bytes - CONTEXT_BYTES)) if share.gpus < 1 else 0
            told["images_fit"] = not grown and sum(self._needs[number]) <= share.bytes
        return told


def _ran_out(record: TrialResult) -> bool:
    return any(attempt.cause == OUT_OF_MEMORY for attempt in record.lost)


@lru_cache(maxsize=64)
def _request(cpus: float, gpus: float, others: tuple[str, ...]) -> PlacementGroupFactory:
    """One for all trials that are alike, by which Tune knows the workers that they may take over."""
    apart = {"bundle_label_selector": [{"ray.io/node-id": f"!in({','.join(others)})"}]} if others else {}
    return PlacementGroupFactory([{"CPU": cpus, "GPU": gpus}], "PACK", **apart)


def equal_shares(ledger: Ledger, cpus: float, gpus: float, at_a_time: Callable[[], int]) -> TrialShares:
    """The same fraction of any device for each trial, twice of it where its memory ran out.

    Args:
        ledger: of the search.
        cpus: of a trial.
        gpus: the fraction.
        at_a_time: trials with that fraction.
    """

    def kinds() -> list[DeviceKind]:
        return [DeviceKind(1.0, at_a_time() * gpus, at_a_time())]

    return TrialShares(ledger, GpuShares(kinds, gpus, (gpus, min(2 * gpus, 1.0))), lambda _: Need(gpus), cpus)


def memory_shares(
    ledger: Ledger,
    cpus: float,
    kinds: Kinds,
    need: Callable[[Mapping[str, Parameter]], Need],
    least: float,
) -> TrialShares:
    """For each trial what it needs of memory.

    Args:
        ledger: of the search.
        cpus: of a trial.
        kinds: of devices there are.
        need: of a trial, by its parameters.
        least: bytes that any trial needs.
    """
    return TrialShares(ledger, GpuShares(kinds, least), need, cpus, kinds.others, is_memory=True)
