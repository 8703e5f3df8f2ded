"""Trials that grow onto free slots at the end of a search: a Tune callback in the driver.

Once nothing is left to start it has `plan.growth` decide by what running trials take for an image, and keepers hold the
slots (`lent_slots`), which the processes of the trials find (`grown_trial`). A trial that went back to the queue gets
its slot first: then all slots that are lent are taken back. Tune knows nothing of any of this.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ray.exceptions import RayError
from ray.tune import Callback

from ich_ray.progress import say
from ich_ray.search.plan.growth import SWITCH_S, RunningTrial, efficiency_of, growing
from ich_ray.search.tune.lent_slots import lend

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from ray.tune.experiment import Trial

__all__ = ["Growing", "SearchState"]

_LOOK_EVERY_S = 2.0
# Slots that are free are held within seconds; where they are not, somebody else has them.
_HELD_WITHIN_S = 60.0
# Reports after which a trial that has not taken its slots never will: it looks for them at each.
_TAKEN_WITHIN = 3


class SearchState(NamedTuple):
    """What there is for trials of a search of which nothing is left to start.

    Attributes:
        slots: that it may use in all.
        machines: slots of each machine that is up.
        out: machines in quarantine.
    """

    slots: int
    machines: Mapping[str, int]
    out: Collection[str]


class _Keeper(Protocol):
    slots: int

    def is_there(self) -> bool: ...
    def take_back(self) -> None: ...
    def end(self) -> None: ...


@dataclass
class _Running:
    """A trial that runs, in this attempt.

    Attributes:
        seconds: per image, of each report, by the slots that it had.
        slots: that it had at its newest report.
        keepers: of the slots that it has beyond its own, or is to have.
        pending_since: the newest of them was lent, while it does not hold its slots yet.
        reports: since the slots that it has beyond its own are held.
    """

    node: str = ""
    images: int = 0
    elapsed_s: float = 0.0
    told: float | None = None
    seconds: defaultdict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    slots: int = 1
    keepers: list[_Keeper] = field(default_factory=list)
    pending_since: float | None = None
    returning: bool = False
    reports: int = 0
    may_grow: bool = True

    @property
    def lent(self) -> int:
        return sum(keeper.slots for keeper in self.keepers)

    @property
    def is_settled(self) -> bool:
        return not self.returning and self.slots == 1 + self.lent

    @property
    def has_not_taken(self) -> bool:
        """Whether slots that are held for it wait in vain."""
        waits = self.slots < 1 + self.lent and self.pending_since is None and not self.returning
        return waits and self.reports > _TAKEN_WITHIN

    def medians(self) -> dict[int, float]:
        return {slots: statistics.median(found) for slots, found in self.seconds.items()}


class Growing(Callback):
    """Lends free slots to running trials.

    Args:
        search: its folder, which the names of keepers are of.
        state: of the search, when it is asked; None while something is left to start, or no time.
        images: of a trial's budget, by its parameters.
        most: slots that a trial may have, by its parameters; 1 where it must stay as it is.
        grew: told of each trial whose slots have changed, with those it has now.
        workers: processes of a slot; `cpus` and `gpus` are those of a slot, too.
    """

    def __init__(
        self,
        search: str,
        *,
        state: Callable[[], SearchState | None],
        images: Callable[[Mapping[str, Any]], int],
        most: Callable[[Mapping[str, Any]], int],
        grew: Callable[[int, int], None],
        workers: int,
        cpus: float,
        gpus: float,
        lend: Callable[..., _Keeper] = lend,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._search, self._state, self._images, self._most, self._grew = search, state, images, most, grew
        self._workers, self._held = workers, {"cpus": cpus, "gpus": gpus}
        self._lend, self._now = lend, now
        self._running: dict[int, _Running] = {}
        self._measured: list[dict[int, float]] = []
        self._switches_s: list[float] = []
        self._looked = -math.inf
        self._stay: set[int] = set()  # lost while they were larger

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        number = trial.config["number"]
        self._running[number] = _Running(may_grow=number not in self._stay)

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Trial],  # noqa: ARG002
        trial: Trial,
        result: dict[str, Any],
        **info: Any,  # noqa: ARG002
    ) -> None:
        number = trial.config["number"]
        running = self._running.get(number)
        if running is None or "lost" in result or "failure" in result:
            return
        setup, now = result.get("setup") or {}, self._now()
        slots = max(1, setup.get("workers", self._workers) // self._workers)
        images, elapsed_s = result["images_seen"] - running.images, result["elapsed_s"] - running.elapsed_s
        if running.told is not None and images > 0:
            running.seconds[slots].append(elapsed_s / images)
            if slots != running.slots:
                self._switches_s.append(max(0.0, now - running.told - elapsed_s))
        running.node, running.images, running.told = result.get("node", ""), result["images_seen"], now
        running.elapsed_s, running.reports = result["elapsed_s"], running.reports + 1
        if slots != running.slots:
            say(f"trial {number}: {'grown to' if slots > running.slots else 'back to'} {slots * self._workers} workers")
        running.slots = slots
        if slots == 1 and running.returning:
            self._end_keepers(number, running)
        elif running.has_not_taken:
            running.may_grow = False
            self._end_keepers(number, running)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        running = self._running.get(trial.config["number"])
        if running and running.lent:
            self._stay.add(trial.config["number"])
        self._forget(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        self._forget(trial)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        self._forget(trial)

    def _forget(self, trial: Trial) -> None:
        number = trial.config["number"]
        if running := self._running.pop(number, None):
            self._measured.append(running.medians())
            self._end_keepers(number, running)

    def _end_keepers(self, number: int, running: _Running) -> None:
        held = len(running.keepers) - (running.pending_since is not None)
        for keeper in running.keepers:
            keeper.end()
        running.keepers, running.pending_since, running.returning, running.reports = [], None, False, 0
        if held:
            self._grew(number, 1)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:  # noqa: ARG002
        if self._now() - self._looked < _LOOK_EVERY_S:
            return
        self._looked = self._now()
        for number, running in self._running.items():
            self._look_at_keeper(number, running)
        if any(trial.status in ("PENDING", "PAUSED") for trial in trials):
            self._take_all_back()
        elif (state := self._state()) is not None:
            self._grow(trials, state)

    def _look_at_keeper(self, number: int, running: _Running) -> None:
        if (since := running.pending_since) is None:
            return
        try:
            if running.keepers[-1].is_there():
                running.pending_since, running.reports = None, 0
                self._grew(number, 1 + running.lent)
                return
        except RayError:
            since = -math.inf
        if self._now() - since > _HELD_WITHIN_S:
            running.pending_since, running.may_grow = None, False
            running.keepers.pop().end()

    def _take_all_back(self) -> None:
        for running in self._running.values():
            if running.keepers and not running.returning:
                self._take_back(running)

    def _take_back(self, running: _Running) -> None:
        running.returning = True
        for keeper in running.keepers:
            keeper.take_back()

    def _grow(self, trials: Sequence[Trial], state: SearchState) -> None:
        if not all(running.node for running in self._running.values()):
            return  # a trial that has not reported stands nobody knows where
        configs = {trial.config["number"]: trial.config for trial in trials}
        ready = [
            RunningTrial(
                number=number,
                node=running.node,
                images_left=self._images(configs[number].get("parameters", {})) - running.images,
                seconds=running.medians(),
                slots=running.slots,
                most=self._most(configs[number].get("parameters", {})),
            )
            for number, running in self._running.items()
            if running.may_grow and running.is_settled and running.seconds.get(1)
        ]
        measured = [*self._measured, *(running.medians() for running in self._running.values())]
        switch_s = statistics.median(self._switches_s) if self._switches_s else SWITCH_S
        changes = growing(ready, self._free(state), efficiency=efficiency_of(measured), switch_s=switch_s)
        for number, slots in changes.items():
            running = self._running[number]
            if slots == 1:
                self._take_back(running)
                continue
            seed = configs[number]["seed"]
            keeper = self._lend(self._search, seed, running.node, slots - running.slots, **self._held)
            running.keepers.append(keeper)
            running.pending_since = self._now()

    def _free(self, state: SearchState) -> dict[str, int]:
        """Slots by machine that nobody holds, as many as the search may use."""
        taken = Counter(dict.fromkeys(state.machines, 0))
        for running in self._running.values():
            taken[running.node] += 1 + running.lent
        left, free = max(0, state.slots - taken.total()), {}
        for node, slots in state.machines.items():
            if node not in state.out:
                free[node] = min(left, max(0, slots - taken[node]))
                left -= free[node]
        return free
