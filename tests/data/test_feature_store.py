"""Features by key and rows: the same key may have those of several sets of rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.feature_store import FeatureFiles, Features
from ich_ray.data.folds import development_rows
from ich_ray.errors import IntegrityError
from tests.prepared import make_dataset

KEY = "5" * 24


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    return make_dataset(tmp_path / "data", patients=40, size=8)


def computed(dataset: PreparedDataset, rows: np.ndarray | None = None) -> FeatureFiles:
    """The features of a row are its number."""
    files = FeatureFiles.of(dataset, KEY, rows)
    for number in range(files.count):
        files.write(number, files.rows_of(number).astype(np.float32)[:, None])
    files.finish(dataset, (1,))
    return files


def test_features_of_any_rows_stand_beside_those_that_trials_share(dataset: PreparedDataset) -> None:
    shared, tested = development_rows(dataset), dataset.role("test").rows
    first, other, whole = computed(dataset), computed(dataset, tested), computed(dataset, np.arange(len(dataset)))
    assert first.root.name == KEY
    assert len({first.root, other.root, whole.root}) == 3
    for rows, covered, left in ((None, shared, tested), (tested, tested, shared)):
        features = Features.open(dataset, KEY, rows)
        assert features is not None
        assert features.covers(covered)
        assert not features.covers(left)
        assert features.gather(covered[::-1])[:, 0].tolist() == covered[::-1].tolist()
    everything = Features.open(dataset, KEY, np.arange(len(dataset))[::-1])
    assert everything is not None
    assert everything.covers(np.arange(len(dataset)))
    assert Features.open(dataset, KEY, tested[:-1]) is None


def test_rows_that_trials_share_are_those_of_version_0_1_0_however_they_are_given(dataset: PreparedDataset) -> None:
    files = computed(dataset, development_rows(dataset)[::-1])
    manifest = Path(str(files.manifest))
    told = json.loads(manifest.read_text())
    assert told.pop("rows_sha256") == ""
    manifest.write_text(json.dumps(told))  # as version 0.1.0 wrote it
    assert Features.open(dataset, KEY) is not None


def test_features_of_other_rows_are_refused(dataset: PreparedDataset) -> None:
    rows = dataset.role("test").rows
    manifest = Path(str(computed(dataset, rows).manifest))
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "rows_sha256": "0" * 64}))
    with pytest.raises(IntegrityError, match=r"must be of 5+, this dataset and these rows, got 5+; remove the folder"):
        Features.open(dataset, KEY, rows)
