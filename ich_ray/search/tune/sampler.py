"""Optuna behind Tune's Searcher interface, told the truth by the ledger.

The study lives in memory and is rebuilt from the ledger at every start: completed trials with their value, pruned ones
with their values at the rungs (all reports of one that reached none) as PRUNED, the rest as FAIL, so that nothing stays
RUNNING; of those that run it is told at each rung what they have reached. Suggests, in this order: trials that somebody
has added, those that a former driver left unfinished, the space's points, then what TPE thinks best. Where the trials
are listed there is nothing to choose: they run in their order, and Optuna is not asked. Each suggestion stands in the
ledger before Tune hears of it.

What the space believes decides the first draws and ever fewer later ones. Where earlier searches teach, every second of
the first draws is a random one. A draw that its constraints refuse is no
trial: Optuna is told that it is worse than all others, and asked again.
"""

from __future__ import annotations

import warnings
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import optuna
from optuna.trial import TrialState as OptunaState
from ray.tune.search import Searcher

from ich_ray.errors import ConfigError
from ich_ray.search.ledger import Verdict, trial_seed
from ich_ray.search.optuna_adapter import as_optuna, outcome, reached
from ich_ray.search.space.feasible_draw import first_that_fits
from ich_ray.search.space.prior import believed
from ich_ray.search.space.space import Listed, RandomSuggest
from ich_ray.search.tune.cost_aware_tpe import CostAwareTpe
from ich_ray.search.tune.tpe_history import SubsampledStorage, is_refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ich_ray.search.ledger import Ledger
    from ich_ray.search.plan.cost_table import CostTable
    from ich_ray.search.space.constraints import Refuses
    from ich_ray.search.space.space import SearchSpace
    from ich_ray.search.tune.trial_shares import TrialShares
    from ich_ray.trial_records import Parameter, TrialResult

__all__ = ["WORKER_DIED", "LedgerSampler"]

WORKER_DIED = "worker_died"

# Draws of a trial that TPE may make before one that fits is looked for at random; each takes some 20 ms.
_TRIES = 50
# First trials of which every second is drawn at random where earlier searches teach: a search that has none begins with
# ten such ones. Without them a search that a bad teacher began knows no other place when it trusts that one no more.
_LOOKING_ABOUT = 20


@dataclass
class _Live:
    """A trial that runs: what Optuna calls it, None where it was not asked, and the rungs that it was told of."""

    number: int
    trial: optuna.Trial | None
    told: set[int] = field(default_factory=set)

    def tell(self, values: Mapping[int, float]) -> None:
        """The value at each rung, once."""
        if self.trial is None:
            return
        for images_seen in sorted(values.keys() - self.told):
            self.trial.report(values[images_seen], images_seen)
        self.told |= values.keys()


class LedgerSampler(Searcher):
    """Suggests `wanted` trials in all and at most `concurrent()` at a time.

    Where there are `shares`, as many as those have room for. `warm` are the trials of each earlier search that it
    learns from, `costs` what weighs its draws where the budget's unit is cost.

    Attributes:
        wanted: trials in all.
        most: trials at a time that somebody has allowed; None for as many as there is room for.
        is_paused: whether none is started, for as long as somebody wants.
        withdrawn: trials that ended before they were suggested.
    """

    def __init__(
        self,
        space: SearchSpace,
        ledger: Ledger,
        *,
        wanted: int,
        concurrent: Callable[[], int],
        out_of_time: Callable[[], bool],
        warm: Sequence[Sequence[TrialResult]] = (),
        listed: Iterable[Listed] | None = None,
        refuses: Refuses | None = None,
        shares: TrialShares | None = None,
        costs: CostTable | None = None,
    ) -> None:
        super().__init__()
        self._space, self._ledger, self._rungs, self._shares = space, ledger, space.rungs(), shares
        self.wanted, self._concurrent, self._out_of_time = wanted, concurrent, out_of_time
        self.most: int | None = None
        self.is_paused = False
        self.withdrawn: set[int] = set()
        self._requeued = deque(ledger.unfinished)
        self._added: deque[TrialResult] = deque()
        self._by_hand = {note.trial for note in ledger.record.requests if note.trial is not None}
        self._listed = None if listed is None else deque(listed)
        finished = [trial for _, trial in sorted(ledger.trials.items()) if trial.state != "running"]
        # Not the search's own seed: after a resume TPE would draw the same first trials again.
        self._shown = SubsampledStorage()
        self._study = _study(space, self._shown, trial_seed(ledger.record.seed, len(ledger.trials)), costs)
        self._refuses = refuses or (lambda _: None)
        taught = [[as_optuna(space, trial) for trial in trials] for trials in warm]
        for trials in taught if listed is None else ():
            self._shown.teach(trials)
        for trial in finished if listed is None else ():
            self._study.add_trial(as_optuna(space, trial))
        self._warm = sum(map(len, taught)) if listed is None else 0
        self._live: dict[str, _Live] = {}

    def known(self) -> list[optuna.trial.FrozenTrial]:
        """All trials that Optuna was told of, warm ones first, as they stand there."""
        return self._shown.everything()

    @property
    def waiting(self) -> list[int]:
        """Trials in the ledger that are not suggested yet: left by a former driver, or added."""
        return [trial.number for trial in (*self._added, *self._requeued)]

    @property
    def is_exhausted(self) -> bool:
        """Whether no trial is left to start."""
        return not self._requeued and not self._added and len(self._ledger.trials) >= self.wanted

    @property
    def is_done(self) -> bool:
        """Whether nothing is suggested before somebody asks: all is, time is over, or a pause is at rest."""
        return self.is_exhausted or self._out_of_time() or (self.is_paused and self.is_idle)

    @property
    def is_idle(self) -> bool:
        """Whether every trial that was suggested has ended."""
        return not self._live

    def add(self, parameters: Mapping[str, Parameter]) -> None:
        """One more trial, to be suggested next."""
        self._added.append(self._ledger.add(parameters))
        self._by_hand.add(self._added[-1].number)

    def want(self, trials: int) -> None:
        """Other trials in all than before; of a space that lists them the next ones, or fewer."""
        if self._listed is not None:
            self._listed.extend(Listed(parameters) for parameters in (self._space.listed or ())[self.wanted : trials])
            for _ in range(self.wanted - trials):
                self._listed.pop()
        self.wanted = trials

    def withdraw(self, number: int, end: Verdict) -> None:
        """End a trial that waits."""
        self._added, self._requeued = (
            deque(trial for trial in waiting if trial.number != number) for waiting in (self._added, self._requeued)
        )
        record = self._ledger.finish(number, end)
        self.withdrawn.add(number)
        if self._listed is None:
            self._study.add_trial(as_optuna(self._space, record))

    def suggest(self, trial_id: str) -> Any:
        """The next trial's config; None while every slot is taken; FINISHED at the end."""
        if self._out_of_time():  # also where no machine is left
            return str(Searcher.FINISHED)
        if not self._has_room():
            return None
        if self.is_done:
            return str(Searcher.FINISHED)
        if self.is_paused:
            return None
        again = bool(self._requeued) and not self._added
        record, trial = self._requeue() if again or self._added else self._draw()
        self._live[trial_id] = live = _Live(record.number, trial)
        live.tell(reached(record, self._rungs))
        share = self._shares.begin(record) if self._shares else {}
        return {
            "number": record.number,
            "parameters": record.parameters,
            "seed": record.seed,
            "fold": record.fold,
            "reported": record.images_seen,
            "again": again,
            **share,
        }

    def _has_room(self) -> bool:
        if self.most is not None and len(self._live) >= self.most:
            return False
        return self._shares.has_room() if self._shares else len(self._live) < self._concurrent()

    def _requeue(self) -> tuple[TrialResult, optuna.Trial | None]:
        record = (self._added or self._requeued).popleft()
        if self._listed is not None:
            return record, None
        trial = self._ask(record.parameters)
        self._space.draw(_Asked(trial))
        return record, trial

    def _draw(self) -> tuple[TrialResult, optuna.Trial | None]:
        if self._listed is not None:
            parameters, repeats, fold = self._listed.popleft()
            return self._ledger.add(parameters, repeats=repeats, fold=fold), None
        number = self._ledger.next_number
        if isinstance(self._study.sampler, CostAwareTpe):
            self._study.sampler.number = number
        point = self._point(number)
        seed = trial_seed(self._ledger.record.seed, number)
        for again in range(_TRIES):
            trial = self._ask(self._known(number, seed + again, point))
            drawn = self._space.draw(_Asked(trial))
            if (refused := self._refuses(drawn.hyperparameters)) is None:
                return self._ledger.add(drawn.parameters), trial
            trial.set_constraint(refused.constraint, refused.excess)
            self._study.tell(trial, state=OptunaState.PRUNED)
        trial = self._ask(self._fitting(seed, point))
        return self._ledger.add(self._space.draw(_Asked(trial)).parameters), trial

    def _point(self, number: int) -> Mapping[str, Parameter]:
        """The point of the space that comes next, whatever was added between; empty after the last one."""
        index = number - sum(one < number for one in self._by_hand)
        return self._space.points[index] if index < len(self._space.points) else {}

    def _known(self, number: int, seed: int, point: Mapping[str, Parameter]) -> dict[str, Parameter]:
        """What Optuna is not asked for: beliefs, points, and all of a trial that looks where teachers do not."""
        known = {**believed(self._space.parameters, number, seed), **point}
        if self._shown.is_taught and number < _LOOKING_ABOUT and number % 2:
            return self._space.draw(RandomSuggest(seed, known)).parameters
        return known

    def _fitting(self, seed: int, point: Mapping[str, Parameter]) -> dict[str, Parameter]:
        """A random draw that fits, else the one that was found before the search began: it does not end for this."""
        try:
            return first_that_fits(self._space, self._refuses, seed, point)
        except ConfigError:
            return first_that_fits(self._space, self._refuses, self._ledger.record.seed, point)

    def _ask(self, known: Mapping[str, Parameter]) -> optuna.Trial:
        fixed = {spec.name for spec in self._space.parameters if spec.kind == "fixed"}
        if chosen := {name: value for name, value in known.items() if name not in fixed}:
            self._study.enqueue_trial(chosen)
        return self._study.ask()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tell Optuna what a trial that goes on has reached, at each rung that it passes."""
        live = self._live.get(trial_id)
        if live is None or live.trial is None or "lost" in result:
            return
        record, images_seen = self._ledger.trials[live.number], result["images_seen"]  # the ledger hears of it later
        if passed := [level for level in self._rungs if record.images_seen < level <= images_seen]:
            now = result[f"metrics/{record.objective.metric}"]
            live.tell(dict.fromkeys(passed, record.objective.best((*_so_far(record, result), now))))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:  # noqa: ARG002
        """Tell Optuna what the ledger says; a trial that ended without a word is failed there first."""
        if trial_id not in self._live:
            return
        live = self._live.pop(trial_id)
        number, trial = live.number, live.trial
        if self._shares:
            self._shares.ended(number)
        record = self._ledger.trials[number]
        if record.state == "running":
            reason = WORKER_DIED if error else "error"
            detail = f"its process was lost {record.attempts} times" if error else "it ended without a result"
            record = self._ledger.finish(number, Verdict("failed", reason, detail))
        if trial is None:
            return
        state, value, intermediate = outcome(record, self._rungs)
        live.tell(intermediate)
        self._study.tell(trial, value if state == OptunaState.COMPLETE else None, state)

    def told(self) -> int:
        """How many trials of the ledger the study holds as they are, less those it should not.

        Those that are waiting, or listed, are no concern of the study's and count as told.
        """
        if self._listed is not None:
            return len(self._ledger.trials)
        held = [trial for trial in self.known()[self._warm :] if not is_refused(trial)]
        # Optuna gives pruned trials their last intermediate value.
        here = Counter((trial.state, trial.value if trial.state == OptunaState.COMPLETE else None) for trial in held)
        there = Counter(
            outcome(trial, self._rungs)[:2]
            for number, trial in self._ledger.trials.items()
            if number not in self.waiting
        )
        return (here & there).total() - (here - there).total() + len(self.waiting)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing to save: the state is the ledger."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the state is the ledger."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a search is resumed from its ledger, never from Tune's state")


def _so_far(record: TrialResult, result: Mapping[str, Any]) -> list[float]:
    """The values of a trial's reports before this one, those with as many folds."""
    number = result.get("fold/number", 0)
    alike = (report for report in record.reports if report.network == number)
    return [value for report in alike if (value := report.metrics.get(record.objective.metric)) is not None]


def _study(space: SearchSpace, shown: SubsampledStorage, seed: int, costs: CostTable | None) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # One parameter at a time: fewer images than with a joint density (benchmarks/search_efficiency.py), because a
        # good trial has few neighbors in all dimensions at once.
        how: dict[str, Any] = {"multivariate": False, "constant_liar": True, "seed": seed}
        sampler = CostAwareTpe(costs, **how) if costs else optuna.samplers.TPESampler(**how)
    return optuna.create_study(
        storage=shown, sampler=sampler, direction="maximize" if space.objective.mode == "max" else "minimize"
    )


class _Asked:
    """Draws from a running Optuna trial."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial

    def categorical(self, name: str, choices: Sequence[Parameter]) -> Parameter:
        return cast("Parameter", self._trial.suggest_categorical(name, list(choices)))

    def float(self, name: str, low: float, high: float, log: bool) -> float:
        return float(self._trial.suggest_float(name, low, high, log=log))

    def int(self, name: str, low: int, high: int) -> int:
        return int(self._trial.suggest_int(name, low, high))
