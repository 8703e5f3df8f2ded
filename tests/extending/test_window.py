"""A window from outside: the narrow one in which early infarcts show, by name in `prepare --windows`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ich_ray.ct.dicom import read_slice
from ich_ray.ct.windowing import WINDOWS, WindowSpec
from ich_ray.data.prepare.run import prepare
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.runtime import connected
from ich_ray.training.loop import TrainingBudget, train
from tests.data.folders import paths, write_cohort


def test_a_trial_sees_slices_through_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICH_RAY_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setattr(WINDOWS, "registered", {})  # for this test alone
    WINDOWS.register("stroke", WindowSpec(name="stroke", center_hu=32, width_hu=8))
    labels = write_cohort(tmp_path / "images")
    with connected(cpus=2):
        dataset = prepare(tmp_path / "images", labels, tmp_path / "data", windows="brain,stroke", size=32)
    hu = read_slice(tmp_path / "images" / paths(dataset)[0]).hu()
    stroke = dataset.gather(np.array([0]))[0, 1]
    assert stroke.min() == 0
    assert stroke.max() == 255
    assert np.array_equal(stroke, np.floor(255 * np.clip((hu - 28) / 8, 0, 1) + 0.5))
    roles = (dataset.role("train"), dataset.role("validation"))
    (end,) = train(Hyperparameters(filters=4), *roles, budget=TrainingBudget(64, 64), seed=0)
    assert end.state().tensors["weights.body.blocks.block1.0.weight"].shape == (4, 2, 3, 3)
