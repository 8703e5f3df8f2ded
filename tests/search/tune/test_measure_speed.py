from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import cloudpickle

from ich_ray.errors import IchRayError, TrialFailure
from ich_ray.model.architectures import ARCHITECTURES
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.search.plan import cost_model
from ich_ray.search.plan.constraint_check import ConstraintCheck
from ich_ray.search.preflight import Slots
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.search.tune import measure_speed
from tests.extending.test_architecture import Pooled
from tests.prepared import make_dataset

SPACE = {
    "name": "outside",
    "budget": {"images": 200, "report_every": 100, "first_rung": 200},
    "parameters": {
        "architecture": "pooled",
        "cells": {"choice": [2, 4]},
    },
    "constraints": {"max_ms_per_slice": 1000},
}


class Task:
    """A function that runs in another process, where nothing is registered yet."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def remote(self, *arguments: Any) -> dict[str, float]:
        travelling = cloudpickle.dumps(arguments)
        ARCHITECTURES.registered.clear()
        measured: dict[str, float] = self._function(*pickle.loads(travelling))  # noqa: S301
        return measured


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ARCHITECTURES, "registered", {})
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(measure_speed.ray, "remote", lambda **_: Task)
    monkeypatch.setattr(measure_speed.ray, "get", lambda found: found)


@pytest.mark.usefixtures("elsewhere")
def test_networks_that_were_registered_here_are_measured_there() -> None:
    ARCHITECTURES.register("pooled", Pooled())
    space = parse_space(SPACE, "x.yaml")
    found = measure_speed.measure_speeds(space, ConstraintCheck(space.constraints, (3, 16, 16), {}), Slots(1, 0, 1))
    assert sorted(found) == ["architecture=pooled", "architecture=pooled cells=2"]
    assert all(taken > 0 for taken in found.values())


@pytest.mark.usefixtures("elsewhere")
def test_the_cost_of_an_image_is_measured_for_each_network_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost_model, "_MEASURE_EACH_S", 0)
    data = make_dataset(tmp_path / "data", patients=20)
    source = {
        "name": "paced",
        "budget": {"images": 200, "report_every": 100, "first_rung": 200, "unit": "cost"},
        "parameters": {"blocks": {"choice": [1, 2]}, "resolution": {"choice": [0, 4096]}},
    }
    found = measure_speed.measure_costs(parse_space(source, "x.yaml"), data, Slots(1, 0, 1))
    assert sorted(found) == ["blocks=1 resolution=0", "blocks=2 resolution=0"]
    assert all(1e-7 < taken < 1 for taken in found.values())
    source["parameters"] = {"resolution": {"choice": [2048, 4096]}}
    with pytest.raises(IchRayError, match="needs networks timed, got none that fits the images and the memory"):
        measure_speed.measure_costs(parse_space(source, "x.yaml"), data, Slots(1, 0, 1))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        TrialFailure("out_of_memory", "Tried to allocate 9 GiB"),  # what a training makes of it
        TrialFailure("diverged", "a validation logit is not finite after 64 images"),
    ],
)
@pytest.mark.usefixtures("elsewhere")
def test_a_network_without_room_is_left_out(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(parameters: Hyperparameters, *_: Any) -> float:
        if parameters.batch_size == 64:
            raise error
        if parameters.batch_size == 128:
            raise RuntimeError("a defect")
        return 0.001

    monkeypatch.setattr(measure_speed, "seconds_per_image", seconds)
    data = make_dataset(tmp_path / "data", patients=20)
    source: dict[str, Any] = {
        "name": "paced",
        "budget": {"images": 200, "report_every": 100, "first_rung": 200, "unit": "cost"},
        "parameters": {"batch_size": {"choice": [32, 64]}},
    }
    found = measure_speed.measure_costs(parse_space(source, "x.yaml"), data, Slots(1, 0, 1))
    assert found == {"batch_size=32": 0.001}
    source["parameters"]["batch_size"]["choice"].append(128)
    with pytest.raises(RuntimeError, match="a defect"):
        measure_speed.measure_costs(parse_space(source, "x.yaml"), data, Slots(1, 0, 1))
