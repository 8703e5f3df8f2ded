"""A stopping rule behind Tune's scheduler interface.

It decides every end of a trial, so that the ledger can write the last report and the final state in one moment. It
writes nothing itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import TrialScheduler

from ich_ray.ray_internals import ask_anew
from ich_ray.search.ledger import Verdict
from ich_ray.search.space.parameter_sets import NETWORKS
from ich_ray.trial_records import OUT_OF_MEMORY, FoldNote, LogitsReference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ray.tune.experiment import Trial

    from ich_ray.search.space.parameter_sets import ParameterSet
    from ich_ray.search.space.space import Budget
    from ich_ray.search.stopping import StoppingRule
    from ich_ray.search.stopping.fold_race import FoldRace
    from ich_ray.search.tune.quarantine import Quarantine
    from ich_ray.search.tune.trial_shares import TrialShares
    from ich_ray.trial_records import Objective

__all__ = ["StoppingScheduler", "in_queue"]


class StoppingScheduler(TrialScheduler):
    """Tune's scheduler: ends trials by a stopping rule, by budget, by time, or because they failed.

    Attributes:
        rule: what the trials reached, and whom that stops; with folds, within the first one.
        race: the same from the end of the first fold on; None without folds.
        verdicts: by trial number, those that have ended.
        stopping: by trial number, how those end at their next report that somebody has stopped.
    """

    def __init__(
        self,
        budget: Budget,
        objective: Objective,
        rule: StoppingRule,
        limit: Callable[[], Verdict | None],
        race: FoldRace | None = None,
        drawn: ParameterSet = NETWORKS,
        quarantine: Quarantine | None = None,
        shares: TrialShares | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._budget, self._networks, self._drawn = budget, objective.networks, drawn
        self._key = f"metrics/{objective.metric}"
        self._name = objective.metric
        self.rule, self.race = rule, race
        self._limit, self._quarantine, self._shares = limit, quarantine, shares
        self.verdicts: dict[int, Verdict] = {}
        self.stopping: dict[int, Verdict] = {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:  # noqa: ARG002
        number = trial.config["number"]
        if "lost" in result:
            return self._lost(number, result)
        if self._quarantine and "failure" not in result:
            self._quarantine.reported(result.get("node", ""), result.get("devices", ()), result.get("admitted", 0.0))
        images = self._drawn.images_of(trial.config.get("parameters", {}), self._budget.images)
        verdict = self.verdicts.get(number) or self._judge(number, result, images * self._networks)
        if verdict is None:
            return TrialScheduler.CONTINUE
        if self.race and verdict.state == "failed":
            self.race.failed(number)
        self.verdicts[number] = verdict
        return TrialScheduler.STOP

    def _lost(self, number: int, result: Mapping[str, Any]) -> str:
        """An attempt that its machine or its share has ended: the trial goes back to the queue while there is time."""
        if self._shares and result["lost"] == OUT_OF_MEMORY:
            verdict = self._shares.ran_out(number, result)
        else:
            verdict = self._quarantine.lost(number, result) if self._quarantine else None
        verdict = verdict or self.stopping.get(number) or self._limit()
        if not verdict:
            return TrialScheduler.CONTINUE
        if verdict.state == "failed":
            self.failed(number)
        self.verdicts[number] = verdict
        return TrialScheduler.STOP

    def _judge(self, number: int, result: Mapping[str, Any], images: int) -> Verdict | None:
        if "failure" in result:
            return Verdict("failed", result["failure"], result.get("detail", ""))
        value, images_seen = result.get(self._key), result["images_seen"]
        if value is None or not math.isfinite(value):
            return Verdict("failed", "diverged", f"{self._name} is not finite at {images_seen} images")
        reason = self._stopped(number, images_seen, value, _fold(result))
        if images_seen >= images:
            return Verdict("completed")
        if reason is not None:
            return Verdict("pruned", reason)
        return self.stopping.get(number) or self._limit()

    def _stopped(self, number: int, images_seen: int, value: float, fold: FoldNote | None) -> str | None:
        """Why a trial ends early, if it does: by the rule in its first fold, by the race at the end of each."""
        reason = self.rule.offer(number, images_seen, value) if images_seen <= self._budget.images else None
        raced = self.race.offer(number, images_seen, value, fold) if self.race and fold else None
        return reason or raced

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:  # noqa: ARG002
        if self._shares:
            self._shares.place(trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:  # noqa: ARG002
        """Tune says so of trials that it starts again as well; `failed` is told of the others."""
        if self._shares and trial.status == "ERROR":  # it goes back to the queue; one that has failed still runs here
            self._shares.place(trial)

    def failed(self, number: int) -> None:
        """A trial that failed without a report: its logits are gone, and nobody is compared with it any more."""
        if self.race:
            self.race.failed(number)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None: ...

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None: ...

    def over(self) -> Verdict | None:
        """How trials end that are stopped now, as the search has had its time; None while it has some."""
        return self._limit()

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Nobody is paused here, and pending trials start by themselves, but those that have ended."""
        if not (self.verdicts or self._shares):
            return
        for trial in [*tune_controller.get_live_trials()]:
            if not in_queue(trial):
                continue
            if trial.config["number"] in self.verdicts:
                tune_controller.stop_trial(trial)
            elif self._shares and (asked := self._shares.look(trial)):
                ask_anew(tune_controller, trial, asked)

    def debug_string(self) -> str:
        return type(self.rule).__name__


def in_queue(trial: Trial) -> bool:
    """Whether a trial waits for its machine, and has no process that is about to take it."""
    return trial.status == "PENDING" and trial.temporary_state.ray_actor is None


def _fold(result: Mapping[str, Any]) -> FoldNote | None:
    """What a report says of its fold; Tune has flattened it."""
    if "fold/number" not in result:
        return None
    logits = LogitsReference(file=result["fold/logits/file"], sha256=result["fold/logits/sha256"])
    plain = {name: result[f"fold/{name}"] for name in ("number", "images_seen", "whole", "value")}
    return FoldNote(**plain, logits=logits)
