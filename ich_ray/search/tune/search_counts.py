"""Counts of a running search: how its trials ended, the best of them, its rungs, the time left.

Told of ends and reports by the ledger callback; reads the ledger and writes nothing. How the counts look is in
progress_table.py.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import TYPE_CHECKING

from ich_ray.search.plan.expected import expected_images, images_to_come
from ich_ray.search.progress_table import RungCount, SearchStatus

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ich_ray.search.ledger import Ledger
    from ich_ray.search.space.space import SearchSpace
    from ich_ray.search.tune.scheduler import StoppingScheduler
    from ich_ray.trial_records import TrialResult

__all__ = ["SearchCounts"]


class SearchCounts:
    """Counts the trials of a ledger, from those that it has already.

    Args:
        scheduler: knows who has reached which rung.
        wanted: trials in all, of which the plan expects something.
        deadline: of the search, UNIX time in seconds; may be infinite.

    Attributes:
        ended: trials by final state.
        images: that all trials have seen.
        best: the best completed trial, None before one has completed.
    """

    def __init__(
        self, space: SearchSpace, ledger: Ledger, scheduler: StoppingScheduler, wanted: int, deadline: float
    ) -> None:
        self._space, self._ledger, self._scheduler, self._deadline = space, ledger, scheduler, deadline
        self._expected = expected_images(space, wanted) / wanted
        self._images_before = self.images = sum(trial.images_seen for trial in ledger.trials.values())
        self.ended: Counter[str] = Counter()
        self._ended_images = 0
        self._stopped: Counter[str] = Counter()
        self.best: TrialResult | None = None
        self._leading: tuple[int, float] | None = None  # the trial with the best report, and its value
        for trial in ledger.trials.values():
            self.count(trial)
            self.compare(trial.number, trial.value)
        self._ended_before = self.ended.total()

    def count(self, trial: TrialResult) -> None:
        """Count a trial that has ended; one that runs is not."""
        if trial.state != "running":
            self.ended[trial.state] += 1
            self._ended_images += trial.images_seen
            self._stopped[trial.reason] += 1
        best = self.best.value if self.best else None
        if trial.state == "completed" and trial.objective.improves(trial.value, best):
            self.best = trial
        if trial.state == "failed" and self._leading and self._leading[0] == trial.number:
            self._leading = None
            for other in self._ledger.trials.values():
                self.compare(other.number, other.value)

    def compare(self, number: int, value: float | None) -> None:
        """Whether a report is the best so far."""
        leading = self._leading[1] if self._leading else None
        if self._ledger.trials[number].state != "failed" and self._space.objective.improves(value, leading):
            self._leading = number, value

    def leads(self) -> TrialResult | None:
        """The trial with the best report so far, where it is better than the best that has completed."""
        if self._leading is None or self._space.objective.networks > 1:
            return None
        trial, best = self._ledger.trials[self._leading[0]], self.best.value if self.best else None
        return trial if self._space.objective.improves(trial.value, best) else None

    def status(
        self,
        running: Sequence[TrialResult],
        wanted: int,
        elapsed_s: float,
        *,
        gpu_hours: float | None,
        gpus: float,
        rested_s: float = 0.0,
    ) -> SearchStatus:
        """Where the search stands after so long, with trials that run and what they hold and have cost.

        What it rested, as in a pause, is no part of the pace.
        """
        images, worked_s = self.images - self._images_before, elapsed_s - rested_s
        rate = images / worked_s if worked_s > 0 else 0.0
        return SearchStatus(
            name=self._space.name,
            metric=self._space.objective.metric,
            wanted=wanted,
            budget=self._space.budget.images,
            networks=self._space.objective.networks,
            ended=dict(self.ended),
            waiting=len(self._ledger.trials) - self.ended.total() - len(running),
            running=running,
            best=self.best,
            rungs=[*self._rungs()],
            images=images,
            images_per_s=rate,
            elapsed_s=elapsed_s,
            left_s=self._left_s([trial.images_seen for trial in running], wanted, rate),
            searched=[spec.name for spec in self._space.parameters if spec.kind != "fixed"],
            leading=self.leads(),
            ended_before=self._ended_before,
            gpu_hours=gpu_hours,
            gpus=gpus,
            rested_s=rested_s,
        )

    def _rungs(self) -> Iterator[RungCount]:
        for level, values in self._scheduler.rule.reached.items():
            yield RungCount(level, len(values), self._stopped[f"rung_{level}"])
        reached = self._scheduler.race.reached if self._scheduler.race else {}
        for folds, (level, values) in enumerate(reached.items(), start=1):
            yield RungCount(level, len(values), self._stopped[f"folds_{folds}"])

    def _left_s(self, running: Sequence[int], wanted: int, rate: float) -> float | None:
        """Seconds until the last trial has ended, with so many images of each that runs and at this `rate` a second."""
        until = self._deadline - time.time()
        if not rate:
            return until if math.isfinite(until) else None
        left = images_to_come(
            wanted,
            self._expected,
            ended=self.ended.total(),
            ended_images=self._ended_images,
            begun_images=self.images - self._ended_images,
            running=running,
            budget=self._space.budget.images,
            networks=self._space.objective.networks,
        )
        return max(0.0, min(until, left / rate))
