from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from ich_ray.data.dataset import PreparedDataset, SliceSet
from ich_ray.errors import ConfigError, IntegrityError
from ich_ray.final.bundle import calibrated, load_bundle
from ich_ray.final.calibration import Calibration, calibrate, fit_temperature
from ich_ray.metrics import confusion, log_loss
from ich_ray.storage import SearchFiles, read_json, write_json
from tests.prepared import make_dataset
from tests.searched import make_bundle, make_search


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_dataset(tmp_path_factory.mktemp("prepared") / "dataset")


@pytest.fixture(scope="module")
def search(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> SearchFiles:
    files = make_search(tmp_path_factory.mktemp("searches") / "search", dataset)
    make_bundle(files, dataset)
    return files


def test_the_temperature_of_overconfident_logits_is_found() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 2, 20_000)
    labels = (rng.random(20_000) < expit(logits)).astype(np.float32)
    assert fit_temperature(labels, logits) == pytest.approx(1, abs=0.05)
    assert fit_temperature(labels, 3 * logits) == pytest.approx(3, abs=0.15)


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


@given(
    st.lists(st.floats(-12, 12, width=32), min_size=2, max_size=30),
    st.floats(-3, 3),
    st.floats(0.3, 20),
)
def test_calibration_never_changes_the_ranking(logits: list[float], shift: float, temperature: float) -> None:
    raw = np.array(logits, np.float32)
    order = np.argsort(raw, kind="stable")
    assert (np.diff(calibrated(raw, shift, temperature)[order]) >= 0).all()


def test_no_positive_is_a_clear_error(search: SearchFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreparedDataset, "label", lambda self, name: np.zeros(len(self), np.float32))
    with pytest.raises(ConfigError, match="calibration role: slices with and without haemorrhage must be there, got 0"):
        calibrate(search.root)


def test_it_needs_a_bundle_and_the_same_data(dataset: PreparedDataset, tmp_path: Path) -> None:
    files = make_search(tmp_path / "search", dataset)
    with pytest.raises(ConfigError, match=r"a bundle holds card.json, got none; .*run `ich-ray retrain`"):
        calibrate(files.root)
    write_json(files.search, {**read_json(files.search), "fingerprint": "other"})
    with pytest.raises(IntegrityError, match="the fingerprint must be other"):
        calibrate(files.root)


def test_new_calibration_takes_old_test_figures_out(search: SearchFiles) -> None:
    calibrate(search.root)
    card = read_json(search.bundle / "card.json")
    write_json(search.bundle / "card.json", {**card, "test": {"slices": 1}, "openings": 1})
    calibrate(search.root)
    card = read_json(search.bundle / "card.json")
    assert (card["test"], card["openings"]) == (None, 1)
