from __future__ import annotations

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from ich_ray.search.tune.teachers import Teacher, as_here, likeness
from ich_ray.search.tune.tpe_history import SubsampledStorage

SPACE = {"x": FloatDistribution(1e-4, 1.0, log=True), "kind": CategoricalDistribution(["a", "b"])}


def trial(x: float, value: float | None = None, *, kind: str = "a", rung: float | None = None) -> FrozenTrial:
    return create_trial(
        state=TrialState.COMPLETE if rung is None else TrialState.PRUNED,
        value=x if value is None and rung is None else value,
        params={"x": x, "kind": kind},
        distributions=SPACE,
        intermediate_values={} if rung is None else {100: rung},
    )


def rising(count: int = 100) -> list[FrozenTrial]:
    """Better the larger x is, best first."""
    return [trial(10 ** (-4 * at / count)) for at in range(count)]


@pytest.mark.parametrize(
    ("places", "trust"),
    [
        ([], 1.0),
        ([0.5], 1.0),  # one trial cannot tell
        ([0.1, 0.2, 0.3, 0.4, 0.5], 1.0),
        ([0.5] * 10, 1.0),  # nor can ten of which it knows nothing
        ([0.5] * 40, 2 * 1.64 / 40**0.5),
        ([0.9, 0.8, 0.7, 0.6, 0.5], 0.0),
        ([0.2, 0.1], 2 * (1.64 / 2**0.5 - 1)),
    ],
)
def test_trust_falls_with_what_the_teacher_got_wrong(places: list[float], trust: float) -> None:
    assert likeness(places) == pytest.approx(trust)


def test_a_teacher_knows_where_a_trial_would_stand() -> None:
    teacher = Teacher(rising())
    alike = [trial(10**-exponent) for exponent in (0.5, 1.5, 2.5, 3.5)]
    for number, own in enumerate(alike):
        own.number = number
    assert teacher.weight(alike) == 1.0
    assert teacher.weight(alike[::-1]) == 0.0


def test_the_best_are_shown_and_an_even_part_of_the_others() -> None:
    trials = rising(100)
    teacher = Teacher(trials)
    shown = [trials.index(one) for one in teacher.shown(0.5)]
    assert (len(shown), shown[:7], shown[-1]) == (50, [0, 1, 2, 3, 4, 5, 7], 97)
    assert [trials.index(one) for one in teacher.shown(0.02)] == [0, 1]
    assert teacher.shown(0.0) == []
    assert Teacher([]).shown(1.0) == []


def test_a_teachers_trials_get_the_outcomes_of_this_search() -> None:
    own = [trial(0.1, 0.6), trial(0.2, rung=0.5)]
    told = as_here([rising(2), rising(4)[:1]], own)
    assert [one.params["x"] for one in told] == [1.0, 1.0, pytest.approx(0.01)]
    assert [(one.state, one.value) for one in told] == [
        (TrialState.COMPLETE, 0.6),
        (TrialState.PRUNED, None),
        (TrialState.PRUNED, None),
    ]
    assert told[1].intermediate_values == {100: 0.5}
    assert [one.value for one in as_here([rising(2)], [])] == [1.0, pytest.approx(0.01)]


def test_a_study_is_shown_fewer_trials_of_a_teacher_that_is_wrong() -> None:
    trust = []
    for sign in (1, -1):
        shown = SubsampledStorage()
        study = optuna.create_study(storage=shown, direction="maximize")
        shown.teach(rising())
        assert (shown.trust, len(study.trials), len(shown.everything())) == ([1.0], 100, 100)
        for at in range(20):
            study.add_trial(trial(10 ** (-0.2 * at), 0.5 - sign * at / 100))
        trust.append((shown.trust, len(study.trials)))
    assert trust == [([1.0], 120), ([0.0], 20)]
