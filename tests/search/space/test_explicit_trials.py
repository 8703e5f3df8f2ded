from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ich_ray.errors import ConfigError, SpaceError
from ich_ray.search import checked_request, run
from ich_ray.search.ledger import Ledger
from ich_ray.search.plan.expected import images_at_most
from ich_ray.search.space.space import Given, RandomSuggest, SearchSpace
from ich_ray.search.space.yaml_file import load_space, parse_space
from ich_ray.search_records import SearchRecord
from tests.search.tune.test_sampler import end, sampler

BUDGET = {"images": 900, "report_every": 100, "first_rung": 100}
GRID = """
optimizer: {choice: [sgd, adam]}
momentum: {choice: [0.5, 0.9], when: {optimizer: sgd}}
blocks: {int: [1, 3]}
filters: {fixed: 8}
"""
# Each parameter exists only by the grace of the one before: conditions of depth 3.
CHAIN = """
weight_decay: {uniform: [0.0, 0.1], when: {momentum: 0.9}}
momentum: {choice: [0.5, 0.9], when: {optimizer: sgd}}
optimizer: {choice: [sgd, adam], when: {architecture: plain_cnn}}
architecture: {choice: [plain_cnn, resnet18]}
"""


def space(parameters: str = "", /, **keys: Any) -> SearchSpace:
    source = {"name": "x", "budget": BUDGET} | ({"parameters": yaml.safe_load(parameters)} if parameters else {})
    return parse_space(source | keys, "x.yaml")


def test_a_grid_is_every_combination_that_exists() -> None:
    listed = space(GRID, sampler="grid").listed
    assert listed is not None
    expected = [
        {"optimizer": optimizer, **momentum, "blocks": blocks, "filters": 8}
        for optimizer, momentum in [("sgd", {"momentum": 0.5}), ("sgd", {"momentum": 0.9}), ("adam", {})]
        for blocks in (1, 2, 3)
    ]
    assert sorted(map(str, listed)) == sorted(str({k: one[k] for k in listed_order(one)}) for one in expected)
    assert list(listed) != expected, "any beginning of a grid must cover all of it"
    assert space(GRID, sampler="grid").listed == listed
    assert space(GRID).listed is None


def listed_order(one: dict[str, Any]) -> list[str]:
    """Parents come before children, else the order is that of the file."""
    return [name for name in ("optimizer", "blocks", "filters", "momentum") if name in one]


def test_the_points_of_a_grid_come_first_and_once() -> None:
    point = {"optimizer": "adam", "blocks": 2, "filters": 8}
    listed = space(GRID, sampler="grid", points=[point]).listed
    assert listed is not None
    assert (listed[0], listed.count(point), len(listed)) == (point, 1, 9)


def test_candidates_are_run_as_they_stand_with_the_defaults_of_what_others_name() -> None:
    found = space(candidates=[{"learning_rate": 0.01, "optimizer": "sgd", "momentum": 0.5}, {"learning_rate": 0.001}])
    assert found.listed == (
        {"learning_rate": 0.01, "optimizer": "sgd", "momentum": 0.5},
        {"learning_rate": 0.001, "optimizer": "adam", "momentum": 0.9},
    )
    for candidate in found.listed:
        assert found.draw(Given(candidate)).parameters == candidate


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"candidates": []}, "x.yaml: candidates: list should have at least 1 item"),
        ({}, "x.yaml: parameters: must be given, got nothing; add it, or candidates"),
        (
            {"candidates": [{"blocks": 2}], "parameters": {"blocks": 2}},
            "x.yaml: parameters: parameters or candidates must be given, got both; remove one",
        ),
        ({"candidates": [{"blocks": 2}], "sampler": "grid"}, "x.yaml: sampler: sampler or candidates must be given"),
        (
            {"candidates": [{"blocks": 2}, {"blcks": 2}]},
            "x.yaml: candidates[1]: must be a parameter of the model, got 'blcks' (did you mean 'blocks'?)",
        ),
        (
            {"candidates": [{"blocks": 2}, {"blocks": 9}]},
            "x.yaml: candidates[1]: blocks: input should be less than or equal to 6, got 9",
        ),
        (
            {"candidates": [{"blocks": 2, "filters": 16}, {"blocks": 2}]},
            "x.yaml: candidates[1]: every candidate must be listed once, got candidates[0] again",
        ),
        ({"candidates": [{}]}, "x.yaml: candidates[0]: must name at least one parameter, got none; remove it"),
        ({"parameters": {"blocks": 2}, "sampler": "gird"}, "x.yaml: sampler: input should be 'tpe' or 'grid'"),
        (
            {"parameters": {"dropout": {"uniform": [0, 0.5]}}, "sampler": "grid"},
            "x.yaml: dropout: a grid needs choice, int or fixed, got uniform; list the values as a choice",
        ),
        (
            {"parameters": {"filters": {"int": [1, 512]}, "dense": {"int": [0, 4096]}}, "sampler": "grid"},
            "x.yaml: parameters: a grid must have at most 10,000 combinations, got more; list fewer values",
        ),
        (
            {"parameters": yaml.safe_load(GRID), "sampler": "grid", "points": [{"optimizer": "sgd"}]},
            "x.yaml: points[0]: must be one whole combination of the grid, got {'optimizer': 'sgd'}; give every",
        ),
        (
            {"parameters": {"blocks": {"int": [1, 3]}}, "sampler": "grid", "points": [{"blocks": 2}, {"blocks": 2}]},
            "x.yaml: points[1]: every point of a grid must be listed once, got points[0] again; remove one",
        ),
        (
            {"candidates": [{"blocks": 2}, {"architecture": "resnet18", "unfreeze_from": "layer5"}]},
            "x.yaml: candidates[1]: unfreeze_from must be a stage of resnet18 (all, stem, layer1, ",
        ),
        (
            {"candidates": [{"weights": "imagenet"}]},
            "x.yaml: candidates[0]: weights imagenet must stand beside a family of torchvision or timm, got plain_cnn",
        ),
    ],
)
def test_a_list_that_cannot_be_run_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError) as caught:
        space(**keys)
    assert message in str(caught.value)


def test_trials_are_counted_before_anything_starts() -> None:
    grid = space(GRID, sampler="grid")
    with pytest.raises(ConfigError, match="--trials: the space x lists 9 trials and no more, got 10; leave it out"):
        checked_request._check_listed(grid, 10, ())
    with pytest.raises(ConfigError, match="--warm-start other: the trials of the space x are listed, so that nothing"):
        checked_request._check_listed(grid, 9, ("other",))
    checked_request._check_listed(grid, 9, ())
    checked_request._check_listed(space(GRID), 10, ("other",))


def test_the_ledger_gets_the_list_exactly_and_a_resumed_search_the_rest(tmp_path: Path) -> None:
    grid = space(GRID, sampler="grid")
    record = SearchRecord(
        name="x", space=grid.source, dataset="", fingerprint="f" * 32, prevalence=0.1, seed=3, trials=9, versions={},
        created=0.0,
    )  # fmt: skip
    ledger = Ledger.create(tmp_path / "s", record)
    for _ in range(3):  # three drivers, each of which ends three trials and starts one
        ledger = Ledger.open(ledger.files.root)
        suggest = sampler(ledger, concurrent=1, listed=run._listed(grid, ledger, 9))
        for _ in range(3):
            if (config := suggest.suggest("a")) != "FINISHED":
                end(ledger, config["number"], "completed", [0.3])
                suggest.on_trial_complete("a", {})
        suggest.suggest("b")
    assert suggest.suggest("c") == "FINISHED"
    assert [trial.parameters for trial in ledger.trials.values()] == list(grid.listed or ())
    assert suggest.known() == []


def test_conditions_hold_to_any_depth() -> None:
    chain = space(CHAIN)
    assert [spec.name for spec in chain.parameters] == ["architecture", "optimizer", "momentum", "weight_decay"]
    drawn = [chain.draw(RandomSuggest(seed)).parameters for seed in range(200)]
    for one in drawn:
        assert ("optimizer" in one) == (one["architecture"] == "plain_cnn")
        assert ("momentum" in one) == (one.get("optimizer") == "sgd")
        assert ("weight_decay" in one) == (one.get("momentum") == 0.9)
    assert {len(one) for one in drawn} == {1, 2, 3, 4}
    point = {"architecture": "plain_cnn", "optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.05}
    assert space(CHAIN, points=[point]).points == (point,)
    with pytest.raises(SpaceError, match=r"weight_decay exists only when momentum=0.9, got another value or none"):
        space(CHAIN, points=[point | {"momentum": 0.5}])
    grid = space(CHAIN.replace("uniform: [0.0, 0.1]", "choice: [0.0, 0.1]"), sampler="grid").listed
    assert len(grid or ()) == 5  # resnet18; adam; sgd 0.5; sgd 0.9 with each weight decay


def test_optuna_draws_conditions_to_any_depth(tmp_path: Path) -> None:
    chain = space(CHAIN)
    record = SearchRecord(
        name="x", space=chain.source, dataset="", fingerprint="f" * 32, prevalence=0.1, seed=0, trials=40, versions={},
        created=0.0,
    )  # fmt: skip
    ledger = Ledger.create(tmp_path / "s", record)
    suggest = sampler(ledger, wanted=40, concurrent=1)
    for number in range(40):
        drawn = suggest.suggest("a")["parameters"]
        assert ("weight_decay" in drawn) == (drawn.get("momentum") == 0.9)
        end(ledger, number, "completed", [len(drawn) / 10 + number / 1000])
        suggest.on_trial_complete("a", {})
    again = sampler(Ledger.open(ledger.files.root)).known()
    assert [trial.params for trial in again] == [trial.params for trial in suggest.known()]
    assert max(len(trial.params) for trial in again) == 4


SHORT = "budget: {images: 400, report_every: 100, first_rung: 400}"


def listed(tmp_path: Path, *candidates: str) -> SearchSpace:
    path = tmp_path / "space.yaml"
    path.write_text(f"name: x\n{SHORT}\ncandidates:\n" + "".join(f"  - {{{one}}}\n" for one in candidates))
    return load_space(path)


def test_a_candidate_may_end_before_the_budget(tmp_path: Path) -> None:
    space = listed(tmp_path, "epochs: 2, training_slices: 100", "epochs: 0, training_slices: 50")
    assert images_at_most(space, 2) == 200 + 400
    assert images_at_most(space, 1) == 200


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (
            "convolutions: 3/2",
            "convolutions must stand beside architecture stacked_cnn, which alone reads it, got plain",
        ),
        ("architecture: stacked_cnn, convolutions: 3x2", "string should match pattern"),
        ("epochs: 3", "epochs counts passes over training_slices, which must be given with it"),
        ("epochs: 3, training_slices: 50", "must be a multiple of report_every (100)"),
        ("epochs: 5, training_slices: 100", "at most budget.images (400), got 5 x 100"),
    ],
)
def test_conditions_between_values(tmp_path: Path, candidate: str, message: str) -> None:
    with pytest.raises(SpaceError, match=re.escape(message)) as caught:
        listed(tmp_path, candidate)
    assert str(caught.value).startswith("space.yaml: candidates[0]: ")


def test_what_one_architecture_reads_needs_a_condition(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        f"name: x\n{SHORT}\nparameters:\n  architecture: {{choice: [plain_cnn, stacked_cnn]}}\n  dense_layers: 2\n"
    )
    with pytest.raises(SpaceError, match=r"parameters: dense_layers must stand beside .* `when: {architecture"):
        load_space(path)
