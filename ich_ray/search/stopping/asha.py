"""Asynchronous successive halving on images_seen: which trials are worth going on with.

Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020; the variant that stops trials
instead of pausing them for a later promotion. Unlike the usual one it judges a trial again at each report, not only on
arrival: the first ones at a rung meet nobody there, and would otherwise train to their end however bad they are.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from typing import TYPE_CHECKING

from ich_ray.search.stopping.base import Course, StoppingRule

if TYPE_CHECKING:
    from ich_ray.search.space.space import Budget
    from ich_ray.trial_records import Objective

__all__ = ["AshaRungs"]


class AshaRungs(StoppingRule):
    """The best value of every trial at every rung that it has reached.

    A trial is stopped if at least `min_peers` others have been at the newest rung that it reached and it is not among
    the best floor(n / reduction), at least one, of the n trials including itself. It is asked when it arrives and at
    every report until its next rung, always with the values that trials had at the rung, so that equal numbers of
    images are compared. A value there is the best so far, because trials are judged by their best report in the end.
    Reports that come again, of a trial that was put back to an older checkpoint, decide nothing: they were judged.

    `budget.hedge` of the trials, evenly by number, are not stopped at the first rung, though others are compared with
    them there: what learns nothing in its first images is stopped there whatever it is worth, and TPE then looks for
    what learns fast.
    """

    def __init__(self, budget: Budget, objective: Objective) -> None:
        super().__init__(budget, objective)
        self._best: dict[int, float] = {}
        self._told: dict[int, int] = {}
        self.reached: dict[int, dict[int, float]] = {level: {} for level in budget.rungs()}
        self._ranked: dict[int, list[float]] = {level: [] for level in self.reached}

    def offer(self, number: int, images_seen: int, value: float | None) -> str | None:
        """Take note of a report; `rung_N` of the rung that stops the trial, or None.

        A value that is missing or not finite is kept out: it neither stops nor spares anyone.
        """
        if value is None or not math.isfinite(value) or images_seen <= self._told.get(number, -1):
            return None
        self._told[number] = images_seen
        self._best[number] = max(self._best.get(number, -math.inf), self.objective.sign * value)
        passed = [level for level in self.reached if images_seen >= level]
        new = [level for level in passed if number not in self.reached[level]]
        for level in new:
            self.reached[level][number] = self._best[number]
            insort(self._ranked[level], self._best[number])
        judged = new or passed[-1:]
        return next((f"rung_{level}" for level in reversed(judged) if not self._stays(number, level)), None)

    def _stays(self, number: int, level: int) -> bool:
        if level == self.budget.first_rung and self.budget.hedged(number):
            return True
        values = self._ranked[level]  # sorted, so that a rebuilt search of 10,000 trials is judged in no time
        if len(values) - 1 < self.budget.min_peers:
            return True
        rank = 1 + len(values) - bisect_right(values, self.reached[level][number])
        return rank <= max(1, len(values) // self.budget.reduction)

    @classmethod
    def expected(cls, budget: Budget, trials: int) -> Course:
        """1/reduction of `trials` trials pass each rung once it has its peers, and those that it spares."""
        rungs = budget.rungs()
        reaching = [trials]
        for level in rungs:
            hedged = math.floor(trials * budget.hedge) if level == budget.first_rung else 0  # as `hedged` counts them
            spared = min(reaching[-1], budget.min_peers)
            reaching.append(max(spared, hedged + math.ceil((reaching[-1] - hedged) / budget.reduction)))
        segments = [after - before for before, after in zip((0, *rungs), (*rungs, budget.images), strict=True)]
        images = sum(count * images for count, images in zip(reaching, segments, strict=True))
        return Course(tuple(rungs), tuple(reaching), images)
