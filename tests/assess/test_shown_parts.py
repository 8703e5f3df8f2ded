"""A bundle that sees heads: calibrated, opened, and asked at another site, on the same rectangles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ich_ray.assess.calibration import calibrate
from ich_ray.assess.evaluate import evaluate
from ich_ray.assess.recalibration import recalibrate
from ich_ray.bundle.bundle import load_bundle
from ich_ray.errors import ConfigError
from ich_ray.storage import read_table
from tests.prepared import make_dataset, with_views
from tests.searched import PARAMETERS, make_bundle, make_search


def test_every_stage_shows_the_same_parts(tmp_path: Path) -> None:
    made = make_dataset(tmp_path / "dataset")
    corners = np.random.default_rng(0).uniform(0, 0.3, (len(made), 2))
    dataset = with_views(made, np.concatenate([corners, corners + 0.6], 1), np.full(len(made), 250.0))
    parameters = PARAMETERS.model_copy(update={"crop": "head", "resolution": 24})
    files = make_search(tmp_path / "search", dataset, parameters)
    make_bundle(files, dataset, parameters)
    calibrate(files.root, method="platt")
    evaluate(files.root)
    bundle, slices = load_bundle(files.bundle), dataset.role("test")
    told = np.asarray(read_table(files.final / "predictions.parquet")["probability"].to_numpy())
    shown = bundle.rectangles(slices)
    assert shown is not None
    assert len(np.unique(shown, axis=0)) > 3
    assert told == pytest.approx(bundle.probabilities(bundle.inputs(slices), shown))
    site = make_dataset(tmp_path / "site", patients=16, seed=7)
    with pytest.raises(ConfigError, match="crop: head needs the place of the head in slices, got none in"):
        recalibrate(files.bundle, site.files.root, tmp_path / "other")
