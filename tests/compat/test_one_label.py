"""What the version before networks answered subtypes wrote is opened and read as it was.

tests/compat/one_label was written on 2026-11-29 by commit 188448f: a phantom of 20 patients, 5 slices each, 64 pixels,
seed 3; `prepare --size 32`, `search` of 4 trials, `retrain`, `calibrate --sensitivity 0.5`, `evaluate`, and `predict`
of every 17th slice. Its slices have pseudonyms, and its card is of format 1. Places of the machine are /moved, where
nothing lies.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ich_ray import cli
from ich_ray.assess.calibration import calibrate
from ich_ray.assess.evaluate import evaluate
from ich_ray.bundle.bundle import load_bundle
from ich_ray.data.dataset import PreparedDataset
from ich_ray.results import open_search
from ich_ray.search.audit.search_audit import audit
from tests.compat.test_v0_1_0 import flat, move

FIXTURES = Path(__file__).parent / "one_label"
_OF_KERNELS = 1e-4  # other kernels of PyTorch differ in the seventh digit of a logit


@pytest.fixture
def files(tmp_path: Path) -> Path:
    copy = tmp_path / "one_label"
    shutil.copytree(FIXTURES, copy)
    move(copy / "finished", copy / "dataset")
    return copy


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_dataset_is_whole_and_says_nothing_of_planes(files: Path) -> None:
    dataset = PreparedDataset.open(files / "dataset", verify=True)
    assert not dataset.manifest.clear
    assert "spacing_mm" not in dataset.slices.column_names
    assert [check.state for check in audit(files / "dataset").checks] == ["ok"]


def test_the_search_is_audited_and_reported(files: Path) -> None:
    assert cli.call(["audit", str(files / "finished")]) == 0
    assert len(open_search(files / "finished").trials) == 4
    assert cli.call(["report", str(files / "finished")]) == 0
    assert "Subtypes by their own probability" not in (files / "finished/final/report.html").read_text()


def test_figures_of_a_second_evaluation_are_those_of_the_first(files: Path) -> None:
    before = flat(read(files / "finished/final/evaluation.json"))
    evaluate(files / "finished")
    after = flat(read(files / "finished/final/evaluation.json"))
    for name, value in before.items():
        if name not in {"/opened", "/time"} and not name.startswith("/notes"):
            wanted = pytest.approx(value, rel=_OF_KERNELS, abs=_OF_KERNELS) if isinstance(value, float) else value
            assert after[name] == wanted, name


def test_it_is_calibrated_again_to_the_same_numbers(files: Path) -> None:
    before = read(files / "finished/final/calibration.json")
    found = calibrate(files / "finished", sensitivity=0.5)
    assert found.temperature == pytest.approx(before["temperature"], rel=_OF_KERNELS)
    assert found.subtypes == {}
    points = {name: point["threshold"] for name, point in before["operating_points"].items()}
    assert {name: point.threshold for name, point in found.operating_points.items()} == pytest.approx(points, abs=1e-4)


def test_its_bundle_predicts_what_it_predicted_in_columns_that_mean_the_same(files: Path, tmp_path: Path) -> None:
    bundle = files / "finished/final/bundle"
    assert load_bundle(bundle).card.format == 1
    table = tmp_path / "now.parquet"
    assert cli.call(["predict", str(bundle), str(files / "slices"), "--out", str(table)]) == 0
    now = {Path(row["file"]).name: row for row in pq.read_table(table).to_pylist()}
    then = {Path(row["file"]).name: row for row in read(files / "predictions.json")}
    assert now.keys() == then.keys()
    for name, row in then.items():
        assert [*now[name]][: len(row)] == [*row], "columns were added at the end"
        for column, value in row.items():
            if column != "file":
                wanted = pytest.approx(value, abs=_OF_KERNELS) if isinstance(value, float) else value
                assert now[name][column] == wanted, (name, column)
