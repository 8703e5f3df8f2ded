"""Choose the trials that TPE is shown: running ones so far, and of many the best and others.

Optuna counts every running trial as a bad one, so that two slots do not draw the same. Under early stopping those that
run for long are the best there are: one that has passed a rung is shown like a trial that was pruned there. And TPE's
time grows with the trials that it looks at, while it splits off 25 good ones at most: of thousands it is shown these
and an even part of the others, old and new, which stand for where the bad ones are. (What some 800 trials lost to the
optimum, on six computed problems: 0.0005 AP, and 0.0006 with all trials shown. The newest others alone, on five
more problems, lost 0.0024 where all lost 0.0015.)

Trials of earlier searches stand beside them, as many as teachers.py grants, and so do the last draws that were refused
before training, as worse than all others.

Knows Optuna's storage interface; nothing of samplers, spaces or the ledger.
"""

from __future__ import annotations

import copy
import heapq
from bisect import insort
from collections import deque
from typing import TYPE_CHECKING

from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from ich_ray.search.tune.teachers import Teacher, as_here

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

__all__ = ["SubsampledStorage", "is_refused"]

_SHOWN = 250  # trials that have ended; a new draw then takes TPE some 20 ms, however many there are
_BEST = 25  # among them; TPE splits off a tenth, and never more than these
_REFUSED = 25  # draws, and never more than trials that have ended
_STARTUP = 10  # trials before which TPE draws at random


class SubsampledStorage(InMemoryStorage):
    """A storage for one study, kept in memory, that answers with the trials a sampler should learn from."""

    def __init__(self) -> None:
        super().__init__()
        self._best: list[tuple[tuple[int, int, float], int]] = []  # a heap of ranks and negative numbers
        self._ended: list[int] = []  # sorted: a study that is rebuilt from the ledger has trials in another order
        self._begun: set[int] = set()
        self._refused: deque[int] = deque(maxlen=_REFUSED)
        self._chosen: set[int] | None = None
        self._teachers: list[Teacher] = []
        self._taught: list[FrozenTrial] | None = None
        self._learns = True
        self._distributions: dict[str, BaseDistribution] = {}

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        self._study = super().create_new_study(directions, study_name)
        self._sign = 1.0 if directions[0] == StudyDirection.MAXIMIZE else -1.0
        return self._study

    def everything(self) -> list[FrozenTrial]:
        """All trials as they are."""
        return super().get_all_trials(self._study, deepcopy=False)

    def teach(self, trials: Sequence[FrozenTrial]) -> None:
        """Add the trials of an earlier search, which are none of this one's."""
        self._learns = False
        added = [self.get_trial(self.create_new_trial(self._study, trial)) for trial in trials]
        self._learns, self._taught = True, None
        taught = [trial for trial in added if trial.state != TrialState.FAIL]
        self._teachers.append(Teacher(sorted(taught, key=self._rank, reverse=True)))

    @property
    def is_taught(self) -> bool:
        """Whether trials of earlier searches stand beside this one's."""
        return any(teacher.trials for teacher in self._teachers)

    @property
    def trust(self) -> list[float]:
        """How far each teacher is trusted by now, from 0 to 1."""
        own = self._own()
        return [teacher.weight(own) for teacher in self._teachers]

    def _own(self) -> list[FrozenTrial]:
        """The trials that have ended and are shown, best first."""
        there = self.everything()
        return sorted((there[number] for number in self._those_that_ended()), key=self._rank, reverse=True)

    def _of_teachers(self) -> list[FrozenTrial]:
        if self._taught is None:
            own = self._own()
            shown = [teacher.shown(teacher.weight(own)) for teacher in self._teachers]
            self._taught = as_here([trials for trials in shown if trials], own)
        return self._taught

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if states == (TrialState.WAITING,):  # the queue of `enqueue_trial`
            return super().get_all_trials(study_id, deepcopy, states)
        there = self.everything()
        numbers = sorted(self._those_that_ended() | self._begun | self._refused_and_shown())
        shown = [*self._of_teachers(), *(_as_reached(there[number]) for number in numbers)]
        shown = [trial for trial in shown if states is None or trial.state in states]
        return copy.deepcopy(shown) if deepcopy else shown

    def _those_that_ended(self) -> set[int]:
        """The best, and others evenly by number, the newest among them; none that failed."""
        if self._chosen is None:
            best = {-number for _, number in self._best}
            others = [number for number in self._ended if number not in best]
            room = min(_SHOWN - len(best), len(others))
            self._chosen = best | {others[-1 - at * len(others) // room] for at in range(room)}
        return self._chosen

    def _refused_and_shown(self) -> set[int]:
        """None while TPE draws at random: they would count among the trials that it waits for."""
        count = min(len(self._refused), len(self._ended)) if len(self._ended) >= _STARTUP else 0
        return set(list(self._refused)[len(self._refused) - count :])

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial_id = super().create_new_trial(study_id, template_trial)
        trial = self.get_trial(trial_id)
        trial.distributions = {name: self._shared(name, drawn_from) for name, drawn_from in trial.distributions.items()}
        self._note(trial)
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        super().set_trial_param(trial_id, param_name, param_value_internal, self._shared(param_name, distribution))

    def _shared(self, name: str, distribution: BaseDistribution) -> BaseDistribution:
        """One object for all trials that drew a parameter from equal ones: 240 bytes for each that is drawn."""
        there = self._distributions.setdefault(name, distribution)
        return there if there == distribution else distribution

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        changed = super().set_trial_state_values(trial_id, state, values)
        self._note(self.get_trial(trial_id))
        return changed

    def _note(self, trial: FrozenTrial) -> None:
        if not self._learns:
            return
        if not trial.state.is_finished():
            self._begun.add(trial.number)
            return
        self._begun.discard(trial.number)
        if trial.state == TrialState.FAIL:  # nothing to learn from
            return
        if is_refused(trial):
            self._refused.append(trial.number)
            return
        self._chosen = self._taught = None
        insort(self._ended, trial.number)
        heapq.heappush(self._best, (self._rank(trial), -trial.number))
        if len(self._best) > _BEST:
            heapq.heappop(self._best)

    def _rank(self, trial: FrozenTrial) -> tuple[int, int, float]:
        """Higher for the better one, as TPE ranks them: completed ones first, then by the last rung and the value."""
        if trial.value is not None and trial.state == TrialState.COMPLETE:
            return 1, 0, self._sign * trial.value
        if not trial.intermediate_values:
            return -1, 0, 0.0
        step, value = max(trial.intermediate_values.items())
        return 0, step, self._sign * value


def is_refused(trial: FrozenTrial) -> bool:
    """Whether a constraint refused a draw, so that it was never a trial."""
    return any(excess > 0 for excess in trial.constraints.values())


def _as_reached(trial: FrozenTrial) -> FrozenTrial:
    if trial.state != TrialState.RUNNING or not trial.intermediate_values:
        return trial
    reached = copy.copy(trial)
    reached.state = TrialState.PRUNED
    return reached
