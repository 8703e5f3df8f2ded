from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from ray import cloudpickle

from ich_ray.model.architectures import ARCHITECTURES
from ich_ray.search.plan.constraint_check import ConstraintCheck
from ich_ray.search.preflight import Slots
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.search.tune import measure_speed
from tests.extending.test_architecture import Pooled

SPACE = {
    "name": "outside",
    "budget": {"images": 200, "report_every": 100, "first_rung": 200},
    "parameters": {
        "architecture": "pooled",
        "cells": {"choice": [2, 4]},
    },
    "constraints": {"max_ms_per_slice": 1000},
}


def test_networks_that_were_registered_here_are_measured_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ARCHITECTURES, "registered", {})
    ARCHITECTURES.register("pooled", Pooled())
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)

    class Task:
        def __init__(self, function: Any) -> None:
            self._function = function

        def remote(self, *arguments: Any) -> dict[str, float]:
            travelling = cloudpickle.dumps(arguments)
            ARCHITECTURES.registered.clear()  # another process
            measured: dict[str, float] = self._function(*pickle.loads(travelling))  # noqa: S301
            return measured

    monkeypatch.setattr(measure_speed.ray, "remote", lambda **_: Task)
    monkeypatch.setattr(measure_speed.ray, "get", lambda found: found)
    space = parse_space(SPACE, "x.yaml")
    found = measure_speed.measure_speeds(space, ConstraintCheck(space.constraints, (3, 16, 16), {}), Slots(1, 0, 1))
    assert sorted(found) == ["architecture=pooled", "architecture=pooled cells=2"]
    assert all(taken > 0 for taken in found.values())
