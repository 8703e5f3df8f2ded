"""The course of a search on a clock that is not real: trials, the stopping rule, images on their way, and growth.

Trials end as the stopping rule of the space says (the very code of a search), of qualities drawn at random; free slots
go to running trials as `plan.growth` decides. A node reads an image from the shared storage once, when one of its
trials first shows it, and computes meanwhile; all nodes that read share what the storage gives. A confirmation may
follow, or begin while the search still runs. sizing.py prints it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.search.plan.growth import RunningTrial, efficiency_of, growing
from ich_ray.search.stopping.asha import AshaRungs
from ich_ray.trial_records import Objective

if TYPE_CHECKING:
    from collections.abc import Callable

    from ich_ray.search.space.space import Budget

__all__ = ["Confirming", "Costs", "course_s"]


@dataclass(frozen=True)
class Costs:
    """What things take.

    Attributes:
        image_s: of training one image on one slot.
        validation_s: of a report's validation on one slot.
        train, validation: images of either role, of `image_bytes` each; a node's memory holds a share `held` of them.
        storage_bytes_s: that the storage gives all nodes together.
        start_s: from the start of a trial to its first batch.
        switch_s: the same from one number of processes to another.
    """

    image_s: float
    validation_s: float
    train: float
    validation: float
    image_bytes: float
    held: float
    storage_bytes_s: float
    start_s: float
    switch_s: float


@dataclass(frozen=True)
class Confirming:
    """The confirmation after a search.

    Attributes:
        top: best trials that are trained again, each `parts` times, to the end of the budget.
        grows: whether its trainings do where trials do.
        after: share of its budget after which the trainings of a trial begin, once nothing is left to start; None for
            when all trials have ended. No search knows by then which trials will be the best; this one does.
    """

    top: int = 3
    parts: int = 2
    grows: bool = True
    after: float | None = None


@dataclass
class _Node:
    free: int
    cached: float = 0.0  # share of the training images
    validated: bool = False


@dataclass
class _Trial:
    """One that runs: what its report still takes, and the slots that it has now and from its next report on."""

    number: int
    node: int
    is_again: bool = False  # of the confirmation
    others: list[int] = field(default_factory=list)  # nodes of the slots beyond its first
    images: int = 0
    compute_s: float = 0.0  # of one slot
    alone_s: float = 0.0  # whatever the slots
    fetch_bytes: float = 0.0
    slots: int = 1
    next_slots: int = 1
    seconds: dict[int, float] = field(default_factory=dict)
    shown: float = 0.0  # of its epoch, share


def course_s(
    budget: Budget,
    costs: Costs,
    *,
    trials: int,
    slots: int,
    slots_a_node: int,
    efficiency: float | Callable[[int], float] | None,
    seed: int,
    confirming: Confirming | None = None,
    across: bool = False,
) -> float:
    """Seconds from the first trial's start to the last one's end.

    Args:
        budget: of each trial.
        costs: what things take.
        trials: of the search.
        slots: of the cluster.
        slots_a_node: of each of its machines.
        efficiency: what a further slot is worth, or how many times as fast so many slots are; None for no growth.
        seed: of the trials' qualities.
        confirming: what follows; None for the search alone.
        across: whether trials grow onto slots of other machines, too, which then have all images.
    """
    return _Course(budget, costs, trials, slots, slots_a_node, efficiency, seed, confirming, across).run()


class _Course:
    def __init__(
        self,
        budget: Budget,
        costs: Costs,
        trials: int,
        slots: int,
        a_node: int,
        efficiency: float | Callable[[int], float] | None,
        seed: int,
        confirming: Confirming | None,
        across: bool,
    ) -> None:
        self.budget, self.costs, self.efficiency, self.a_node = budget, costs, efficiency, a_node
        self.confirming, self.across = confirming, across
        self.rule = AshaRungs(budget, Objective())
        self.quality = np.random.default_rng(seed).random(trials)
        sizes = [min(a_node, slots - first) for first in range(0, slots, a_node)]
        self.nodes = [_Node(size) for size in sizes]
        self.running: list[_Trial] = []
        self.waiting = [*range(trials)]
        self.again: list[int] = []  # trials whose trainings again are left to start, each as often as it has them
        self.completed: list[int] = []
        self.seen = [0] * trials
        self.confirmed: set[int] = set()
        self.now = 0.0
        self.measured: list[dict[int, float]] = []

    def run(self) -> float:
        self._start()
        while self.running:
            ended = self._advance()
            self._report(ended)
            self._confirm()
            self._start()
            if self._grows():
                self._grow()
        return self.now

    def _grows(self) -> bool:
        if self.efficiency is None or self.waiting or self.again:
            return False
        return not self.confirmed or (self.confirming is not None and self.confirming.grows)

    def _confirm(self) -> None:
        """Put the trainings of a confirmation in the queue, as soon as it may begin."""
        asked = self.confirming
        is_over = not self.waiting and all(trial.is_again for trial in self.running)
        if asked is None or self.waiting or not (is_over or asked.after is not None):
            return
        if is_over and not self.confirmed:
            self.measured = []  # another driver, which knows nothing of what growth was worth
        among = self.completed if is_over else range(len(self.quality))
        far = 0 if is_over or asked.after is None else asked.after * self.budget.images
        for number in sorted(among, key=lambda number: -self.quality[number])[: asked.top]:
            if number not in self.confirmed and self.seen[number] >= far:
                self.confirmed.add(number)
                self.again += [number] * asked.parts

    def _start(self) -> None:
        """Trials on free slots, on the emptiest node first."""
        while queue := self.waiting or self.again:
            node = self._emptiest()
            if not self.nodes[node].free:
                return
            self.nodes[node].free -= 1
            is_again = queue is self.again
            trial = _Trial(queue.pop(0), node, is_again, alone_s=self.costs.start_s)
            self.running.append(trial)
            self._next_report(trial)

    def _emptiest(self) -> int:
        return max(range(len(self.nodes)), key=lambda one: (self.nodes[one].free, -one))

    def _next_report(self, trial: _Trial) -> None:
        images, costs, node = self.budget.report_every, self.costs, self.nodes[trial.node]
        trial.compute_s = images * costs.image_s + costs.validation_s
        # Of its epoch it shows what it has not shown, of which others of the node have read some.
        share = images / costs.train
        missing = 0.0
        while share > 1e-12:
            part = min(share, 1 - trial.shown)
            unseen = 1 - trial.shown
            by_others = max(0.0, node.cached - trial.shown) if node.cached < costs.held else costs.held * unseen
            new = part * (1 - min(1.0, by_others / unseen))
            missing += new
            node.cached = min(costs.held, node.cached + new)
            trial.shown = (trial.shown + part) % 1.0 if trial.shown + part < 1 - 1e-9 else 0.0
            share -= part
        validated = (1 - costs.held) if node.validated else 1.0
        node.validated = True
        trial.fetch_bytes = (missing * costs.train + validated * costs.validation) * costs.image_bytes

    def _rates(self) -> float:
        """Bytes a second of each trial that waits for images."""
        reading = sum(trial.fetch_bytes > 0 for trial in self.running)
        return self.costs.storage_bytes_s / max(1, reading)

    def _speed(self, trial: _Trial) -> float:
        if callable(self.efficiency):
            return self.efficiency(trial.slots)
        return 1 + (self.efficiency or 0.0) * (trial.slots - 1)

    def _advance(self) -> list[_Trial]:
        """To the next moment at which something changes; trials whose report is there."""
        bytes_s = self._rates()
        step = min(
            min((trial.fetch_bytes / bytes_s for trial in self.running if trial.fetch_bytes > 0), default=math.inf),
            min(
                (trial.alone_s + trial.compute_s / self._speed(trial) for trial in self.running if _busy(trial)),
                default=math.inf,
            ),
        )
        self.now += step
        for trial in self.running:
            trial.fetch_bytes = _rest(trial.fetch_bytes - step * bytes_s, 1.0)
            alone = min(step, trial.alone_s)
            trial.alone_s = _rest(trial.alone_s - alone, 1e-9)
            trial.compute_s = _rest(trial.compute_s - (step - alone) * self._speed(trial), 1e-9)
        return [trial for trial in self.running if not _busy(trial) and not trial.fetch_bytes]

    def _report(self, ended: list[_Trial]) -> None:
        for trial in ended:
            trial.images += self.budget.report_every
            each = self.costs.image_s + self.costs.validation_s / self.budget.report_every
            trial.seconds[trial.slots] = each / self._speed(trial)
            if not trial.is_again:
                self.seen[trial.number] = trial.images
            if self._is_over(trial):
                self.running.remove(trial)
                self.measured.append(trial.seconds)
                self._give_back(trial, 1)
                self.nodes[trial.node].free += 1
                continue
            if trial.next_slots != trial.slots:
                trial.alone_s = self.costs.switch_s
                self._give_back(trial, trial.next_slots)
                trial.slots = trial.next_slots
            self._next_report(trial)

    def _is_over(self, trial: _Trial) -> bool:
        if trial.images >= self.budget.images:
            self.completed += [] if trial.is_again else [trial.number]
            return True
        quality = float(self.quality[trial.number])
        return not trial.is_again and self.rule.offer(trial.number, trial.images, quality) is not None

    def _give_back(self, trial: _Trial, slots: int) -> None:
        """What a trial has beyond so many slots."""
        while len(trial.others) > slots - 1:
            self.nodes[trial.others.pop()].free += 1

    def _take(self, trial: _Trial, slots: int) -> None:
        """Slots for its next report, of its own machine first."""
        while len(trial.others) < slots - 1:
            node = trial.node if self.nodes[trial.node].free else self._emptiest()
            self.nodes[node].free -= 1
            trial.others.append(node)

    def _grow(self) -> None:
        if not all(trial.seconds for trial in self.running):
            return
        ready = [
            RunningTrial(
                index, self._place(trial.node), self.budget.images - trial.images, trial.seconds, trial.slots, 8
            )
            for index, trial in enumerate(self.running)
            if trial.slots == trial.next_slots
            and trial.slots in trial.seconds
            and trial.images > self.budget.report_every  # the first report tells no speed
        ]
        free: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            free[self._place(index)] = free.get(self._place(index), 0) + node.free
        measured = [*self.measured, *(trial.seconds for trial in self.running)]
        changes = growing(ready, free, efficiency=efficiency_of(measured), switch_s=self.costs.switch_s)
        for index, slots in changes.items():
            self.running[index].next_slots = slots
            self._take(self.running[index], slots)

    def _place(self, node: int) -> str:
        """Where slots count as of one machine."""
        return "all" if self.across else str(node)


def _busy(trial: _Trial) -> bool:
    return trial.alone_s > 0 or trial.compute_s > 0


def _rest(left: float, nothing: float) -> float:
    return left if left > nothing else 0.0
