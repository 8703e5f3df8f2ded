from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from ich_ray import cli
from ich_ray.assess.calibration import Calibration, calibrate
from ich_ray.bundle.bundle import load_bundle
from ich_ray.bundle.logit_scaling import Method
from ich_ray.data.dataset import PreparedDataset, SliceSet
from ich_ray.errors import ConfigError, IntegrityError, SensitivityError
from ich_ray.statistics.metrics import confusion, log_loss
from ich_ray.storage import SearchFiles, locate, read_json, write_json
from tests.searched import make_search


@pytest.fixture(scope="module")
def search(retrained: SearchFiles, tmp_path_factory: pytest.TempPathFactory) -> SearchFiles:
    files = SearchFiles(locate(tmp_path_factory.mktemp("searches") / "search"))
    shutil.copytree(str(retrained.root), str(files.root))
    return files


def test_calibrate_writes_what_it_found(search: SearchFiles, dataset: PreparedDataset) -> None:
    found = calibrate(search.root)
    assert Calibration.model_validate(read_json(search.calibration)) == found
    slices = dataset.role("calibration")
    assert (found.slices, found.positives) == (len(slices), int(slices.labels.sum()))
    train = dataset.role("train").labels
    assert found.prior_shift == pytest.approx(math.log(train.sum() / (len(train) - train.sum())))
    bundle = load_bundle(search.bundle)
    assert bundle.card.operating_points == found.operating_points
    probabilities = bundle.calibrated(bundle.slice_logits(slices))
    assert log_loss(slices.labels, probabilities) == pytest.approx(found.log_loss_after)
    assert found.log_loss_after <= found.log_loss_before
    plain = log_loss(slices.labels, expit(bundle.slice_logits(slices).astype(float)))
    assert found.log_loss_before == pytest.approx(plain)
    assert calibrate(search.root).log_loss_before == found.log_loss_before, "the second time, too"
    point = found.operating_points["f2"]
    decisions = confusion(slices.labels, probabilities, point.threshold)
    assert (point.sensitivity, point.specificity, point.ppv, point.f2) == pytest.approx(
        (decisions.sensitivity, decisions.specificity, decisions.ppv, decisions.f_beta(2))
    )


def test_it_reads_only_calibration_patients(search: SearchFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = PreparedDataset.role

    def spy(self: PreparedDataset, role: str) -> SliceSet:
        opened.append(role)
        return original(self, role)  # type: ignore[arg-type]

    monkeypatch.setattr(PreparedDataset, "role", spy)
    calibrate(search.root)
    assert set(opened) == {"calibration"}


def test_the_labels_of_other_roles_do_not_matter(search: SearchFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    before = calibrate(search.root)
    original = PreparedDataset.label

    def scrambled(self: PreparedDataset, name: str) -> np.ndarray:
        labels, other = original(self, name).copy(), self.column("role") != "calibration"
        labels[other] = 1 - labels[other]
        return labels

    monkeypatch.setattr(PreparedDataset, "label", scrambled)
    assert calibrate(search.root) == before


def test_a_network_that_ranks_the_wrong_way_round_is_noted(
    search: SearchFiles, dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = np.random.default_rng(0).normal(size=len(dataset)) - 2 * dataset.label("any")
    monkeypatch.setattr("ich_ray.bundle.bundle.predict_logits", lambda network, slices, *_: logits[slices.rows])
    found = calibrate(search.root)
    assert found.notes[0].startswith("calibration: 0.05 < temperature < 20 must hold")
    assert load_bundle(search.bundle).card.calibrations[-1].notes == found.notes


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_either_method_is_what_the_bundle_then_does(
    search: SearchFiles, dataset: PreparedDataset, method: Method
) -> None:
    found = calibrate(search.root, method=method, beta=1, sensitivity=0.8)
    assert found.method == method
    assert (found.bias != 0) == (method == "platt")
    assert list(found.operating_points)[:3] == ["f2", "f1", "sensitivity_80"]
    slices, bundle = dataset.role("calibration"), load_bundle(search.bundle)
    logits = bundle.slice_logits(slices)
    expected = expit((logits.astype(float) + found.prior_shift) / found.temperature + found.bias)
    assert bundle.calibrated(logits) == pytest.approx(expected)
    assert log_loss(slices.labels, expected) == pytest.approx(found.log_loss_after)
    (note,) = bundle.card.calibrations
    assert (note.dataset, note.method, note.positives) == (dataset.manifest.fingerprint, method, found.positives)


def test_a_sensitivity_out_of_reach_changes_nothing(search: SearchFiles) -> None:
    before = calibrate(search.root)
    with pytest.raises(SensitivityError, match=r"lower 95 % bound of the sensitivity of at least 0.99"):
        calibrate(search.root, sensitivity=0.99, conservative=True)
    assert Calibration.model_validate(read_json(search.calibration)) == before
    with pytest.raises(ConfigError, match="--method: one of temperature, platt must be given, got 'isotonic'"):
        calibrate(search.root, method="isotonic")  # type: ignore[arg-type]


def test_the_command_line_passes_its_wishes_on(search: SearchFiles, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["calibrate", str(search.root), "--method", "platt", "--beta", "0.5", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["method"], printed["operating_points"]["f0.5"]["rule"]) == ("platt", "highest F0.5")
    assert cli.call(["calibrate", str(search.root), "--sensitivity", "0.99", "--conservative"]) == 2
    said = capsys.readouterr().err
    assert "got at most 0." in said
    assert said.count("\n") == 1


def test_no_positive_is_a_clear_error(search: SearchFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreparedDataset, "label", lambda self, name: np.zeros(len(self), np.float32))
    with pytest.raises(ConfigError, match="calibration role: slices with and without haemorrhage must be there, got 0"):
        calibrate(search.root)


def test_it_needs_a_bundle_and_the_same_data(dataset: PreparedDataset, tmp_path: Path) -> None:
    files = make_search(tmp_path / "search", dataset)
    with pytest.raises(ConfigError, match=r"a bundle holds card.json, got none; .*run `ich-ray retrain`"):
        calibrate(files.root)
    write_json(files.search, {**read_json(files.search), "fingerprint": "f" * 32})
    with pytest.raises(IntegrityError, match="the fingerprint must be ffff"):
        calibrate(files.root)


def test_new_calibration_takes_old_test_figures_out(search: SearchFiles) -> None:
    calibrate(search.root)
    card = read_json(search.bundle / "card.json")
    write_json(search.bundle / "card.json", {**card, "test": {"slices": 1}, "openings": 1})
    calibrate(search.root)
    card = read_json(search.bundle / "card.json")
    assert (card["test"], card["openings"]) == (None, 1)
