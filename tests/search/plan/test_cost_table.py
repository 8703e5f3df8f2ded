from __future__ import annotations

import math
from typing import Any

import pytest

from ich_ray.errors import ConfigError
from ich_ray.search.plan.cost_table import CostTable, networks_to_time, parameters_of_speed
from ich_ray.search.space.space import SearchSpace
from ich_ray.search.space.yaml_file import parse_space


def space(**parameters: Any) -> SearchSpace:
    budget = {"images": 900, "report_every": 100, "first_rung": 100, "unit": "cost"}
    return parse_space({"name": "x", "budget": budget, "parameters": parameters}, "x.yaml")


MIXED = space(
    dropout={"uniform": [0.0, 0.6]},
    batch_size={"choice": [32, 64]},
    architecture={"choice": ["plain_cnn", "resnet18"]},
    blocks={"int": [1, 2], "when": {"architecture": "plain_cnn"}},
    weights={"choice": ["none", "imagenet"], "when": {"architecture": "resnet18"}},
    learning_rate={"loguniform": [1e-5, 1e-1]},
    optimizer={"choice": ["sgd", "adam"]},
)
SECONDS = {
    "architecture=plain_cnn batch_size=32 blocks=1": 0.001,
    "architecture=plain_cnn batch_size=64 blocks=1": 0.001,
    "architecture=plain_cnn batch_size=32 blocks=2": 0.004,
    "architecture=plain_cnn batch_size=64 blocks=2": 0.004,
    "architecture=resnet18 batch_size=32": 0.016,
    "architecture=resnet18 batch_size=64": 0.008,
}


def test_networks_are_timed_by_what_decides_their_speed() -> None:
    assert parameters_of_speed(MIXED) == ["architecture", "batch_size", "blocks"]
    networks = networks_to_time(MIXED)
    assert sorted(networks) == sorted(SECONDS)
    small = networks["architecture=plain_cnn batch_size=64 blocks=2"]
    assert (small.architecture, small.batch_size, small.blocks, small.dropout) == ("plain_cnn", 64, 2, 0.3)
    assert networks["architecture=resnet18 batch_size=32"].weights == "none"


def test_what_makes_too_many_networks_is_left_out() -> None:
    many = space(
        filters={"int": [8, 64], "when": {"architecture": "plain_cnn"}},
        batch_size={"choice": [16, 32, 64, 128]},
        resolution={"choice": [0, 16, 32]},
        architecture={"choice": ["plain_cnn", "resnet18", "resnet34"]},
    )
    assert parameters_of_speed(many) == ["architecture", "resolution", "batch_size"]
    networks = networks_to_time(many)
    assert len(networks) == 36
    assert networks["architecture=plain_cnn batch_size=16 resolution=0"].filters == 36


def test_a_range_too_long_to_time_is_left_out_and_others_are_weighed_all_the_same() -> None:
    """By its two ends alone no draw between them would be known, nor what else it has."""
    long = space(
        dense={"int": [0, 4096], "when": {"architecture": "plain_cnn"}},
        blocks={"int": [1, 4], "when": {"architecture": "plain_cnn"}},
        batch_size={"choice": [16, 32, 64, 128]},
        architecture={"choice": ["plain_cnn", "resnet18", "resnet34"]},
    )
    assert parameters_of_speed(long) == ["architecture", "batch_size", "blocks"]
    assert len(networks_to_time(long)) == 4 * (4 + 2)


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"cost needs parameters that decide the speed of a network.*the space x;"):
        networks_to_time(space(dropout={"uniform": [0.0, 0.6]}, architecture={"fixed": "resnet18"}))


def test_a_value_costs_what_it_does_beside_what_is_drawn() -> None:
    table = CostTable.of(MIXED, SECONDS)
    assert str(table) == "6 networks take 1 to 16 ms an image"

    def seconds(drawn: dict[str, Any], name: str, value: Any) -> float:
        return math.exp(table.log_seconds(drawn, name, value))

    assert seconds({}, "architecture", "plain_cnn") == pytest.approx(0.002)  # geometric means
    assert seconds({"batch_size": 64}, "architecture", "resnet18") == pytest.approx(0.008)
    assert seconds({"architecture": "plain_cnn", "dropout": 0.1}, "blocks", 2) == pytest.approx(0.004)
    assert (table.decides("blocks"), table.decides("dropout")) == (True, False)


def test_a_network_without_a_time_is_neither_sought_nor_shunned() -> None:
    there = {
        "architecture=plain_cnn batch_size=32 blocks=1": 0.001,
        "architecture=plain_cnn batch_size=32 blocks=2": 0.004,
    }
    table = CostTable.of(MIXED, there | {"architecture=gone": 1.0})
    assert len(table.rows) == 2
    assert math.exp(table.log_seconds({}, "architecture", "resnet18")) == pytest.approx(0.002)
