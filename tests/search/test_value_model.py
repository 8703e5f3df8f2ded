from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ich_ray.search import value_model
from ich_ray.search.space.space import SearchSpace
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.search.value_model import ValueModel, smoothed_best
from ich_ray.trial_records import Report, TrialResult, TrialState


def space(**parameters: Any) -> SearchSpace:
    source = {
        "name": "by-hand",
        "objective": {"metric": "average_precision", "mode": "max"},
        "budget": {"images": 900, "report_every": 100, "first_rung": 100, "reduction": 3, "min_peers": 3},
        "parameters": parameters or {"dropout": {"uniform": [0.0, 0.8]}, "filters": {"fixed": 8}},
    }
    return parse_space(source, "by-hand.yaml")


def trial(number: int, values: list[float], state: TrialState = "completed", **parameters: Any) -> TrialResult:
    reports = tuple(
        Report(images_seen=100 * (at + 1), metrics={"average_precision": value}, elapsed_s=0, time=0)
        for at, value in enumerate(values)
    )
    return TrialResult(number=number, parameters=parameters, state=state, reports=reports)


def curve(dropout: float, luck: float, reports: int = 9) -> list[float]:
    """Best at 0.4, and three quarters there after one report of nine."""
    end = 0.8 - (dropout - 0.4) ** 2
    return [end * (1 - 0.25 * (9 - at) / 8) + luck for at in range(1, reports + 1)]


@pytest.mark.parametrize(
    ("values", "sign", "expected"),
    [
        ([0.5], 1, 0.5),
        ([0.5, 0.9], 1, 0.9),
        # thirds of six are two: the lucky report alone would be 0.9
        ([0.1, 0.2, 0.9, 0.3, 0.7, 0.7], 1, 0.7),
        ([0.9, 0.8, 0.1, 0.7, 0.3, 0.4], -1, 0.35),
    ],
)
def test_the_best_third_in_a_row_is_less_lucky_than_the_best_report(
    values: list[float], sign: float, expected: float
) -> None:
    assert smoothed_best(values, sign) == pytest.approx(expected)


def test_a_place_is_what_was_drawn_parents_first() -> None:
    model = ValueModel(
        space(
            architecture={"choice": ["plain_cnn", "resnet18"]},
            blocks={"int": [1, 4], "when": {"architecture": "plain_cnn"}},
            batch_size={"choice": [128, 32, 64]},
            learning_rate={"loguniform": [1e-4, 1e-2]},
            filters={"fixed": 8},
        ),
        [trial(0, [0.5], architecture="resnet18", batch_size=64, learning_rate=1e-3)],
    )
    drawn = trial(1, [0.5], architecture="plain_cnn", blocks=2, batch_size=128, learning_rate=1e-3)
    assert model.place(drawn).tolist() == pytest.approx([1, 0, 1, 0.5, 1 / 3, 1])
    # without blocks; after a third of nine reports, which is half of the way on the scale of images
    assert model.place(model.trials[0], 1 / 3).tolist() == pytest.approx([0, 1, 0.5, 0.5, 0.5, 0.5])


def test_luck_is_told_from_what_neighbors_gave() -> None:
    random = np.random.default_rng(0)
    trials = [
        trial(number, curve(number / 25, random.normal(0, 0.005)), dropout=number / 25, filters=8)
        for number in range(20)
    ]
    lucky = trial(20, curve(0.1, 0.12), dropout=0.1, filters=8)
    mean, covariance = (model := ValueModel(space(), [*trials, lucky])).ends(model.trials)
    assert smoothed_best([report.metrics["average_precision"] or 0.0 for report in lucky.reports]) > 0.8
    assert 0.70 < mean[20] < 0.75
    assert model.trials[int(mean.argmax())].number in range(8, 13)
    assert model.noise < 0.04**2
    assert np.all(np.linalg.eigvalsh(covariance) > -1e-9)


def test_a_trial_that_was_stopped_is_told_by_those_that_went_on() -> None:
    trials = [
        trial(number, curve(number / 25, 0.0, reports=9 if number % 2 else 2), dropout=number / 25, filters=8)
        for number in range(20)
    ]
    mean, _ = (model := ValueModel(space(), trials)).ends(model.trials)
    assert mean[10] == pytest.approx(0.8, abs=0.03)
    assert max(report.metrics["average_precision"] or 0.0 for report in trials[10].reports) < 0.66


def test_a_further_training_moves_its_trial_and_that_of_a_fold_only_against_the_others_there() -> None:
    trials = [trial(number, [0.5 + 0.1 * number], dropout=0.8 * number, filters=8) for number in range(2)]
    model = ValueModel(space(), trials)
    before, _ = model.ends(trials)
    again = trial(0, curve(0.4, -0.3), dropout=0.0, filters=8)
    alone, _ = model.ends(trials, [model.again(again, 0)])
    on_fold, _ = model.ends(trials, [model.again(again, 1)])
    assert alone[0] < before[0] - 0.01
    assert before[0] - on_fold[0] < (before[0] - alone[0]) / 2


def test_the_lowest_is_best_where_the_objective_says_so() -> None:
    lowest = space()
    lowest = lowest.with_objective(lowest.objective.model_copy(update={"mode": "min"}))
    model = ValueModel(lowest, [trial(0, [0.5], dropout=0.0), trial(1, [0.1], dropout=0.8)])
    mean, _ = model.ends(model.trials)
    assert mean[1] > mean[0]
    assert mean[1] < 0


def test_what_failed_or_said_nothing_tells_nothing() -> None:
    trials = [trial(0, [0.5], dropout=0.1), trial(1, [0.9], "failed", dropout=0.2), trial(2, [math.nan], dropout=0.3)]
    assert [one.number for one in ValueModel(space(), trials).trials] == [0]


def test_of_many_trials_the_best_are_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value_model, "_MOST", 40)
    trials = [trial(number, [number / 1000], dropout=0.8 * number / 50) for number in range(45)]
    model = ValueModel(space(), trials)
    assert [one.number for one in model.trials] == list(range(5, 45))
