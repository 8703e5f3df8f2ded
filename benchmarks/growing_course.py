"""The course of a search on a clock that is not real: trials, the stopping rule, images on their way, and growth.

Trials end as the stopping rule of the space says (the very code of a search), of qualities drawn at random; free slots
go to running trials as `plan.growth` decides. A node reads an image from the shared storage once, when one of its
trials first shows it, and computes meanwhile; all nodes that read share what the storage gives. sizing.py prints it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.search.plan.growth import RunningTrial, efficiency_of, growing
from ich_ray.search.stopping.asha import AshaRungs
from ich_ray.search_records import Objective

if TYPE_CHECKING:
    from ich_ray.search.space.space import Budget

__all__ = ["Costs", "course_s"]


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
    images: int = 0
    compute_s: float = 0.0  # of one slot
    alone_s: float = 0.0  # whatever the slots
    fetch_bytes: float = 0.0
    slots: int = 1
    next_slots: int = 1
    seconds: dict[int, float] = field(default_factory=dict)
    shown: float = 0.0  # of its epoch, share


def course_s(
    budget: Budget, costs: Costs, *, trials: int, slots: int, slots_a_node: int, efficiency: float | None, seed: int
) -> float:
    """Seconds from the first trial's start to the last one's end; without an efficiency no trial grows."""
    return _Course(budget, costs, trials, slots, slots_a_node, efficiency, seed).run()


class _Course:
    def __init__(
        self, budget: Budget, costs: Costs, trials: int, slots: int, a_node: int, efficiency: float | None, seed: int
    ) -> None:
        self.budget, self.costs, self.efficiency, self.a_node = budget, costs, efficiency, a_node
        self.rule = AshaRungs(budget, Objective())
        self.quality = np.random.default_rng(seed).random(trials)
        sizes = [min(a_node, slots - first) for first in range(0, slots, a_node)]
        self.nodes = [_Node(size) for size in sizes]
        self.running: list[_Trial] = []
        self.started, self.now = 0, 0.0
        self.measured: list[dict[int, float]] = []

    def run(self) -> float:
        self._start()
        while self.running:
            ended = self._advance()
            self._report(ended)
            self._start()
            if self.efficiency is not None and self.started == len(self.quality):
                self._grow()
        return self.now

    def _start(self) -> None:
        """Trials on free slots, on the emptiest node first."""
        while self.started < len(self.quality):
            node = max(range(len(self.nodes)), key=lambda one: (self.nodes[one].free, -one))
            if not self.nodes[node].free:
                return
            self.nodes[node].free -= 1
            trial = _Trial(self.started, node, alone_s=self.costs.start_s)
            self.started += 1
            self.running.append(trial)
            self._next_report(trial)

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
            over = self.rule.offer(trial.number, trial.images, float(self.quality[trial.number]))
            if over is not None or trial.images >= self.budget.images:
                self.running.remove(trial)
                self.measured.append(trial.seconds)
                self.nodes[trial.node].free += max(trial.slots, trial.next_slots)
                continue
            if trial.next_slots != trial.slots:
                trial.alone_s = self.costs.switch_s
                self.nodes[trial.node].free += max(0, trial.slots - trial.next_slots)
                trial.slots = trial.next_slots
            self._next_report(trial)

    def _grow(self) -> None:
        if not all(trial.seconds for trial in self.running):
            return
        ready = [
            RunningTrial(
                trial.number, str(trial.node), self.budget.images - trial.images, trial.seconds, trial.slots, 8
            )
            for trial in self.running
            if trial.slots == trial.next_slots
            and trial.slots in trial.seconds
            and trial.images > self.budget.report_every  # the first report tells no speed
        ]
        free = {str(index): node.free for index, node in enumerate(self.nodes)}
        measured = [*self.measured, *(trial.seconds for trial in self.running)]
        changes = growing(ready, free, efficiency=efficiency_of(measured), switch_s=self.costs.switch_s)
        for trial in self.running:
            if trial.number in changes:
                trial.next_slots = changes[trial.number]
                self.nodes[trial.node].free -= max(0, trial.next_slots - trial.slots)


def _busy(trial: _Trial) -> bool:
    return trial.alone_s > 0 or trial.compute_s > 0


def _rest(left: float, nothing: float) -> float:
    return left if left > nothing else 0.0
