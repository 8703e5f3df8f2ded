from __future__ import annotations

from typing import Any

import pytest
import torch

from ich_ray.errors import ConfigError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.search.plan.constraint_check import (
    ConstraintCheck,
    measured_ms,
    networks_to_measure,
    refused_share,
    speed_key,
)
from ich_ray.search.plan.cost_model import trial_memory
from ich_ray.search.space.constraints import Constraints, Refusal
from ich_ray.search.space.yaml_file import SearchSpace, parse_space

SHAPE = (3, 32, 32)
SMALL = Hyperparameters(blocks=1, filters=4, dense=0)


def space(parameters: dict[str, Any], **constraints: Any) -> SearchSpace:
    budget = {"images": 900, "report_every": 100, "first_rung": 100}
    source = {"name": "x", "budget": budget, "parameters": parameters, "constraints": constraints}
    return parse_space(source, "x.yaml")


def check(milliseconds: dict[str, float] | None = None, **limits: float) -> ConstraintCheck:
    return ConstraintCheck(Constraints(**limits), SHAPE, milliseconds or {})


def test_parameters_are_counted_without_a_network() -> None:
    # Torchvision's 11,689,512 less its 1,000 outputs of 513 weights each, and one output.
    resnet = Hyperparameters(architecture="resnet18")
    assert check(max_parameters=11_177_025)(resnet) is None
    assert check(max_parameters=11_177_024)(resnet) == Refusal("max_parameters", pytest.approx(1 / 11_177_024))
    assert check(max_parameters=11_177_025)(resnet.model_copy(update={"unfreeze_from": "head"})) is None


def test_memory_is_that_of_the_plan() -> None:
    total = trial_memory(SMALL, SHAPE).total / 1e9
    assert check(max_gpu_gb=total)(SMALL) is None
    refused = check(max_gpu_gb=total / 2)(SMALL)
    assert refused == Refusal("max_gpu_gb", pytest.approx(1.0))


def test_milliseconds_are_those_that_were_measured() -> None:
    assert check({speed_key(SMALL): 4.0}, max_ms_per_slice=5)(SMALL) is None
    assert check({speed_key(SMALL): 6.0}, max_ms_per_slice=5)(SMALL) == Refusal("max_ms_per_slice", pytest.approx(0.2))
    assert check(max_ms_per_slice=5)(SMALL) is None


def test_what_fits_no_image_is_left_to_fail() -> None:
    assert check(max_parameters=1)(Hyperparameters(resolution=4096)) is None


def test_a_key_names_what_the_time_depends_on() -> None:
    assert speed_key(Hyperparameters()) == "defaults"
    told = Hyperparameters(architecture="resnet18", weights="/a/b", unfreeze_from="head", dropout=0.1, batch_size=16)
    assert speed_key(told) == "architecture=resnet18"
    assert speed_key(SMALL) == "blocks=1 dense=0 filters=4"


def test_each_network_that_may_be_trained_is_measured_once() -> None:
    parameters = {
        "blocks": {"int": [1, 2]},
        "architecture": {"choice": ["plain_cnn", "resnet18"]},
        "dropout": {"uniform": [0.0, 0.5]},
        "learning_rate": {"loguniform": [1e-5, 1e-1]},
    }
    parameters["blocks"]["when"] = {"architecture": "plain_cnn"}
    limited = space(parameters, max_ms_per_slice=5, max_parameters=5e6)
    found = networks_to_measure(limited, check(max_ms_per_slice=5, max_parameters=5e6))
    assert sorted(found) == ["blocks=1", "defaults"]
    many = space({"filters": {"int": [1, 300]}}, max_ms_per_slice=5)
    with pytest.raises(ConfigError, match="max_ms_per_slice measures at most 256 networks, got more in the space x;"):
        networks_to_measure(many, check(max_ms_per_slice=5))
    assert networks_to_measure(space(parameters, max_gpu_gb=1), check(max_gpu_gb=1)) == {}


def test_a_network_takes_some_time() -> None:
    assert 0 < measured_ms(SMALL, SHAPE, torch.device("cpu")) < 100


def test_the_share_of_refused_draws_is_told() -> None:
    limited = space({"architecture": {"choice": ["plain_cnn", "resnet18"]}}, max_parameters=5e6)
    share = refused_share(limited, check(max_parameters=5e6), 0.0, 1)
    assert (share.draws, share.share) == (100, share.refused["max_parameters"] / 100)
    assert 0.35 < share.share < 0.65
    by = share.refused["max_parameters"]
    assert str(share) == f"max_parameters 5,000,000: {by}% of 100 random draws are refused ({by} by max_parameters)"
