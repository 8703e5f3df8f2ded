"""Asynchronous successive halving on images_seen: which trials are worth going on with.

`AshaRungs` is the rule, free of Ray, and is rebuilt from the ledger (Ray's own scheduler loses its rungs in a restart).
`AshaScheduler` puts it behind Tune's scheduler interface and decides every end of a trial, so that the ledger can write
the last report and the final state in one moment. It writes nothing itself.

Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020; the variant that stops trials
instead of pausing them for a later promotion. Unlike the usual one it judges a trial again at each report, not only on
arrival: the first ones at a rung meet nobody there, and would otherwise train to their end however bad they are.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import TrialScheduler

from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.search.ledger import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ray.tune.experiment import Trial

    from ich_ray.results import Objective, TrialResult
    from ich_ray.search.space.space import Budget

__all__ = ["AshaRungs", "AshaScheduler"]


class AshaRungs:
    """The best value of every trial at every rung that it has reached.

    A trial is stopped if at least `min_peers` others have been at the newest rung that it reached and it is not among
    the best floor(n / reduction), at least one, of the n trials including itself. It is asked when it arrives and at
    every report until its next rung, always with the values that trials had at the rung, so that equal numbers of
    images are compared. A value there is the best so far, because trials are judged by their best report in the end.
    Reports that come again, of a trial that was put back to an older checkpoint, decide nothing: they were judged.
    """

    def __init__(self, budget: Budget, objective: Objective) -> None:
        self._budget = budget
        self._sign = 1.0 if objective.mode == "max" else -1.0
        self._best: dict[int, float] = {}
        self._told: dict[int, int] = {}
        self.reached: dict[int, dict[int, float]] = {level: {} for level in budget.rungs()}
        self._ranked: dict[int, list[float]] = {level: [] for level in self.reached}

    @classmethod
    def rebuilt(cls, budget: Budget, objective: Objective, trials: Iterable[TrialResult]) -> AshaRungs:
        """The rungs as the reports in a ledger left them."""
        rungs = cls(budget, objective)
        for trial in trials:
            for report in trial.reports:
                rungs.offer(trial.number, report.images_seen, report.metrics.get(objective.metric))
        return rungs

    def offer(self, number: int, images_seen: int, value: float | None) -> int | None:
        """Take note of a report; the rung that stops the trial, or None.

        A value that is missing or not finite is kept out: it neither stops nor spares anyone.
        """
        if value is None or not math.isfinite(value) or images_seen <= self._told.get(number, -1):
            return None
        self._told[number] = images_seen
        self._best[number] = max(self._best.get(number, -math.inf), self._sign * value)
        passed = [level for level in self.reached if images_seen >= level]
        new = [level for level in passed if number not in self.reached[level]]
        for level in new:
            self.reached[level][number] = self._best[number]
            insort(self._ranked[level], self._best[number])
        judged = new or passed[-1:]
        return next((level for level in reversed(judged) if not self._stays(number, level)), None)

    def _stays(self, number: int, level: int) -> bool:
        values = self._ranked[level]  # sorted, so that a rebuilt search of 10,000 trials is judged in no time
        if len(values) - 1 < self._budget.min_peers:
            return True
        rank = 1 + len(values) - bisect_right(values, self.reached[level][number])
        return rank <= max(1, len(values) // self._budget.reduction)


class AshaScheduler(TrialScheduler):
    """Tune's scheduler: ends trials by rung, by budget, by time, or because they failed.

    Attributes:
        rungs: what the trials reached.
        verdicts: by trial number, those that have ended.
    """

    def __init__(
        self, budget: Budget, objective: Objective, rungs: AshaRungs, limit: Callable[[], Verdict | None]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._budget = budget
        self._key = f"metrics/{objective.metric}"
        self._name = objective.metric
        self.rungs = rungs
        self._limit = limit
        self.verdicts: dict[int, Verdict] = {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:  # noqa: ARG002
        if "unwritable" in result:  # Tune ends the search with it, and the trial stays unfinished
            raise OSError(result["unwritable"])
        number = trial.config["number"]
        images = Hyperparameters.model_validate(trial.config.get("parameters", {})).images_within(self._budget.images)
        verdict = self.verdicts.get(number) or self._judge(number, result, images)
        if verdict is None:
            return TrialScheduler.CONTINUE
        self.verdicts[number] = verdict
        return TrialScheduler.STOP

    def _judge(self, number: int, result: Mapping[str, Any], images: int) -> Verdict | None:
        if "failure" in result:
            return Verdict("failed", result["failure"], result.get("detail", ""))
        value, images_seen = result.get(self._key), result["images_seen"]
        if value is None or not math.isfinite(value):
            return Verdict("failed", "diverged", f"{self._name} is not finite at {images_seen} images")
        rung = self.rungs.offer(number, images_seen, value)
        if images_seen >= images:
            return Verdict("completed")
        if rung is not None:
            return Verdict("pruned", f"rung_{rung}")
        return self._limit()

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None: ...

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None: ...

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None: ...

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None: ...

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Nobody is paused here, and pending trials start in order by themselves."""

    def debug_string(self) -> str:
        return "asynchronous successive halving"
