"""Race of trials over folds: a paired test on the same patients says who may still be the best.

A stopping rule (base.py) decides within the first fold, whose reports compare all trials on the same few patients. From
then on a trial is compared at the end of each fold with the best of the others that has done as many, and again when a
better one has come as far, because the first trials meet nobody there: patients are drawn again with
replacement, and if in fewer than `LEVEL` of the draws it is at least as good as the best of the others, it ends. Both
are compared on the same patients, so that what is hard for both does not count, at the images at which each is best.
A race of candidates by paired tests, on blocks that all of them see in the same order, is that of Birattari et al., A
Racing Algorithm for Configuring Metaheuristics, GECCO 2002.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ich_ray.search.space.space import Budget
    from ich_ray.trial_records import FoldNote, LogitsReference, Objective, TrialResult

__all__ = ["FoldRace"]

LEVEL = 0.05

# how probable it is that the first is at least as good as the second, on the folds they name in order; None if unknown
Chance: TypeAlias = "Callable[[Sequence[LogitsReference], Sequence[LogitsReference]], float | None]"


class FoldRace:
    """What every trial gave at every report of every fold, and whom that stops.

    Its state follows from the reports alone, in whatever order the trials come.

    Attributes:
        reached: by images at the end of one fold, of two, ..., the best value of each trial that has come there.
    """

    def __init__(self, budget: Budget, objective: Objective, chance: Chance) -> None:
        self._budget, self._objective, self._chance = budget, objective, chance
        self.reached: dict[int, dict[int, float]] = {
            budget.images * folds: {} for folds in range(1, objective.networks)
        }
        self._best: dict[tuple[int, int], tuple[float, int]] = {}  # by trial and fold: value, images of that network
        self._logits: dict[int, dict[tuple[int, int], LogitsReference]] = {}  # by trial: fold and images
        self._failed: set[int] = set()
        self._compared: dict[int, tuple[int, int]] = {}  # by trial: with which leader last, and the fold

    def offer(self, number: int, images_seen: int, value: float | None, note: FoldNote) -> str | None:
        """Take note of a report; `folds_N` after N folds that stop the trial, or None.

        `value` is of all folds so far. Reports may come again, of a trial that was put back to an older checkpoint.
        One that a record names of another fold than its images are of tells nothing.
        """
        if not self._noted(number, images_seen, value, note) or (note.whole and images_seen not in self.reached):
            return None
        return self._judged(number, note.number if note.whole else note.number - 1)

    def _noted(self, number: int, images_seen: int, value: float | None, note: FoldNote) -> bool:
        place = note.number * self._budget.images + note.images_seen
        if note.number >= self._objective.networks or images_seen != place:
            return False
        self._logits.setdefault(number, {})[note.number, note.images_seen] = note.logits
        key = (number, note.number)
        best = self._best.get(key)
        if self._objective.improves(value, best[0] if best else None):
            self._best[key] = (value, note.images_seen)
        if note.whole and images_seen in self.reached and key in self._best:
            self.reached[images_seen][number] = self._best[key][0]
        return True

    def failed(self, number: int) -> None:
        """A trial that failed is no match for others, whatever it had reached."""
        self._failed.add(number)

    def _judged(self, number: int, last: int) -> str | None:
        """The newest fold that another trial has done as well decides."""
        for fold in range(last, -1, -1):
            there = self.reached.get(self._budget.images * (fold + 1), {})
            others = {other: value for other, value in there.items() if other not in {number} | self._failed}
            if others and number in there:
                best = self._objective.best(others.values())
                leader = min(other for other, value in others.items() if value == best)
                leads = self._objective.better(there[number], best)
                if leads or self._compared.get(number) == (leader, fold):
                    return None
                self._compared[number] = leader, fold
                ours, theirs = self._said(number, fold), self._said(leader, fold)
                chance = self._chance(ours, theirs) if ours and theirs else None
                return f"folds_{last + 1}" if chance is not None and chance < LEVEL else None
        return None

    def _said(self, number: int, last: int) -> list[LogitsReference]:
        """The logits of a trial's networks up to a fold, at the images at which they are best together.

        Empty where a record lacks the report of one.
        """
        _, images = self._best[number, last]
        said = [self._logits[number].get((fold, images)) for fold in range(last + 1)]
        found = [reference for reference in said if reference is not None]
        return found if len(found) == len(said) else []

    @classmethod
    def rebuilt(cls, budget: Budget, objective: Objective, chance: Chance, trials: Iterable[TrialResult]) -> FoldRace:
        """The race as the reports in a ledger left it; nobody is judged again."""
        race = cls(budget, objective, chance)
        for trial in trials:
            for report in trial.reports:
                if report.fold:
                    value = report.metrics.get(objective.metric)
                    race._noted(trial.number, report.images_seen, value, report.fold)
            if trial.state == "failed":
                race.failed(trial.number)
        return race
