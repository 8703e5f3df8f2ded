from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as sklearn_metrics

from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError
from ich_ray.final import evaluate as module
from ich_ray.final.calibration import calibrate
from ich_ray.final.evaluate import Evaluation, evaluate
from ich_ray.storage import SearchFiles, locate, read_json


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESAMPLES", 100)


@pytest.fixture
def search(retrained: SearchFiles, tmp_path: Path) -> SearchFiles:
    """A search of its own for each test, as each opening leaves a trace."""
    shutil.copytree(str(retrained.root), tmp_path / "search")
    return SearchFiles(locate(tmp_path / "search"))


def test_it_refuses_before_calibration(search: SearchFiles) -> None:
    with pytest.raises(ConfigError, match="run `ich-ray calibrate` first"):
        evaluate(search.root)
    assert read_json(search.bundle / "card.json")["openings"] == 0


def test_figures_stand_in_the_files(search: SearchFiles, dataset: PreparedDataset) -> None:
    calibrate(search.root)
    found = evaluate(search.root)
    assert Evaluation.model_validate(read_json(search.evaluation)) == found
    table = pq.read_table(str(search.predictions)).to_pydict()
    assert list(table) == ["slice_id", "patient", "label", "probability"]
    test = dataset.role("test")
    assert table["slice_id"] == dataset.column("slice_id")[test.rows].tolist()
    labels, probabilities = np.array(table["label"]), np.array(table["probability"])
    assert found.metrics["average_precision"].value == pytest.approx(
        sklearn_metrics.average_precision_score(labels, probabilities)
    )
    assert found.metrics["roc_auc"].value == pytest.approx(sklearn_metrics.roc_auc_score(labels, probabilities))
    assert found.metrics["log_loss"].value == pytest.approx(sklearn_metrics.log_loss(labels, probabilities))
    point = found.operating_points["f2"]
    tn, fp, fn, tp = sklearn_metrics.confusion_matrix(labels, probabilities >= point.threshold).ravel()
    assert point.confusion.model_dump() == {"tp": tp, "fp": fp, "fn": fn, "tn": tn}
    assert point.sensitivity.value == pytest.approx(tp / (tp + fn))
    assert point.f2.value == pytest.approx(
        sklearn_metrics.fbeta_score(labels, probabilities >= point.threshold, beta=2)
    )
    for estimate in (*found.metrics.values(), point.sensitivity, point.specificity, point.ppv, point.accuracy):
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low <= (estimate.value or 0) <= estimate.high
    assert found.floors["average_precision"] == pytest.approx(found.prevalence)
    assert not found.at_chance
    assert found.notes[0].endswith("validation positives would part them at 0.03")
    assert "too few to rank models" in found.notes[0]
    card = read_json(search.bundle / "card.json")
    assert card["test"]["metrics"] == read_json(search.evaluation)["metrics"]


def test_each_opening_is_counted_before_a_label_is_read(search: SearchFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrate(search.root)
    assert evaluate(search.root).opened == 1
    second = evaluate(search.root)
    assert second.opened == 2
    assert any("opened 2 times" in note for note in second.notes)

    def broken(self: PreparedDataset, role: str) -> None:
        raise RuntimeError(role)

    monkeypatch.setattr(PreparedDataset, "role", broken)
    with pytest.raises(RuntimeError, match="test"):
        evaluate(search.root)
    card = read_json(search.bundle / "card.json")
    assert (card["openings"], card["test"]) == (3, None)


def test_a_model_at_chance_is_called_so(search: SearchFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrate(search.root)
    rng = np.random.default_rng(0)
    monkeypatch.setattr(
        "ich_ray.final.bundle.predict_logits", lambda network, slices, device: rng.normal(size=len(slices))
    )
    found = evaluate(search.root)
    assert found.at_chance
    assert any(note.startswith("At chance") for note in found.notes)


def test_undefined_figures_are_null(search: SearchFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrate(search.root)
    monkeypatch.setattr(PreparedDataset, "label", lambda self, name: np.zeros(len(self), np.float32))
    found = evaluate(search.root)
    assert found.metrics["average_precision"].value is None
    assert found.operating_points["f2"].sensitivity.value is None
    assert found.at_chance
