from __future__ import annotations

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from ich_ray.search.shown import ShownTrials

SPACE = {"x": FloatDistribution(0, 1)}


def study_of(*, maximize: bool = True) -> tuple[ShownTrials, optuna.Study]:
    shown = ShownTrials(maximize=maximize)
    return shown, optuna.create_study(storage=shown, direction="maximize" if maximize else "minimize")


def add(study: optuna.Study, x: float, *, rung: int | None = None) -> None:
    state = TrialState.COMPLETE if rung is None else TrialState.PRUNED
    values = {} if rung is None else {rung: x}
    value = x if rung is None else None
    study.add_trial(
        create_trial(state=state, value=value, params={"x": x}, distributions=SPACE, intermediate_values=values)
    )


@pytest.mark.parametrize("maximize", [True, False])
def test_of_many_the_best_and_the_newest_are_shown(maximize: bool) -> None:
    shown, study = study_of(maximize=maximize)
    for number in range(1000):
        add(study, (number if maximize else 999 - number) / 1000, rung=100 if number % 2 else 300)
    for _ in range(300):  # reached less, so none is among the best
        add(study, 0.5, rung=10)
    assert len(shown.everything(0)) == 1300
    there = [trial.number for trial in study.trials]
    # The best are those that came furthest, then those with the best value there.
    assert there == [*range(950, 1000, 2), *range(1300 - 225, 1300)]


def test_the_best_are_those_that_tpe_would_split_off() -> None:
    _, study = study_of()
    for value in (0.9, 0.1):
        add(study, value)
    for value in (0.95, 0.99):
        add(study, value, rung=100)
    for _ in range(250):
        add(study, 0.0, rung=1)
    best = [trial.number for trial in study.trials if trial.number < 4]
    assert best == [0, 1, 2, 3]
    for _ in range(24):
        add(study, 0.5)
    for _ in range(250):
        add(study, 0.0, rung=1)
    # 26 were completed: the worst of them makes room, and so do all that were pruned.
    assert [trial.number for trial in study.trials if trial.number < 4] == [0]


def test_running_trials_are_shown_by_their_rungs_and_failed_ones_not_at_all() -> None:
    shown, study = study_of()
    running, other = study.ask(SPACE), study.ask(SPACE)
    study.tell(other, state=TrialState.FAIL)
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING]
    running.report(0.4, 100)
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED]
    assert [trial.state for trial in shown.everything(0)] == [TrialState.RUNNING, TrialState.FAIL]
    assert study.get_trials(states=(TrialState.RUNNING,)) == []
    study.tell(running, 0.6)
    assert [trial.value for trial in study.get_trials(states=(TrialState.COMPLETE,))] == [0.6]


def test_enqueued_trials_come_first() -> None:
    _, study = study_of()
    study.enqueue_trial({"x": 0.25})
    assert study.ask(SPACE).params == {"x": 0.25}
    assert len(study.trials) == 1
