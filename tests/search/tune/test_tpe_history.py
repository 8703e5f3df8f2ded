from __future__ import annotations

from itertools import pairwise

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers._tpe.sampler import _split_trials
from optuna.trial import TrialState, create_trial

from ich_ray.search.tune.tpe_history import SubsampledStorage

SPACE = {"x": FloatDistribution(0, 1)}


def study_of(mode: str = "maximize") -> tuple[SubsampledStorage, optuna.Study]:
    shown = SubsampledStorage()
    return shown, optuna.create_study(storage=shown, direction=mode)  # type: ignore[arg-type]


def add(study: optuna.Study, x: float, *, rung: int | None = None) -> None:
    state = TrialState.COMPLETE if rung is None else TrialState.PRUNED
    values = {} if rung is None else {rung: x}
    value = x if rung is None else None
    study.add_trial(
        create_trial(state=state, value=value, params={"x": x}, distributions=SPACE, intermediate_values=values)
    )


@pytest.mark.parametrize("mode", ["maximize", "minimize"])
@pytest.mark.parametrize("rung", [None, 300])
def test_of_many_the_best_and_some_of_all_others_are_shown(mode: str, rung: int | None) -> None:
    shown, study = study_of(mode)
    for number in range(1000):
        better = number if mode == "maximize" else 999 - number
        add(study, better / 1000, rung=100 if number % 2 else rung)
    for _ in range(300):  # reached less, so none is among the best
        add(study, 0.5, rung=10)
    assert len(shown.everything()) == 1300
    there = [trial.number for trial in study.trials]
    # The best are those that came furthest, then those with the best value there.
    best = set(range(950, 1000, 2))
    assert best <= set(there)
    others = [number for number in there if number not in best]
    assert (len(others), others[0] < 6, others[-1]) == (225, True, 1299)
    assert {after - before for before, after in pairwise(others) if not before < 1000 < after} <= set(range(5, 13))


def test_the_best_are_those_that_tpe_would_split_off() -> None:
    shown, study = study_of()
    for number in range(600):
        add(study, (number * 7 % 31) / 31, rung=(None, 100, 300)[number % 3] if number % 5 else 10)  # with equals
    below, _ = _split_trials(study, shown.everything(), 25)
    seen, _ = _split_trials(study, study.trials, 25)
    assert [trial.number for trial in seen] == [trial.number for trial in below]
    assert len(study.trials) == 250


def test_as_many_as_fit_are_shown() -> None:
    _, study = study_of()
    for number in range(1000):
        add(study, number / 1000)
        if number in {0, 100, 249, 250, 999}:
            there = [trial.number for trial in study.trials]
            assert len(there) == min(number + 1, 250)
            assert there[-25:] == list(range(max(0, number - 24), number + 1))


def test_running_trials_are_shown_by_their_rungs_and_failed_ones_not_at_all() -> None:
    shown, study = study_of()
    running, other = study.ask(SPACE), study.ask(SPACE)
    study.tell(other, state=TrialState.FAIL)
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING]
    running.report(0.4, 100)
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED]
    assert [trial.state for trial in shown.everything()] == [TrialState.RUNNING, TrialState.FAIL]
    assert study.get_trials(states=(TrialState.RUNNING,)) == []
    study.tell(running, 0.6)
    assert [trial.value for trial in study.get_trials(states=(TrialState.COMPLETE,))] == [0.6]


def test_enqueued_trials_come_first() -> None:
    _, study = study_of()
    study.enqueue_trial({"x": 0.25})
    assert study.ask(SPACE).params == {"x": 0.25}
    assert len(study.trials) == 1


def test_trials_share_the_distributions_that_they_were_drawn_from() -> None:
    shown, study = study_of()
    for high in (1.0, 1.0, 2.0):
        study.ask().suggest_float("x", 0.0, high)
    add(study, 0.5)
    first, *others = (trial.distributions["x"] for trial in shown.everything())
    assert [there is first for there in others] == [True, False, True]
    assert others[1] == FloatDistribution(0, 2)
