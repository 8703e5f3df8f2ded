"""A bundle that answers the subtypes, from its calibration to what people are given."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.special import expit
from sklearn import metrics as sklearn_metrics

from ich_ray.assess import evaluate as evaluate_module
from ich_ray.assess.calibration import Calibration, calibrate
from ich_ray.assess.evaluate import evaluate
from ich_ray.assess.evaluation import Evaluation
from ich_ray.assess.label_figures import measure_labels
from ich_ray.assess.recalibration import recalibrate
from ich_ray.assess.subtype_calibration import subtype_shifts
from ich_ray.bundle.bundle import load_bundle
from ich_ray.bundle.card import RetrainingNote
from ich_ray.bundle.grad_cam import grad_cam
from ich_ray.bundle.onnx_export import export_onnx, onnx_label_outputs, onnx_outputs
from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.sampling import stratified
from ich_ray.errors import IchRayError
from ich_ray.html_report.page import report
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.statistics.bootstrap import PatientDraws
from ich_ray.statistics.metrics import log_loss, weighted_log_loss
from ich_ray.storage import SearchFiles, read_json
from ich_ray.training.loss import CrossEntropy
from ich_ray.training.targets import known_targets
from ich_ray.vocabulary import LABELS, SUBTYPES
from tests.prepared import make_dataset
from tests.searched import PARAMETERS, make_bundle, make_search

SIX = PARAMETERS.model_copy(update={"labels": "all"})
OWN = {"intraparenchymal", "intraventricular", "subarachnoid"}  # the others are of 0 and 9 calibration patients


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """Of 400 patients; epidural is nowhere in calibration and test, intraventricular unknown of every 50th slice."""
    found = make_dataset(tmp_path_factory.mktemp("subtypes") / "data", patients=400)
    table = found.slices
    held = np.isin(found.column("role"), ("calibration", "test"))
    epidural = np.where(held, 0, found.label("epidural")).astype(np.int8)
    unknown = np.arange(len(table)) % 50 == 0
    partly = pa.array(found.label("intraventricular").astype(np.int8), mask=unknown)
    for name, values in (("epidural", pa.array(epidural)), ("intraventricular", partly)):
        table = table.set_column(table.column_names.index(name), name, values)
    pq.write_table(table, str(found.files.slices))
    return PreparedDataset.open(found.files.root)


@pytest.fixture(scope="module")
def measured(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> SearchFiles:
    files = make_search(tmp_path_factory.mktemp("six") / "search", dataset, SIX)
    make_bundle(files, dataset, SIX)
    calibrate(files.root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate_module, "RESAMPLES", 50)
        evaluate(files.root)
    return files


def test_a_subtype_is_scaled_by_its_own_slices_or_as_any_is(measured: SearchFiles, dataset: PreparedDataset) -> None:
    found = Calibration.model_validate(read_json(measured.calibration))
    assert {name for name, subtype in found.subtypes.items() if subtype.scaled_by == "own"} == OWN
    epidural, partly = found.subtypes["epidural"], found.subtypes["intraventricular"]
    assert (epidural.temperature, epidural.bias, epidural.operating_points) == (found.temperature, found.bias, {})
    assert epidural.notes == (
        "epidural: 10 calibration patients with it must be there, got 0: it is scaled as any is, and has no operating "
        "point",
    )
    slices, bundle = dataset.role("calibration"), load_bundle(measured.bundle)
    targets = slices.targets(["intraventricular"])[:, 0]
    known = ~np.isnan(targets)
    assert partly.slices == int(known.sum()) < len(slices)
    probabilities = bundle.slice_label_probabilities(slices)[known, LABELS.index("intraventricular")]
    assert partly.log_loss_after == pytest.approx(log_loss(targets[known], probabilities))
    assert partly.log_loss_after <= (partly.log_loss_before or 0)
    assert "f2" in partly.operating_points


def test_the_shift_of_a_subtype_is_that_of_its_own_classes(measured: SearchFiles, dataset: PreparedDataset) -> None:
    found = Calibration.model_validate(read_json(measured.calibration))
    for name in SUBTYPES:
        targets = dataset.role("train").targets([name])[:, 0]
        positives, negatives = (targets == 1).sum(), (targets == 0).sum()
        assert found.subtypes[name].prior_shift == pytest.approx(math.log(positives / negatives)), name


def test_test_figures_are_those_of_the_probabilities(measured: SearchFiles, dataset: PreparedDataset) -> None:
    found = Evaluation.model_validate(read_json(measured.evaluation))
    slices = dataset.role("test")
    targets, probabilities = slices.targets(LABELS), load_bundle(measured.bundle).slice_label_probabilities(slices)
    areas = []
    for label, name in enumerate(SUBTYPES):
        known, group = ~np.isnan(targets[:, label]), found.labels[name]
        assert (group.cases, group.positives) == (known.sum(), (targets[known, label] == 1).sum())
        if name == "epidural":
            assert (group.metrics["average_precision"].value, group.metrics["roc_auc"].value) == (None, None)
            assert group.operating_points == {}
            continue
        areas.append(sklearn_metrics.roc_auc_score(targets[known, label], probabilities[known, label]))
        assert group.metrics["roc_auc"].value == pytest.approx(areas[-1])
        fixed = load_bundle(measured.bundle).card.subtypes[name].operating_points
        decided = {point: figures.threshold for point, figures in group.operating_points.items()}
        assert decided == {point: figures.threshold for point, figures in fixed.items()}
        assert bool(decided) == (name in OWN)
    assert found.label_metrics["subtypes_measured"].value == 4
    assert found.label_metrics["roc_auc_subtypes"].value == pytest.approx(np.mean(areas))
    loss = found.label_metrics["weighted_log_loss"]
    assert loss.value == pytest.approx(weighted_log_loss(targets, probabilities))
    assert loss.low is not None
    assert loss.high is not None
    assert loss.low < (loss.value or 0) < loss.high
    assert any(note.startswith("epidural: 0 test patients have it") for note in found.notes)


def test_any_is_measured_as_ever(measured: SearchFiles, dataset: PreparedDataset) -> None:
    found, slices = Evaluation.model_validate(read_json(measured.evaluation)), dataset.role("test")
    table = pq.read_table(str(measured.predictions))
    assert table.column_names == [
        "slice_id",
        "patient",
        "label",
        "probability",
        *(f"probability_{n}" for n in SUBTYPES),
    ]
    probabilities = table["probability"].to_numpy()
    bundle = load_bundle(measured.bundle)
    assert probabilities == pytest.approx(bundle.probabilities(bundle.inputs(slices)))
    assert found.metrics["roc_auc"].value == pytest.approx(sklearn_metrics.roc_auc_score(slices.labels, probabilities))


def test_the_report_shows_them(measured: SearchFiles) -> None:
    page = report(measured.root).read_text()
    assert "Subtypes by their own probability" in page
    assert "of the six labels, `any` counting twice" in page
    assert "scaled as any is" in page


def test_onnx_gives_all_labels(measured: SearchFiles, dataset: PreparedDataset, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    bundle, file = load_bundle(measured.bundle), tmp_path / "six.onnx"
    export_onnx(measured.bundle, file)
    images = bundle.inputs(dataset.role("test"))[:7]
    logits, probabilities = onnx_label_outputs(file.read_bytes(), images)
    assert logits == pytest.approx(bundle.label_logits(images), abs=1e-4)
    assert probabilities == pytest.approx(bundle.label_probabilities(images), abs=1e-4)
    of_any = onnx_outputs(file.read_bytes(), images)
    assert of_any[1] == pytest.approx(bundle.probabilities(images), abs=1e-4)


def test_heat_is_of_any(measured: SearchFiles, dataset: PreparedDataset) -> None:
    pytest.importorskip("captum")
    bundle = load_bundle(measured.bundle)
    heat = grad_cam(bundle, bundle.inputs(dataset.role("test"))[:3])
    assert heat.shape == (3, 32, 32)
    assert heat.max() == pytest.approx(1, abs=1e-5)


def test_another_site_calibrates_each_label_anew(measured: SearchFiles, tmp_path: Path) -> None:
    site = make_dataset(tmp_path / "site", patients=200, seed=7)
    found = recalibrate(measured.bundle, site.files.root, tmp_path / "bundle")
    assert {subtype.scaled_by for subtype in found.subtypes.values()} == {"own"}
    card = load_bundle(tmp_path / "bundle").card
    assert card.subtypes == found.subtypes
    assert len(card.calibrations) == 2


def test_a_label_without_a_number_is_no_figure(
    measured: SearchFiles, dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, slices = load_bundle(measured.bundle), dataset.role("test")
    logits = np.zeros((len(slices), 6), np.float32)
    logits[3, 2] = math.inf
    monkeypatch.setattr("ich_ray.bundle.bundle.predict_logits", lambda *_: logits)
    with pytest.raises(IchRayError, match="got 1 of 240 slices"):
        bundle.slice_label_probabilities(slices)


def test_before_calibration_labels_are_plain_sigmoids(dataset: PreparedDataset, tmp_path: Path) -> None:
    files = make_search(tmp_path / "search", dataset, SIX)
    bundle = make_bundle(files, dataset, SIX)
    images = bundle.inputs(dataset.role("test"))[:5]
    assert bundle.label_probabilities(images) == pytest.approx(expit(bundle.label_logits(images).astype(float)))


def test_a_bundle_of_any_alone_has_one_label(dataset: PreparedDataset, tmp_path: Path) -> None:
    files = make_search(tmp_path / "search", dataset)
    bundle = make_bundle(files, dataset, Hyperparameters.model_validate(PARAMETERS.model_dump()))
    shutil.rmtree(str(files.final), ignore_errors=True)
    images = bundle.inputs(dataset.role("test"))[:5]
    assert bundle.label_logits(images).shape == (5, 1)
    assert np.array_equal(bundle.label_logits(images)[:, 0], bundle.logits(images))


def test_what_few_patients_have_gets_no_interval_and_what_is_unknown_no_figure(tmp_path: Path) -> None:
    made = make_dataset(tmp_path / "data", patients=60)
    table = made.slices
    epidural = np.where(np.arange(len(table)) > len(table) - 5, made.label("any"), 0).astype(np.int8)  # one patient's
    table = table.set_column(table.column_names.index("epidural"), "epidural", pa.array(epidural))
    table = table.set_column(table.column_names.index("subdural"), "subdural", pa.nulls(len(table), pa.int8()))
    pq.write_table(table, str(made.files.slices))
    slices = PreparedDataset.open(made.files.root).role("test")
    probabilities = np.random.default_rng(0).random((len(slices), 6))
    found = measure_labels(slices, probabilities, {}, PatientDraws(slices.patients, resamples=30))
    means = found.metrics["average_precision_subtypes"]
    assert means.value is not None
    assert (means.low, means.high) == (None, None)
    assert found.metrics["weighted_log_loss"].value is None
    assert "subdural: it is not known of any test slice with haemorrhage, and has no figures." in found.notes
    assert any(note.startswith("epidural: 1 test patients have it") for note in found.notes)


def test_the_shift_of_a_training_on_a_sample_is_that_of_its_loss(
    measured: SearchFiles, dataset: PreparedDataset
) -> None:
    sampled = SIX.model_copy(update={"training_slices": 200})
    note = RetrainingNote(
        patients="train", images=600, budget="", best_images_seen=600, seed=5, seeds=(5,), rule="the only one"
    )
    card = load_bundle(measured.bundle).card.model_copy(update={"parameters": sampled, "retraining": note})
    trained = stratified(dataset.role("train"), 200, 5)
    shifts = CrossEntropy(sampled, torch.from_numpy(known_targets(sampled, trained))).shifts[:-1]
    assert [*subtype_shifts(dataset, card).values()] == pytest.approx(shifts)
    assert shifts != pytest.approx([*subtype_shifts(dataset, load_bundle(measured.bundle).card).values()])
