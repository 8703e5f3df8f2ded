from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics

from ich_ray import cli
from ich_ray.assess.calibration import Calibration, calibrate
from ich_ray.assess.recalibration import recalibrate
from ich_ray.assess.tta_gain import format_gain, measure_tta
from ich_ray.bundle.bundle import load_bundle
from ich_ray.bundle.card import TtaFigure, TtaGain
from ich_ray.bundle.logit_scaling import fit_scaling
from ich_ray.data.dataset import PreparedDataset, SliceSet
from ich_ray.html_report.tables import calibration_facts
from ich_ray.statistics.bootstrap import PatientDraws
from ich_ray.statistics.metrics import log_loss
from ich_ray.storage import SearchFiles, locate, read_json, write_json
from tests.prepared import make_dataset
from tests.searched import make_bundle, make_search


@pytest.fixture(scope="module")
def search(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> SearchFiles:
    """A search whose bundle averages over the mirror image, not calibrated."""
    files = make_search(tmp_path_factory.mktemp("mirrored") / "search", dataset)
    make_bundle(files, dataset, tta=["hflip"])
    return files


def noisy(slices: SliceSet, spread: float, seed: int) -> NDArray[np.float32]:
    noise = np.random.default_rng(seed).normal(0, spread, len(slices))
    return (2 * slices.labels - 1 + noise).astype(np.float32)


def test_each_way_is_measured_with_its_own_calibration(dataset: PreparedDataset) -> None:
    slices = SliceSet(dataset, np.arange(len(dataset)))
    plain, averaged = noisy(slices, 3, seed=0), noisy(slices, 1, seed=1)
    gain = measure_tta(slices, plain, averaged, "platt", 0.5)
    drawn, weights = [], [*PatientDraws(slices.patients).weights()]
    for logits, way in ((plain, "without"), (averaged, "with_tta")):
        probabilities = fit_scaling("platt", slices.labels, logits, 0.5)(logits)
        assert getattr(gain.log_loss, way) == pytest.approx(log_loss(slices.labels, probabilities))
        expected = sklearn_metrics.average_precision_score(slices.labels, probabilities)
        assert getattr(gain.average_precision, way) == pytest.approx(expected)
        assert getattr(gain.roc_auc, way) == pytest.approx(sklearn_metrics.roc_auc_score(slices.labels, probabilities))
        drawn.append([log_loss(slices.labels, probabilities, weight) for weight in weights])
    low, high = np.quantile(np.subtract(drawn[1], drawn[0]), [0.025, 0.975])
    assert (gain.log_loss.low, gain.log_loss.high) == pytest.approx((low, high))
    assert gain.log_loss.difference == pytest.approx(gain.log_loss.with_tta - gain.log_loss.without)
    assert high < 0
    assert (gain.average_precision.low or 0) > 0
    assert (gain.roc_auc.low or 0) > 0


def test_what_changes_nothing_has_a_difference_of_nought_and_no_interval(dataset: PreparedDataset) -> None:
    slices = dataset.role("calibration")
    logits = noisy(slices, 2, seed=0)
    gain = measure_tta(slices, logits, logits, "temperature", 0.0)
    for figure in (gain.log_loss, gain.average_precision, gain.roc_auc):
        assert (figure.difference, figure.low, figure.high) == (0.0, None, None)


def test_five_patients_tell_no_interval(dataset: PreparedDataset) -> None:
    slices = SliceSet(dataset, np.arange(20))
    gain = measure_tta(slices, noisy(slices, 3, seed=0), noisy(slices, 1, seed=1), "temperature", 0.0)
    assert gain.log_loss.difference != 0
    assert (gain.log_loss.low, gain.log_loss.high) == (None, None)


def test_calibrating_measures_it_on_calibration_patients_alone(
    search: SearchFiles, dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    original = PreparedDataset.role

    def spy(self: PreparedDataset, role: str) -> SliceSet:
        opened.append(role)
        return original(self, role)  # type: ignore[arg-type]

    monkeypatch.setattr(PreparedDataset, "role", spy)
    said: list[str] = []
    monkeypatch.setattr("ich_ray.assess.calibration.say", said.append)
    found = calibrate(search.root)
    assert Calibration.model_validate(read_json(search.calibration)) == found
    assert set(opened) == {"calibration"}
    bundle, gain = load_bundle(search.bundle), found.tta_gain
    assert gain is not None
    assert bundle.card.calibrations[-1].tta_gain == gain
    slices = dataset.role("calibration")
    probabilities = bundle.calibrated(bundle.slice_logits(slices))
    assert gain.log_loss.with_tta == pytest.approx(found.log_loss_after)
    assert gain.roc_auc.with_tta == pytest.approx(sklearn_metrics.roc_auc_score(slices.labels, probabilities))
    plain = bundle.without_tta().slice_logits(slices)
    assert gain.roc_auc.without == pytest.approx(sklearn_metrics.roc_auc_score(slices.labels, plain))
    assert said[-1] == f"  test-time augmentation (hflip) on these slices: {format_gain(gain)}"
    assert [title for title, _ in calibration_facts(found) if title.startswith("Test-time")] == [
        "Test-time augmentation, log loss",
        "Test-time augmentation, average precision",
        "Test-time augmentation, ROC AUC",
    ]


def test_a_line_says_what_it_changes() -> None:
    figure = TtaFigure(without=0.5, with_tta=0.4, difference=-0.1, low=-0.2, high=0.05)
    alone = TtaFigure(without=0.5, with_tta=0.5, difference=0, low=None, high=None)
    assert format_gain(TtaGain(log_loss=figure, average_precision=alone, roc_auc=alone)) == (
        "log loss 0.5000 -> 0.4000 (-0.1000, -0.2000 to +0.0500), average precision 0.5000 -> 0.5000 (+0.0000, no "
        "interval), roc auc 0.5000 -> 0.5000 (+0.0000, no interval) (in brackets the difference, 95 % over patients)"
    )


def test_another_site_measures_it_on_its_own_patients(search: SearchFiles, tmp_path: Path) -> None:
    calibrate(search.root)
    site = make_dataset(tmp_path / "site", patients=80, seed=5)
    found = recalibrate(search.bundle, site.files.root, tmp_path / "bundle")
    card = load_bundle(tmp_path / "bundle").card
    assert card.tta == ("hflip",)
    assert found.tta_gain is not None
    assert found.tta_gain.log_loss.with_tta == pytest.approx(found.log_loss_after)
    assert [note.tta_gain is None for note in card.calibrations] == [False, False]
    assert card.calibrations[-1].tta_gain == found.tta_gain


def test_a_bundle_without_it_has_no_gain_and_neither_has_an_older_record(
    retrained: SearchFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(str(retrained.root), tmp_path / "search")
    assert cli.call(["calibrate", str(tmp_path / "search"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tta_gain"] is None
    files = SearchFiles(locate(tmp_path / "search"))
    older = read_json(files.calibration)
    del older["tta_gain"]
    write_json(files.calibration, older)
    assert Calibration.model_validate(read_json(files.calibration)).tta_gain is None
