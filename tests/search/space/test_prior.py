from __future__ import annotations

import statistics
from typing import Any

import pytest

from ich_ray.errors import SpaceError
from ich_ray.search.space.prior import believed, share_of_beliefs
from ich_ray.search.space.space import Prior
from ich_ray.search.space.yaml_file import SearchSpace, parse_space

BUDGET = {"images": 900, "report_every": 100, "first_rung": 100}


def space(parameters: dict[str, Any], **keys: Any) -> SearchSpace:
    return parse_space({"name": "x", "budget": BUDGET, "parameters": parameters, **keys}, "x.yaml")


RATE = {"loguniform": [1e-5, 1e-1]}


@pytest.mark.parametrize(
    ("name", "written", "prior"),
    [
        ("learning_rate", {**RATE, "prior": 3e-4, "width": "1 decade"}, (3e-4, 1.0)),
        ("learning_rate", {**RATE, "prior": 3e-4, "width": "0.5 decades"}, (3e-4, 0.5)),
        ("learning_rate", {**RATE, "prior": 3e-4, "width": 2}, (3e-4, 2.0)),
        ("learning_rate", {**RATE, "prior": 1e-5}, (1e-5, 1.0)),
        ("dropout", {"uniform": [0.0, 0.6], "prior": 0.2, "width": 0.1}, (0.2, 0.1)),
        ("filters", {"int": [8, 16], "prior": 16}, (16, 2.0)),
        ("optimizer", {"choice": ["sgd", "adam", "adamw"], "prior": "adamw", "weight": 0.6}, ("adamw", 0.6)),
        ("optimizer", {"choice": ["sgd", "adam"], "prior": "adam"}, ("adam", 0.75)),
        ("decay_norms", {"choice": [True, False], "prior": False, "weight": 0.9}, (False, 0.9)),
    ],
)
def test_a_prior_is_read(name: str, written: dict[str, Any], prior: tuple[Any, float]) -> None:
    assert space({name: written}).parameters[0].prior == Prior(prior[0], pytest.approx(prior[1]))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({**RATE, "prior": 0.5}, "prior must lie in the space (loguniform [1e-05, 0.1]), got 0.5"),
        ({**RATE, "width": 1}, "width must stand beside prior, got it alone; add prior, the likeliest value"),
        ({**RATE, "prior": 1e-3, "weight": 0.5}, "the prior of loguniform has a width, got weight; write width, or"),
        (
            {**RATE, "prior": 1e-3, "width": 5},
            "width must be above 0 and at most that of the range, 4 decades, such as `1 decade`, got 5; change it",
        ),
        (
            {**RATE, "prior": 1e-3, "width": "1 octave"},
            "width must be above 0 and at most that of the range, 4 decades",
        ),
        (
            {"uniform": [0.001, 0.1], "prior": 0.01, "width": "1 decade"},
            "width must be above 0 and at most that of the",
        ),
        ({"fixed": 0.1, "prior": 0.1}, "a prior needs choice, int, uniform or loguniform, got fixed; remove it"),
        (
            {"choice": [0.1, 0.2], "prior": 0.1, "weight": 0.4},
            "weight must be a probability above 0.5, which each of 2 values has without a prior, and below 1, got 0.4",
        ),
        ({"choice": [0.1, 0.2], "prior": 0.1, "width": 1}, "the prior of choice has a weight, got width; write weight"),
        ({"choice": [0.1, 0.2], "prior": 0.3}, "prior must lie in the space (choice [0.1, 0.2]), got 0.3"),
    ],
)
def test_a_prior_that_cannot_be_is_refused_in_a_line(written: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError) as caught:
        space({"learning_rate": written})
    assert str(caught.value).startswith(f"x.yaml: learning_rate: {message}")
    assert "\n" not in str(caught.value)


def test_what_is_listed_has_no_prior() -> None:
    belief = {"choice": ["sgd", "adam"], "prior": "adam"}
    with pytest.raises(SpaceError, match="optimizer: a grid tries every value, so that no prior counts, got one"):
        space({"optimizer": belief}, sampler="grid")
    with pytest.raises(SpaceError, match=r"candidates\[0\]: optimizer: a value must be text, a finite number"):
        parse_space({"name": "x", "budget": BUDGET, "candidates": [{"optimizer": belief}]}, "x.yaml")


def test_beliefs_fade_with_the_trials_and_are_repeated() -> None:
    assert [round(share_of_beliefs(number), 2) for number in (0, 10, 30, 90)] == [1.0, 0.5, 0.25, 0.1]
    parameters = space({"learning_rate": {**RATE, "prior": 1e-3}, "dropout": {"uniform": [0.0, 0.6]}}).parameters
    asked = {number: [believed(parameters, number, seed) for seed in range(400)] for number in (0, 30)}
    assert {tuple(one) for one in asked[0]} == {("learning_rate",)}
    assert sum(map(bool, asked[30])) == pytest.approx(100, abs=25)
    assert asked[30] == [believed(parameters, 30, seed) for seed in range(400)]


def test_draws_lie_around_what_is_believed() -> None:
    parameters = space(
        {
            "learning_rate": {**RATE, "prior": 1e-3, "width": "1 decade"},
            "filters": {"int": [8, 64], "prior": 64, "width": 10},
            "optimizer": {"choice": ["sgd", "adam", "adamw"], "prior": "adam", "weight": 0.6},
        }
    ).parameters
    drawn = [believed(parameters, 0, seed) for seed in range(2000)]
    within = statistics.fmean(10**-3.5 < float(one["learning_rate"]) < 10**-2.5 for one in drawn)
    assert within == pytest.approx(0.683, abs=0.04)
    assert all(isinstance(one["filters"], int) and 8 <= one["filters"] <= 64 for one in drawn)
    assert statistics.fmean(float(one["filters"]) for one in drawn) == pytest.approx(60, abs=0.5)
    assert statistics.fmean(one["optimizer"] == "adam" for one in drawn) == pytest.approx(0.6, abs=0.04)
    assert {one["optimizer"] for one in drawn} == {"sgd", "adam", "adamw"}
