"""Tune's reports, written into the ledger and said to people.

The only place where a running trial meets the ledger: a Tune callback in the driver, called after the scheduler has
decided, so that a last report and the final state are one write. Decides nothing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ray.tune import Callback

from ich_ray.progress import say
from ich_ray.results import CheckpointReference, Setup

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ray.tune.experiment import Trial

    from ich_ray.results import TrialResult
    from ich_ray.search.halving import Halving
    from ich_ray.search.ledger import Ledger
    from ich_ray.search.sampler import LedgerSampler

__all__ = ["Bookkeeper"]

_STATUS_EVERY_S = 5.0


class Bookkeeper(Callback):
    """Writes what happens to each trial."""

    def __init__(self, ledger: Ledger, halving: Halving, sampler: LedgerSampler, wanted: int, gpus: float) -> None:
        self._ledger, self._halving, self._sampler = ledger, halving, sampler
        self._wanted, self._gpus = wanted, gpus
        self._marks: dict[int, float] = {}
        self._running: set[int] = set()
        self._last_status = self._started = time.monotonic()
        self._images_before = self._images()
        self._ended = 0
        self._best: TrialResult | None = None
        for trial in ledger.trials.values():
            self._count(trial)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        number = trial.config["number"]
        if trial.config["again"] or number in self._marks:
            self._ledger.start(number)
        self._marks[number] = time.time()
        self._running.add(number)

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Trial],  # noqa: ARG002
        trial: Trial,
        result: dict[str, Any],
        **info: Any,  # noqa: ARG002
    ) -> None:
        number = trial.config["number"]
        changes: dict[str, Any] = {
            "cost_gpu_s": self._cost(number),
            "where": f"{result.get('hostname', '')}:{result.get('pid', '')}",
        }
        if result.get("note"):
            changes["detail"] = result["note"]
        if result.get("setup"):
            changes["setup"] = Setup.model_validate(result["setup"])
        verdict = self._halving.verdicts.get(number)
        if "failure" in result:
            self._ledger.finish(number, self._halving.verdicts[number], **changes)
        else:
            reference = result.get("checkpoint")
            self._ledger.report(
                number,
                result["images_seen"],
                result["metrics"],
                result["elapsed_s"],
                checkpoint=CheckpointReference.model_validate(reference) if reference else None,
                end=verdict,
                **changes,
            )
        if verdict:
            self._say_ended(number)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        self._running.discard(trial.config["number"])
        say(f"trial {trial.config['number']}: its process died, starting it again from its newest checkpoint")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        self._say_ended(trial.config["number"])

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:  # noqa: ARG002
        now = time.monotonic()
        if now - self._last_status < _STATUS_EVERY_S:
            return
        self._last_status = now
        self._fail_lost(trials)
        waiting = len(self._ledger.trials) - self._ended - len(self._running)
        images = self._images() - self._images_before
        rate = images / (now - self._started)
        counts = f"{self._ended}/{self._wanted} trials ended, {len(self._running)} running"
        if waiting:
            counts += f", {waiting} waiting for a free slot"
        say(f"  {counts}, {images:,} images ({rate:,.0f}/s); {self._said_best()}")

    def _fail_lost(self, trials: Iterable[Trial]) -> None:
        """Tune drops a trial without a word when a reused worker cannot be reset: it would hold its slot for ever."""
        for trial in trials:
            number = trial.config["number"]
            if trial.status == "ERROR" and self._ledger.trials[number].state == "running":
                self._sampler.on_trial_complete(trial.trial_id, error=True)
                self._say_ended(number)

    def _images(self) -> int:
        return sum(trial.images_seen for trial in self._ledger.trials.values())

    def _cost(self, number: int) -> float:
        """Accelerator seconds so far, counting what attempts spent that were lost."""
        now = time.time()
        spent = (now - self._marks.get(number, now)) * self._gpus
        self._marks[number] = now
        return self._ledger.trials[number].cost_gpu_s + spent

    def _count(self, trial: TrialResult) -> None:
        self._ended += trial.state != "running"
        if trial.state != "completed" or trial.value is None:
            return
        if self._best is None or trial.objective.better(trial.value, self._best.value or 0.0):
            self._best = trial

    def _say_ended(self, number: int) -> None:
        trial = self._ledger.trials[number]
        self._count(trial)
        self._running.discard(number)
        metric = trial.objective.metric
        value = f"{metric} {trial.value:.4f}" if trial.value is not None else f"no {metric}"
        why = f" ({trial.reason})" if trial.reason else " (at chance)" if trial.at_chance else ""
        seen = f"after {trial.images_seen:,} images"
        say(f"trial {number} {trial.state}{why}: {value} {seen}; {self._said_best()}")

    def _said_best(self) -> str:
        return f"best {self._best.value:.4f} (trial {self._best.number})" if self._best else "none completed yet"

    def summary(self) -> str:
        """One line on a search that has ended."""
        trials = self._ledger.trials.values()
        states = ", ".join(
            f"{sum(trial.state == state for trial in trials)} {state}" for state in ("completed", "pruned", "failed")
        )
        return (
            f"search {self._ledger.record.name}: {self._ended} trials ended ({states}), {self._images():,} images; "
            f"{self._said_best()}"
        )
