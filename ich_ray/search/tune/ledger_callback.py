"""Tune's reports, written into the ledger and said to people.

The only place where a running trial meets the ledger: a Tune callback in the driver, called after the scheduler has
decided, so that a last report and the final state are one write. Decides nothing; counts are in search_counts.py.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from ray.tune import Callback

from ich_ray.machines import is_gone
from ich_ray.progress import say
from ich_ray.ray_internals import forget, process_of
from ich_ray.results import fault_note
from ich_ray.search.cluster_resources import host_of
from ich_ray.search.progress_table import format_best, format_failure, format_states
from ich_ray.search.tune.node_losses import NodeLosses
from ich_ray.search.tune.quarantine import DECLINED
from ich_ray.search.tune.scheduler import in_queue
from ich_ray.search.tune.search_counts import SearchCounts
from ich_ray.search.tune.trial_log import keep_output_of
from ich_ray.trial_records import NODE_LOST, PREEMPTED, CheckpointReference, ExecutionInfo, FoldNote, LogitsReference
from ich_ray.usage import ReportUsage, added, format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ray.tune.experiment import Trial

    from ich_ray.search.ledger import Ledger, Verdict
    from ich_ray.search.progress_table import SearchStatus
    from ich_ray.search.search_messages import SearchMessages
    from ich_ray.search.space.space import SearchSpace
    from ich_ray.search.tune.sampler import LedgerSampler
    from ich_ray.search.tune.scheduler import StoppingScheduler
    from ich_ray.search.tune.trial_shares import TrialShares

__all__ = ["LedgerCallback"]

_LINE_EVERY_S = 5.0
# Drawing 20 lines takes the driver 2 ms.
_TABLE_EVERY_S = 0.5
# Measured around the training, and not by it.
_OF_SAVING = ("saving_s", "bytes_written")


class LedgerCallback(Callback):
    """Writes what happens to each trial.

    Attributes:
        draw: draws the table on a terminal; None where lines are said instead.
        messages: told what people who are not there shall hear of; None where nobody is.
        wanted: trials in all.
    """

    def __init__(
        self,
        space: SearchSpace,
        ledger: Ledger,
        scheduler: StoppingScheduler,
        sampler: LedgerSampler,
        *,
        wanted: int,
        gpus: float,
        deadline: float,
        workers: int = 1,
        shares: TrialShares | None = None,
    ) -> None:
        self._space, self._ledger, self._scheduler, self._sampler = space, ledger, scheduler, sampler
        self.wanted, self._gpus, self._workers = wanted, gpus, workers
        self._shares = shares
        self._slots: Counter[int] = Counter()  # of trials that have grown, beyond their own
        self.draw: Callable[[SearchStatus], None] | None = None
        self.messages: SearchMessages | None = None
        self._marks: dict[int, float] = {}
        self._running: set[int] = set()
        self._told_lost: set[int] = set()
        self._losses = NodeLosses(is_gone)
        self._processes: dict[int, tuple[str, int] | None] = {}
        self._heard: set[str | None] = {None, ""}
        self._declined: set[int] = set()
        self._started: float | None = None
        self._rests_since: float | None = None  # nothing runs, and nothing is to be started
        self._rested_s = 0.0
        self._last_line = self._last_table = time.monotonic()
        self._counts = SearchCounts(space, ledger, scheduler, wanted, deadline)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        number = trial.config["number"]
        if self._ledger.trials[number].state != "running":  # the scheduler stops it
            return
        if number in self._declined:
            self._declined.discard(number)
        elif trial.config["again"] or number in self._marks:
            self._ledger.start(number)
        self._marks[number] = time.time()  # what it cost before was noted when it went back to the queue
        process = process_of(trial)
        self._losses.start(trial, process[0] if process else "")
        self._processes[number] = process
        now = time.monotonic()
        self._started = self._started or now
        self._rested_s, self._rests_since = self._rested(now), None
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
        if self._has_ended(number):
            return
        if "lost" in result:
            self._lost(number, trial, result)
            return
        if self.messages:
            self.messages.reported()
        changes = {"cost_gpu_s": self._cost(number), **_changes(result)}
        if result.get("heard") not in self._heard:
            self._heard.add(result["heard"])
            say(result["heard"])
        verdict, before = self._scheduler.verdicts.get(number), self._ledger.trials[number].images_seen
        if "failure" in result:
            self._ledger.finish(number, self._scheduler.verdicts[number], **changes)
        else:
            self._ledger.report(
                number,
                result["images_seen"],
                result["metrics"],
                result["elapsed_s"],
                fold=FoldNote.model_validate(result["fold"]) if result.get("fold") else None,
                usage=_usage(result),
                end=verdict,
                **changes,
            )
            self._counts.compare(number, result["metrics"].get(self._space.objective.metric))
        self._counts.images += self._ledger.trials[number].images_seen - before
        if verdict:
            self._say_ended(number)

    def _lost(self, number: int, trial: Trial, result: dict[str, Any]) -> None:
        """An attempt that is no fault of the trial's is none of its retries."""
        trial.max_failures += 1
        self._told_lost.add(number)
        if result["lost"] == DECLINED:
            self._declined.add(number)
        if result["lost"] == PREEMPTED and self.messages:
            self.messages.machine_gone(result["node"])
        if verdict := self._scheduler.verdicts.get(number):
            self._ledger.finish(number, verdict, cost_gpu_s=self._cost(number))
            self._say_ended(number)

    def fell_silent(self, trial: Trial, verdict: Verdict | None) -> None:
        """An attempt will be ended from outside: none of the trial's retries, or with a verdict its end."""
        number = trial.config["number"]
        self._told_lost.add(number)
        self._keep_output(number)
        trial.max_failures = 0 if verdict else trial.max_failures + 1
        if verdict:
            self._scheduler.verdicts[number] = verdict  # Tune counts no death on a machine that is drained
            self._ledger.finish(number, verdict, cost_gpu_s=self._cost(number))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        number = trial.config["number"]
        if self._has_ended(number):
            return
        self._running.discard(number)
        if cost := self._cost(number):
            self._ledger.charge(number, cost)
        trial.config["reported"] = self._ledger.trials[number].images_seen  # what the next attempt may rely on
        if number in self._told_lost:
            self._told_lost.discard(number)
            self._losses.forget(trial)
        elif node := self._losses.died(trial):
            self._note_loss(number, node)
            say(f"trial {number}: its machine is gone, it goes back to the queue with its newest checkpoint")
        else:
            self._keep_output(number)
            say(f"trial {number}: its process died, starting it again from its newest checkpoint")

    def _keep_output(self, number: int) -> None:
        """What a process has written that has died, or will be killed, for who asks why."""
        if process := self._processes.pop(number, None):
            keep_output_of(str(self._ledger.files.root), number, *process)

    def _note_loss(self, number: int, node: str, **then: Any) -> None:
        self._ledger.lose(number, NODE_LOST, "its machine is gone", node, host_of(node), **then)
        if self.messages:
            self.messages.machine_gone(node)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        if trial.config["number"] not in self._told_lost:
            self._keep_output(trial.config["number"])
        self._ended_without_report(trial.config["number"])
        forget(trial)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        forget(trial)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:  # noqa: ARG002
        now = time.monotonic()
        if now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            self._fail_lost(trials)
            self._end_queue(trials)
            for death in self._losses.settle():
                if self._ledger.trials[death.number].state == "running":
                    self._note_loss(death.number, death.node, images_seen=death.images_seen, time=death.noted)
                    say(f"trial {death.number}: it was its machine that was lost, which is none of its retries")
            if not self.draw:
                say(self.standing(now).line())
            if self.messages:
                self.messages.step(len(self._running), len(self._ledger.record.quarantines))
        if self.draw and now - self._last_table >= _TABLE_EVERY_S:
            self._last_table = now
            self.draw(self.standing(now))

    def standing(self, now: float) -> SearchStatus:
        """Where the search stands at `now` of the monotonic clock."""
        return self._counts.status(
            [self._ledger.trials[number] for number in sorted(self._running)],
            self.wanted,
            now - self._started if self._started else 0.0,
            rested_s=self._rested(now),
            gpu_hours=self.gpu_seconds() / 3600 if self._gpus else None,
            gpus=sum(map(self._held, self._running)),
        )

    def _fail_lost(self, trials: Iterable[Trial]) -> None:
        """Tune drops a trial without a word when a reused worker cannot be reset: it would hold its slot for ever."""
        for trial in trials:
            number = trial.config["number"]
            if trial.status == "ERROR" and self._ledger.trials[number].state == "running":
                self._sampler.on_trial_complete(trial.trial_id, error=True)
                self._ended_without_report(number)

    def _end_queue(self, trials: Iterable[Trial]) -> None:
        """Trials that wait for a machine make no report at which a request, or the search's time, could end them."""
        waiting = [trial.config["number"] for trial in trials if trial.status == "PENDING" and in_queue(trial)]
        over = self._scheduler.over() if waiting else None
        for number in waiting:
            verdict = self._scheduler.stopping.get(number) or over
            if verdict and self._ledger.trials[number].state == "running":
                self._scheduler.verdicts[number] = verdict
                self._ledger.finish(number, verdict)
                self._say_ended(number)

    def _cost(self, number: int) -> float:
        """Accelerator seconds so far, counting what attempts spent that were lost."""
        now = time.time()
        spent = (now - self._marks.get(number, now)) * self._held(number)
        self._marks[number] = now
        return self._ledger.trials[number].cost_gpu_s + spent

    def _held(self, number: int) -> float:
        """Accelerators of a trial that runs."""
        own = self._shares.gpus(number) if self._shares else self._gpus
        return own * (1 + self._slots[number])

    def withdrawn(self, number: int) -> None:
        """A trial was ended that did not run."""
        self._say_ended(number)

    def rests(self) -> None:
        """No trial runs, and none is started for now: that nobody reports is no standstill of those that ran.

        Until the next one starts, time is not counted in the pace.
        """
        if self._started is not None:  # before the first trial no time is counted
            self._rests_since = self._rests_since or time.monotonic()
        if self.messages:
            self.messages.step(len(self._running), len(self._ledger.record.quarantines))

    def _rested(self, now: float) -> float:
        """Seconds of this run in which nothing ran and nothing was to be started."""
        return self._rested_s + (now - self._rests_since if self._rests_since else 0.0)

    @property
    def ended(self) -> int:
        """Trials that have."""
        return self._counts.ended.total()

    def grew(self, number: int, slots: int) -> None:
        """A running trial has so many slots from now on, each with the accelerators of one."""
        if self._ledger.trials[number].state == "running":
            self._ledger.grow(number, slots * self._workers, cost_gpu_s=self._cost(number))
        self._slots[number] = slots - 1

    def gpu_seconds(self) -> float:
        """Accelerator seconds of all trials, the running ones up to now.

        What the trials of a killed driver did after their last report is not known and not counted.
        """
        now = time.time()
        running = sum((now - self._marks[number]) * self._held(number) for number in self._running)
        return sum(trial.cost_gpu_s for trial in self._ledger.trials.values()) + running

    def _has_ended(self, number: int) -> bool:
        """Whether a trial was ended from outside, whose process goes on until it is killed; said once."""
        ended = self._ledger.trials[number].state != "running"
        if ended and number in self._running:
            self._ended_without_report(number)
        return ended

    def _ended_without_report(self, number: int) -> None:
        if self._ledger.trials[number].state == "failed":  # others had ended before their process did
            self._scheduler.failed(number)
        self._say_ended(number)

    def _say_ended(self, number: int) -> None:
        trial, before = self._ledger.trials[number], self._counts.best
        self._counts.count(trial)
        self._running.discard(number)
        self._processes.pop(number, None)
        if self.messages and self._counts.best is trial:
            self.messages.better(trial, before.value if before else None, self._counts.ended.total(), self.wanted)
        metric = trial.objective.metric
        value = f"{metric} {trial.value:.4f}" if trial.value is not None else f"no {metric}"
        reason = format_failure(trial) if trial.state == "failed" else trial.reason
        why = f" ({reason})" if reason else " (at chance)" if trial.at_chance else ""
        seen = f"after {trial.images_seen:,} images"
        say(f"trial {number} {trial.state}{why}: {value} {seen}; {format_best(self._counts.best)}")

    def summary(self) -> str:
        """One line on a search that has ended."""
        ended = self._counts.ended
        return (
            f"search {self._ledger.record.name}: {ended.total()} trials ended ({format_states(ended)}), "
            f"{self._counts.images:,} images; {format_best(self._counts.best)}{self._notes()}"
        )

    def _notes(self) -> str:
        """What trials have written, and what machines have cost, where that is anything."""
        trials = self._ledger.trials.values()
        written = added(measured for trial in trials for measured in trial.measured).bytes_written
        notes = f"{format_bytes(written)} written" if written else "", fault_note(self._ledger.record, trials)
        return "".join(f"; {note}" for note in notes if note)


def _changes(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a report changes of its trial beside its metrics."""
    changes: dict[str, Any] = {"where": f"{result.get('hostname', '')}:{result.get('pid', '')}"}
    if result.get("note"):
        changes["detail"] = result["note"]
    if "checkpoint" in result:  # None where a trial had to begin anew, and what it had is no good
        reference = result["checkpoint"]
        changes["checkpoint"] = CheckpointReference.model_validate(reference) if reference else None
    if "logits" in result:  # None where the file of the best report is lost
        logits = result["logits"]
        changes["logits"] = LogitsReference.model_validate(logits) if logits else None
    if result.get("setup"):
        changes["setup"] = ExecutionInfo.model_validate(result["setup"])
    return changes


def _usage(result: Mapping[str, Any]) -> ReportUsage | None:
    """What a report took, as far as its training and who saved its states have said."""
    saved = {name: result[name] for name in _OF_SAVING if result.get(name) is not None}
    told = {**(result.get("usage") or {}), **saved}
    return ReportUsage.model_validate(told) if told else None
