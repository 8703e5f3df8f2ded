"""An architecture from outside: its own field, its class, and one line that registers it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field
from torch import nn

from ich_ray.model.architectures import ARCHITECTURES, Architecture
from ich_ray.model.fields import NetworkFields, OwnFields
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.training.loop import TrainingBudget, train
from tests.prepared import make_dataset


class PooledFields(OwnFields):
    cells: int = Field(default=4, ge=1, le=16)


class Pooled(Architecture):
    """The mean of each cell of a grid, and one linear layer over them."""

    own = PooledFields

    def build(self, parameters: NetworkFields, input_shape: tuple[int, int, int]) -> nn.Module:
        cells = PooledFields.of(parameters).cells
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(cells), nn.Flatten())
        return nn.Sequential(pool, nn.Linear(input_shape[0] * cells**2, len(parameters.predicted_labels)))

    def stages(self, parameters: NetworkFields) -> dict[str, tuple[str, ...]]:
        return {"pool": ("0",), "head": ("1",)}


def test_a_trial_trains_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ARCHITECTURES, "registered", {})  # for this test alone
    ARCHITECTURES.register("pooled", Pooled())
    data = make_dataset(tmp_path / "data", patients=20)
    drawn = Hyperparameters.model_validate({"architecture": "pooled", "cells": 2})
    (end,) = train(drawn, data.role("train"), data.role("validation"), budget=TrainingBudget(64, 64), seed=0)
    assert end.state().tensors["weights.body.1.weight"].shape == (1, 3 * 2 * 2)
