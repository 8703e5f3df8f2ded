"""Searches over what was registered from outside, of which Ray's processes know nothing by themselves."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle, tune

from ich_ray.errors import SpaceError
from ich_ray.model.architectures import ARCHITECTURES
from ich_ray.runtime import connected
from ich_ray.search.run import run_search
from ich_ray.search.space.yaml_file import load_space
from ich_ray.search.tune.trial import TrialSettings, trial_function
from tests.extending.test_architecture import Pooled
from tests.prepared import make_dataset

SPACE = """
name: outside
budget: {images: 200, report_every: 100, first_rung: 200}
parameters:
  architecture: {choice: [plain_cnn, pooled]}
  cells: {choice: [2, 4], when: {architecture: pooled}}
  batch_size: {fixed: 16}
points:
  - {architecture: pooled, cells: 4}
"""


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ARCHITECTURES, "registered", {})
    ARCHITECTURES.register("pooled", Pooled())
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path / "space.yaml"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("[2, 4]", "[2, 40]", "space.yaml: cells: input should be less than or equal to 16, got 40"),
        (
            "cells: {choice",
            "cell: {choice",
            "cell: must be a parameter of the model, got 'cell' (did you mean 'cells",
        ),
        (
            ", when: {architecture: pooled}}",
            "}",
            "parameters: cells must stand beside architecture pooled, which alone reads it, got plain_cnn; remove it, "
            "or give it `when: {architecture: pooled}`",
        ),
        (
            "  batch_size",
            "  weights: imagenet\n  batch_size",
            "weights imagenet must stand beside a family of torchvision or timm, got plain_cnn; use none",
        ),
        (
            "  batch_size",
            "  unfreeze_from: {fixed: poll, when: {architecture: pooled}}\n  batch_size",
            "unfreeze_from must be a stage of pooled (all, pool, head), got 'poll' (did you mean 'pool'?)",
        ),
        ("plain_cnn, pooled]", "plain_cnn, poled]", "got 'poled' (did you mean 'pooled'?)"),
    ],
)
def test_a_space_knows_its_fields_stages_and_weights(space: Path, before: str, after: str, message: str) -> None:
    load_space(space)
    space.write_text(SPACE.replace(before, after, 1))
    with pytest.raises(SpaceError) as caught:
        load_space(space)
    assert message in str(caught.value)


def test_a_trial_carries_what_was_registered(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(tune, "report", told.append)
    settings = TrialSettings("", "", str(space.parent), 1, 1, 1, 0)
    travelling = cloudpickle.dumps(trial_function(settings))
    ARCHITECTURES.registered.clear()  # another process
    trial = pickle.loads(travelling)  # noqa: S301
    trial({"number": 1})
    assert told[0]["failure"] == "error"  # it has nothing to train on
    assert type(ARCHITECTURES["pooled"]) is Pooled


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_of_a_search_train_it(space: Path, workers: int) -> None:
    make_dataset(space.parent / "data", patients=20)
    with connected(cpus=2):
        found = run_search(
            space.parent / "data", space, space.parent / "search", trials=1, workers_per_trial=workers, cpus_per_trial=2
        )
    assert [trial.state for trial in found.trials] == ["completed"]
    assert found.trials[0].parameters == {"architecture": "pooled", "cells": 4, "batch_size": 16}
