"""One run over a search: Tune starts the workers and moves reports, the ledger says what is true.

What Tune is told comes from the ledger; how it is run is in quiet_tune.py. Knows nothing of files, flags and spaces
that were given wrongly: run.py has checked them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from ich_ray.errors import IchRayError, IntegrityError, Interrupted
from ich_ray.progress import board, say
from ich_ray.search.chances import format_chances, write_chances
from ich_ray.search.cluster_resources import nodes_that_hold
from ich_ray.search.early_end import EarlyEnd, EndWatch
from ich_ray.search.out_of_fold import OutOfFold
from ich_ray.search.space.parameter_sets import NETWORKS
from ich_ray.search.stopping import STOPPING_RULES
from ich_ray.search.stopping.fold_race import FoldRace
from ich_ray.search.tune.first_error import FirstError
from ich_ray.search.tune.grown_trial import GrowingTrainer
from ich_ray.search.tune.growth_setup import growing_of, may_grow
from ich_ray.search.tune.ledger_callback import LedgerCallback
from ich_ray.search.tune.multi_worker_trial import MultiWorkerTrainer
from ich_ray.search.tune.quarantine import DEVICE_ERROR, Quarantine
from ich_ray.search.tune.quiet_tune import run_trials
from ich_ray.search.tune.sampler import WORKER_DIED, LedgerSampler
from ich_ray.search.tune.scheduler import StoppingScheduler
from ich_ray.search.tune.steering import Steering
from ich_ray.search.tune.trial import TrialSettings, train_model, trial_function
from ich_ray.search.tune.trial_retries import TrialRetries
from ich_ray.search.tune.trial_shares import TrialShares, equal_shares
from ich_ray.search.tune.unstarted_machines import UnstartedMachines
from ich_ray.search.tune.watchdog import Watchdog
from ich_ray.search_records import EndCheck

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ray.tune.experiment import Trial

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.search.ledger import Ledger, Verdict
    from ich_ray.search.plan.cost_table import CostTable
    from ich_ray.search.preflight import Slots
    from ich_ray.search.space.constraints import Refuses
    from ich_ray.search.space.space import Listed, SearchSpace
    from ich_ray.search.time_budget import Limits
    from ich_ray.search.tune.trial import Trainer
    from ich_ray.trial_records import LogitsReference, TrialResult
    from ich_ray.vocabulary import Placement

__all__ = ["Driver", "check_own_ends"]

# A trial whose process died is started again this often without a new report, from its newest checkpoint.
RETRIES = 3
# A machine in quarantine is tried again with one trial after this, then after twice as long.
RELEASED_AFTER_S = 600.0
# How long a trial that such a machine is given waits there before it goes back to the queue.
DECLINED_S = 5.0
# A trial without a report for so long, and for five times as long as its reports usually take, is ended.
SILENT_S = 300.0


class Driver:
    """Runs what a ledger lacks of `wanted` trials; hold the search's lock meanwhile.

    Attributes:
        resume_hint: what its reader is told to do when it is interrupted.
    """

    resume_hint = "add --resume to go on"

    def __init__(
        self,
        space: SearchSpace,
        dataset: PreparedDataset,
        ledger: Ledger,
        slots: Slots,
        *,
        wanted: int,
        limits: Limits,
        warm: Sequence[Sequence[TrialResult]],
        trainer: Trainer | None,
        listed: Sequence[Listed] | None = None,
        placement: Placement = "auto",
        keep_weights: bool = False,
        room: Callable[[int | None], int] | None = None,
        refuses: Refuses | None = None,
        grow: bool = False,
        shares: Callable[[Ledger], TrialShares] | None = None,
        concurrent: int | None = None,
        takes_requests: bool = False,
        early: EarlyEnd | None = None,
        costs: CostTable | None = None,
    ) -> None:
        self.ledger, self.slots, self.limits = ledger, slots, limits
        self._end_watch = EndWatch(space, early or EarlyEnd(), lambda: ledger.trials, limits.began)
        self._dataset, self._drawn = dataset, space.drawn
        rule = STOPPING_RULES[space.budget.rule].rebuilt(space.budget, space.objective, ledger.trials.values())
        race = _race(space, dataset, ledger) if space.objective.networks > 1 else None
        large_enough = partial(nodes_that_hold, slots.cpus, slots.gpus)
        quarantine = Quarantine(ledger, large_enough, RELEASED_AFTER_S)

        def at_a_time() -> int:
            return room(self.sampler.most) if room else slots.concurrent

        if shares is None and 0 < slots.gpus < 1:
            shares = partial(equal_shares, cpus=slots.cpus, gpus=slots.gpus, at_a_time=at_a_time)
        trial_shares = shares(ledger) if shares else None
        self.scheduler = StoppingScheduler(
            space.budget, space.objective, rule, self.exhausted, race, space.drawn, quarantine, trial_shares
        )
        self.sampler = LedgerSampler(
            space,
            ledger,
            wanted=wanted,
            concurrent=at_a_time,
            out_of_time=lambda: self.exhausted() is not None,
            warm=warm,
            listed=listed,
            refuses=refuses,
            shares=trial_shares,
            costs=costs,
        )
        self.sampler.most = concurrent or ledger.record.asked_last("concurrent")
        settings = TrialSettings(
            dataset=str(dataset.files.root),
            fingerprint=dataset.manifest.fingerprint,
            search=str(ledger.files.root),
            images=space.budget.images,
            report_every=space.budget.report_every,
            cpus=slots.cpus,
            gpus=slots.gpus,
            workers=slots.workers,
            placement=placement,
            precision=ledger.record.precision,
            objective=space.objective,
            seed=ledger.record.seed,
            keep_weights=keep_weights,
            declined_s=DECLINED_S,
            searches=space.drawn.name,
            compares=self._compares(listed),
        )
        trainer = trainer or train_model
        grows = grow and trial_shares is None and may_grow(space, slots, trainer)
        started = GrowingTrainer(trainer) if grows else MultiWorkerTrainer(trainer) if slots.workers > 1 else trainer
        self.function = trial_function(settings, started)
        self.ledger_callback = LedgerCallback(
            space,
            ledger,
            self.scheduler,
            self.sampler,
            wanted=wanted,
            gpus=slots.gpus,
            deadline=limits.deadline,
            workers=slots.workers,
            shares=trial_shares,
        )
        growing = []
        if grows:

            def is_over() -> bool:
                return self.sampler.is_exhausted and self.exhausted() is None

            growing = [growing_of(space, dataset, ledger, slots, is_over, at_a_time, self.ledger_callback.grew)]

        def lost(trial: Trial, told: dict[str, str]) -> None:
            self.ledger_callback.fell_silent(trial, quarantine.lost(trial.config["number"], told))

        self.watchdog = Watchdog(lost, SILENT_S)
        self.steering = Steering(
            space, ledger, self.scheduler, self.sampler, self.ledger_callback, self.exhausted, refuses=refuses
        )
        others: list[tune.Callback] = [*([trial_shares] if trial_shares else []), *growing]
        others += [self.steering] if takes_requests else []
        others.append(UnstartedMachines(ledger, lambda: not self.sampler.is_exhausted))
        self.callbacks = [self.ledger_callback, self.watchdog, TrialRetries(RETRIES), *others]
        self._takes_requests = takes_requests
        self._first = FirstError()
        for hooks, kind in (
            (self.sampler, Searcher),
            (self.scheduler, TrialScheduler),
            *((callback, tune.Callback) for callback in self.callbacks),
        ):
            self._first.watch(hooks, kind)

    def _compares(self, listed: Sequence[Listed] | None = None) -> bool:
        """Whether its trials are compared by who judged them.

        A confirmation says itself what it knows, and of a sequence model the slices are in another order.
        """
        if self._drawn is not NETWORKS:
            return False
        again = [trial.repeats for trial in self.ledger.trials.values()] + [one.repeats for one in listed or ()]
        return all(one is None for one in again)

    def exhausted(self) -> Verdict | None:
        """How a trial ends that is stopped because the search has had its time, or found enough; else None."""
        over = self.limits.exhausted(self.ledger_callback.gpu_seconds() if self.limits.gpu_hours else 0.0)
        return over or self._end_watch.verdict(self.ledger_callback.ended)

    def run(self) -> None:
        """Run until every trial has ended.

        Raises:
            Interrupted: it was stopped before.
            IchRayError: the cluster was lost, or a file could not be written; the message has the cause.
        """
        try:
            self._run_trials()
        except (OSError, RayError, tune.TuneError) as error:
            raise IchRayError(
                f"{self.ledger.files.root}: a search needs its cluster and room for its files, got {_cause(error)}; "
                f"remove the cause and {self.resume_hint}, nothing is lost"
            ) from error

    @property
    def wanted(self) -> int:
        """Trials in all; a request may change it."""
        return self.sampler.wanted

    @property
    def _todo(self) -> int:
        return self.wanted - len(self.ledger.trials) + len(self.ledger.unfinished)

    def _run_trials(self) -> None:
        ran = {number for number, trial in self.ledger.trials.items() if trial.state != "running"}
        if self._takes_requests:
            self.steering.begin()
            self.steering.wait()
        if self._todo:
            say(f"search {self.ledger.record.name}: {self._todo} trials to run, {self.slots.concurrent} at a time")
        while self._todo and not self.sampler.is_done:
            ran |= self._tune(self._todo)
            if not (self.sampler.is_idle and self.sampler.is_done):  # it was interrupted
                break
            self.ledger_callback.rests()
            if self._takes_requests:
                self.steering.wait()
        if exhausted := self.exhausted():
            for number in self.sampler.waiting:  # by an earlier driver
                self.sampler.withdraw(number, exhausted)
                self.ledger_callback.withdrawn(number)
        ran |= self.sampler.withdrawn
        unfinished = len(self.ledger.unfinished)
        if unfinished or (len(self.ledger.trials) < self.wanted and not exhausted):
            ended = len(self.ledger.trials) - unfinished
            raise Interrupted(
                f"{self.ledger.files.root}: a search runs until its {self.wanted} trials have ended, "
                f"got interrupted after {ended}; {self.resume_hint}, nothing is lost"
            )
        self._end(ran, exhausted)
        say(self.ledger_callback.summary() + self._saved(exhausted))
        if self._compares() and (told := format_chances(write_chances(self.ledger, self._dataset))):
            say(told)
        check_own_ends(str(self.ledger.files.root), self.ledger.trials.values())

    def _saved(self, exhausted: Verdict | None) -> str:
        """What an end before the last trial has saved, as far as trials were not begun; empty without one."""
        if exhausted is None or exhausted.reason not in {"target", "patience"}:
            return ""
        ended, left = self.ledger.trials.values(), max(0, self.wanted - len(self.ledger.trials))
        each = sum(trial.images_seen for trial in ended) / max(1, len(ended))
        return f"; {exhausted.detail}; {left} trials not begun, about {left * each:,.0f} images saved"

    def _end(self, ran: set[int], exhausted: Verdict | None) -> None:
        """Compare what the ledger, the sampler and Tune know (I4 of `ich-ray audit`) and note it.

        Raises:
            IntegrityError: they differ.
        """
        known = len(self.ledger.trials)
        ending = EndCheck(
            trials=known,
            asked=self.wanted,
            sampler=self.sampler.told(),
            tune=len(ran & self.ledger.trials.keys()) - len(ran - self.ledger.trials.keys()),
            out_of_time=exhausted is not None,
        )
        if known and ending != self.ledger.record.ended:
            self.ledger.amend(ended=ending.model_dump())
        if not known == ending.sampler == ending.tune:
            raise IntegrityError(
                f"{self.ledger.files.root}: ledger, sampler and Tune must know the same trials, got {known}, "
                f"{ending.sampler} and {ending.tune}; {self.resume_hint}, which rebuilds the others from the ledger"
            )

    def _tune(self, todo: int) -> set[int]:
        try:
            with board() as self.ledger_callback.draw:
                ran = run_trials(
                    self.function,
                    self.sampler,
                    self.scheduler,
                    self.callbacks,
                    trials=todo,
                    slots=self.slots,
                    retries=RETRIES,
                )
        except Exception:
            self._first.tell()
            raise
        self._first.tell()
        return ran


def check_own_ends(search: str, trials: Iterable[TrialResult]) -> None:
    """Refuse to call a search good whose trials mostly ended by no fault of their own.

    Raises:
        IchRayError: most of them failed because of machines.
    """
    reasons = [trial.reason for trial in trials]
    lost = sum(reason in {DEVICE_ERROR, WORKER_DIED} for reason in reasons)
    if 2 * lost > len(reasons):
        raise IchRayError(
            f"{search}: most trials must end by themselves, got {lost} of {len(reasons)} that failed for reasons of "
            "machines; `ich-ray results` has their causes, mend those and search again"
        )


def _race(space: SearchSpace, dataset: PreparedDataset, ledger: Ledger) -> FoldRace:
    """Which trials go on with more folds, as the ledger left it."""
    said = OutOfFold(ledger.files, dataset, space.objective, ledger.record.seed)

    def chance(one: Sequence[LogitsReference], other: Sequence[LogitsReference]) -> float | None:
        try:
            return said.chance(one, other)
        except (OSError, IntegrityError) as error:
            say(f"folds: two trials cannot be compared, so that none is stopped: {error}")
            return None

    return FoldRace.rebuilt(space.budget, space.objective, chance, ledger.trials.values())


def _cause(error: Exception) -> str:
    """What an error says in a line; Ray's and Tune's end with it."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
