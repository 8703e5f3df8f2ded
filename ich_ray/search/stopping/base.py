"""The interface of a stopping rule: what the driver asks after a report, the plan beforehand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Self

    from ich_ray.search.space.space import Budget
    from ich_ray.trial_records import Objective, TrialResult

__all__ = ["Course", "StoppingRule"]


@dataclass(frozen=True)
class Course:
    """How trials are expected to fare.

    Attributes:
        rungs: images_seen at which trials are compared; None where the rule does not say.
        reaching: trials expected to start, then to pass each rung.
        images: training images expected of all trials together.
    """

    rungs: tuple[int, ...] | None
    reaching: tuple[int, ...]
    images: int


class StoppingRule(ABC):
    """Decides after each report whether a trial is worth going on with.

    Its state follows from the reports alone, in whatever order the trials come: a search that goes on has nothing else.
    `budget.first_rung`, `reduction`, `min_peers` and `hedge` mean what the rule makes of them. Whatever the rule, the
    sampler compares the trials that it stopped at `budget.rungs()`. Where trials are judged by folds it is asked within
    the first one; who goes on with more of them is decided in fold_race.py.

    Attributes:
        budget: of the search space.
        objective: of the search space.
        reached: the value of each trial by its number, at each rung; empty for a rule without rungs.
    """

    reached: Mapping[int, Mapping[int, float]]

    def __init__(self, budget: Budget, objective: Objective) -> None:
        self.budget, self.objective = budget, objective
        self.reached = {}

    @abstractmethod
    def offer(self, number: int, images_seen: int, value: float | None) -> str | None:
        """Take note of a report of a trial; the reason that stops it, such as `rung_100000`, or None.

        Reports may come again, of a trial that was put back to an older checkpoint.
        """

    @classmethod
    def rebuilt(cls, budget: Budget, objective: Objective, trials: Iterable[TrialResult]) -> Self:
        """The rule as the reports in a ledger left it."""
        rule = cls(budget, objective)
        for trial in trials:
            for report in (one for one in trial.reports if one.images_seen <= budget.images):
                rule.offer(trial.number, report.images_seen, report.metrics.get(objective.metric))
        return rule

    @classmethod
    def expected(cls, budget: Budget, trials: int) -> Course | None:  # noqa: ARG003  (rules that can tell)
        """How `trials` trials are expected to fare; None where that is not known before they run."""
        return None
