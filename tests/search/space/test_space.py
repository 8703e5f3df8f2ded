from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_ray.search.space.space import Given, RandomSuggest, is_integer, is_number, sampled
from ich_ray.search.space.yaml_file import parse_space

PARAMETERS = {
    "architecture": {"choice": ["plain_cnn", "resnet18"]},
    "blocks": {"int": [1, 4], "when": {"architecture": "plain_cnn"}},
    "filters": {"choice": [8, 16], "when": {"blocks": [2, 3]}},
    "optimizer": {"choice": ["sgd", "adam"]},
    "momentum": {"uniform": [0.5, 0.95], "when": {"optimizer": "sgd", "architecture": "resnet18"}},
    "learning_rate": {"loguniform": [1e-5, 1e-1]},
}
BUDGET = {"images": 900, "report_every": 100, "first_rung": 100}


def space(order: list[str] | None = None):  # type: ignore[no-untyped-def]
    written = {name: PARAMETERS[name] for name in order or PARAMETERS}
    return parse_space({"name": "x", "budget": BUDGET, "parameters": written}, "x.yaml")


@given(seed=st.integers(0, 10_000), order=st.permutations(list(PARAMETERS)))
def test_conditions_hold_in_any_order_of_the_file(seed: int, order: list[str]) -> None:
    drawn = space(order).draw(RandomSuggest(seed)).parameters
    assert ("blocks" in drawn) == (drawn["architecture"] == "plain_cnn")
    assert ("filters" in drawn) == (drawn.get("blocks") in {2, 3})
    assert ("momentum" in drawn) == (drawn["optimizer"] == "sgd" and drawn["architecture"] == "resnet18")
    assert 1e-5 <= drawn["learning_rate"] <= 1e-1
    assert drawn.get("blocks", 1) in range(1, 5)


@given(seed=st.integers(0, 10_000))
def test_a_draw_can_be_drawn_again(seed: int) -> None:
    drawn = space().draw(RandomSuggest(seed))
    assert space().draw(Given(drawn.parameters)) == drawn
    assert drawn.hyperparameters.model_dump().items() >= drawn.parameters.items()


def test_the_same_seed_draws_the_same() -> None:
    assert space().draw(RandomSuggest(7)) == space().draw(RandomSuggest(7))
    assert space().draw(RandomSuggest(7)) != space().draw(RandomSuggest(8))


@pytest.mark.parametrize(
    "change", [{"learning_rate": 0.5}, {"architecture": "resnet50"}, {"blocks": 5}, {"blocks": True}, {"blocks": 1.5}]
)
def test_a_given_value_outside_the_space_is_told(change: dict[str, object]) -> None:
    inside = {"architecture": "plain_cnn", "blocks": 1, "optimizer": "adam", "learning_rate": 0.001}
    assert space().draw(Given(inside)).parameters == inside
    with pytest.raises(LookupError):
        space().draw(Given(inside | change))  # type: ignore[arg-type]


def test_every_branch_is_reached() -> None:
    drawn = [space().draw(RandomSuggest(seed)).parameters for seed in range(200)]
    assert {one["architecture"] for one in drawn} == {"plain_cnn", "resnet18"}
    assert {one.get("blocks") for one in drawn} == {None, 1, 2, 3, 4}


def test_what_may_not_fit_a_dataset_is_among_the_sampled() -> None:
    values = list(range(100, 30100, 100))
    parameters = {**PARAMETERS, "training_slices": {"choice": values}}
    found = sampled(parse_space({"name": "x", "budget": BUDGET, "parameters": parameters}, "x.yaml"))
    assert {trial.training_slices for trial in found} == set(values)
    assert {(trial.architecture, trial.blocks) for trial in found} >= {("plain_cnn", blocks) for blocks in range(1, 5)}


def test_a_point_is_drawn_with_what_it_leaves_open() -> None:
    point = {"architecture": "resnet18", "learning_rate": 0.01}
    drawn = [space().draw(RandomSuggest(seed, point)).parameters for seed in range(20)]
    assert all(one.items() >= point.items() for one in drawn)
    assert {one["optimizer"] for one in drawn} == {"sgd", "adam"}


@pytest.mark.parametrize(
    ("value", "number", "integer"),
    [
        (1, True, True),
        (1.0, True, False),
        (True, False, False),
        (10**300, True, True),
        (10**400, False, False),
        (float("nan"), False, False),
        (float("-inf"), False, False),
        ("1", False, False),
    ],
)
def test_a_number_is_one_that_a_float_can_hold(value: object, number: bool, integer: bool) -> None:
    assert (is_number(value), is_integer(value)) == (number, integer)
