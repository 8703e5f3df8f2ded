from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import expit
from sklearn import metrics as sklearn_metrics

from ich_ray import cli, progress
from ich_ray.assess import calibration
from ich_ray.assess import evaluate as module
from ich_ray.assess.calibration import calibrate
from ich_ray.assess.evaluate import evaluate
from ich_ray.assess.evaluation import Evaluation
from ich_ray.assess.evaluation_notes import dataset_ranking_note
from ich_ray.assess.point_rules import effective_positives
from ich_ray.bundle.bundle import load_bundle
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError, IntegrityError
from ich_ray.refit import bundle_builder
from ich_ray.results import open_search
from ich_ray.storage import SearchFiles, locate, read_json, write_json
from ich_ray.vocabulary import LEAK
from tests.searched import PARAMETERS


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
    assert stat.S_IMODE(Path(str(search.predictions)).stat().st_mode) == 0o600, "its slice ids stand in the clear"
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
    assert list(found.metrics) == [
        "average_precision", "roc_auc", "log_loss", "brier", "ece", "calibration_slope", "calibration_intercept",
    ]  # fmt: skip
    perfect = found.metrics["average_precision"]
    assert (perfect.value, perfect.low, perfect.high) == (1.0, None, None), "no draw moves it, so nothing is known"
    for estimate in (
        *list(found.metrics.values())[2:4],
        point.sensitivity,
        point.specificity,
        point.ppv,
        point.accuracy,
    ):
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low <= (estimate.value or 0) <= estimate.high
    assert found.floors["average_precision"] == pytest.approx(found.prevalence)
    assert not found.at_chance
    assert found.notes[0].endswith("validation positives would part them at 0.03")
    assert "too few to rank models" in found.notes[0]
    pool = [*dataset.role("train").labels, *dataset.role("validation").labels]
    assert f": {sum(pool):,.0f} of them lie in train and validation" in (dataset_ranking_note(dataset, True) or "")
    validation = dataset.role("validation")
    independent = effective_positives(validation.labels, validation.patients)
    assert 1 < independent <= len(set(validation.patients[validation.labels == 1])) < validation.labels.sum()
    assert f"worth {independent:.0f} independent ones" in found.notes[0]
    card = read_json(search.bundle / "card.json")
    assert card["test"]["metrics"] == read_json(search.evaluation)["metrics"]
    said = load_bundle(search.bundle).card.checklist["Performance and its uncertainty"]
    assert said.startswith("average precision 1.000 (no interval) on ")


def test_a_card_without_the_usual_operating_point_is_measured_at_its_own(search: SearchFiles) -> None:
    calibrate(search.root)
    card = read_json(search.bundle / "card.json")
    points = {"own": card["operating_points"]["f2"]}
    write_json(search.bundle / "card.json", card | {"operating_points": points})
    point = evaluate(search.root).point
    assert point is not None
    assert point[0] == "own"


def test_a_slice_level_split_is_said_wherever_a_figure_stands(
    search: SearchFiles, dataset: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(str(dataset.files.root), tmp_path / "leaky")
    for path, changes in (
        (tmp_path / "leaky" / "dataset.json", {"split": "slice"}),
        (search.search, {"split": "slice", "dataset": str(tmp_path / "leaky")}),
    ):
        write_json(locate(path), {**read_json(locate(path)), **changes})
    found, leaky = open_search(search.root), PreparedDataset.open(tmp_path / "leaky")
    bundle_builder.make_bundle(found, found.best(), PARAMETERS, leaky, search.final / "state.safetensors")
    calibrate(search.root)
    progress.show()
    evaluation = evaluate(search.root)
    progress.show(False)
    assert LEAK in capsys.readouterr().err
    assert evaluation.notes[0] == LEAK
    card = read_json(search.bundle / "card.json")
    assert card["limitations"][0] == card["test"]["notes"][0] == LEAK
    assert card["dataset"]["split"] == "slice"
    assert evaluation.metrics["log_loss"].low is not None  # patients are still drawn whole
    assert cli.call(["results", str(search.root)]) == 0
    assert capsys.readouterr().out.startswith(LEAK)


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


@pytest.mark.parametrize("verb", [calibrate, evaluate])
def test_data_that_were_changed_are_neither_fitted_nor_opened(
    search: SearchFiles, dataset: PreparedDataset, tmp_path: Path, verb: Callable[[Any], object]
) -> None:
    calibrate(search.root)
    shutil.copytree(str(dataset.files.root), tmp_path / "moved")
    record = read_json(search.search)
    write_json(search.search, {**record, "dataset": str(tmp_path / "moved")})
    copy = PreparedDataset.open(tmp_path / "moved")
    role = "calibration" if verb is calibrate else "test"
    table = copy.slices.to_pandas()
    whole = copy.files.slices.read_bytes()
    table.loc[table["role"] == "train", "role"] = role
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), str(copy.files.slices))
    with pytest.raises(IntegrityError, match=r"slices.parquet: \d+ train slices must be there, got 0"):
        verb(search.root)
    copy.files.slices.write_bytes(whole)
    block = copy.files.root / copy.manifest.blocks[-1].file  # the last roles lie there
    data = bytearray(block.read_bytes())
    data[-2000:-1900] = bytes(100)
    block.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match=r"00001.arrow: SHA-256 must equal the manifest's"):
        verb(search.root)
    assert read_json(search.bundle / "card.json")["openings"] == 0
    # Datasets of today have the hash of the table, too: labels cannot be changed either.
    write_json(copy.files.manifest, {**read_json(copy.files.manifest), "slices_sha256": "0" * 64})
    with pytest.raises(IntegrityError, match=r"slices.parquet: SHA-256 must equal the manifest's"):
        verb(search.root)


def test_a_bundle_of_another_trial_than_the_chosen_one_is_said(
    search: SearchFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(calibration, "say", said.append)
    calibrate(search.root)
    assert not any("chosen now" in line for line in said)
    candidate = {"trial": 2, "selection_value": 0.4, "values": [0.4], "mean": 0.4, "spread": None}
    confirmation = {"kind": "seeds", "parts": 1, "objective": {}, "chosen": 2, "candidates": [candidate]}
    write_json(search.confirmation, {**confirmation, "images": 0, "cost_gpu_s": 0.0, "created": 0.0})
    for verb in (calibrate, evaluate):
        said.clear()
        verb(search.root)
        assert "  the bundle is of trial 0, but trial 2 is chosen now: retrain to use it" in said


def test_a_model_at_chance_is_called_so(search: SearchFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrate(search.root)
    rng = np.random.default_rng(0)
    monkeypatch.setattr(
        "ich_ray.bundle.bundle.predict_logits", lambda network, slices, parameters, device: rng.normal(size=len(slices))
    )
    found = evaluate(search.root)
    assert found.at_chance
    assert any(note.startswith("At chance") for note in found.notes)


def test_a_bundle_without_f2_is_summed_up_by_the_point_that_it_has(
    search: SearchFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate(search.root)
    card = read_json(search.bundle / "card.json")
    point = {**card["operating_points"]["f2"], "threshold": 0.25}
    write_json(search.bundle / "card.json", {**card, "operating_points": {"house": point}})
    said: list[str] = []
    monkeypatch.setattr(module, "say", said.append)
    assert [*evaluate(search.root).operating_points] == ["house"]
    assert next(line for line in said if "test:" in line).endswith("PPV 1.000 at threshold 0.250")


def test_a_stated_prevalence_moves_ppv_and_npv(search: SearchFiles, capsys: pytest.CaptureFixture[str]) -> None:
    calibrate(search.root)
    assert cli.call(["evaluate", str(search.root), "--prevalence", "0.02", "--json"]) == 0
    found = Evaluation.model_validate_json(capsys.readouterr().out)
    point = found.operating_points["f2"]
    assert point.stated is not None
    sensitivity, specificity = point.sensitivity.value, point.specificity.value
    assert sensitivity is not None
    assert specificity is not None
    alarms = (1 - specificity) * 0.98
    assert point.stated.ppv.value == pytest.approx(0.02 * sensitivity / (0.02 * sensitivity + alarms))
    assert point.stated.npv.value == pytest.approx(0.98 * specificity / (0.98 * specificity + 0.02 * (1 - sensitivity)))
    assert all(group.operating_points["f2"].stated for group in found.representations.values())
    assert "subdural" in found.subtypes
    assert not any(group.operating_points["f2"].stated for group in found.subtypes.values()), (
        "0.02 is of any haemorrhage"
    )
    assert found.patient_level is not None
    assert found.patient_level.operating_points["f2"].stated is None
    assert cli.call(["evaluate", str(search.root), "--prevalence", "2"]) == 2
    assert read_json(search.bundle / "card.json")["openings"] == 1, "a mistake opens nothing"


def test_groups_are_measured_apart(
    search: SearchFiles, dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate(search.root)
    overlapping = np.random.default_rng(3).normal(size=len(dataset)) + 2 * dataset.label("any")
    monkeypatch.setattr(
        "ich_ray.bundle.bundle.predict_logits", lambda network, slices, parameters, device: overlapping[slices.rows]
    )
    found, test = evaluate(search.root), dataset.role("test")
    probabilities = np.array(pq.read_table(str(search.predictions))["probability"])
    threshold = found.operating_points["f2"].threshold

    by_patient = {name: test.patients == name for name in set(test.patients)}
    truth = [test.labels[rows].max() for rows in by_patient.values()]
    most = [probabilities[rows].max() for rows in by_patient.values()]
    assert found.patient_level is not None
    assert (found.patient_level.cases, found.patient_level.positives) == (len(truth), sum(truth))
    assert found.patient_level.metrics["roc_auc"].value == pytest.approx(sklearn_metrics.roc_auc_score(truth, most))
    assert found.patient_level.operating_points["f2"].sensitivity.value == pytest.approx(
        sklearn_metrics.recall_score(truth, np.array(most) >= threshold)
    )
    assert list(found.patient_level.metrics) == ["average_precision", "roc_auc"]

    subtype = dataset.label("subdural")[test.rows] == 1
    group = found.subtypes["subdural"]
    assert (group.positives, group.cases) == (subtype.sum(), subtype.sum() + (test.labels == 0).sum())
    assert group.operating_points["f2"].sensitivity.value == pytest.approx((probabilities[subtype] >= threshold).mean())
    assert group.operating_points["f2"].specificity == found.operating_points["f2"].specificity
    assert group.floors["average_precision"] == group.prevalence != found.prevalence

    uint12 = dataset.column("representation")[test.rows] == "uint12"
    assert list(found.representations) == ["int16", "uint12"]
    assert found.representations["uint12"].cases == uint12.sum()
    assert found.representations["uint12"].metrics["log_loss"].value == pytest.approx(
        sklearn_metrics.log_loss(test.labels[uint12], probabilities[uint12])
    )


def test_probabilities_are_held_against_what_a_perfect_model_shows(
    search: SearchFiles, dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate(search.root)
    shift = load_bundle(search.bundle).card.scaling
    rng = np.random.default_rng(5)
    odds = rng.normal(0, 1.5, len(dataset))
    labels = (rng.random(len(dataset)) < expit(odds)).astype(np.float32)
    monkeypatch.setattr(PreparedDataset, "label", lambda self, name: labels * (name == "any"))
    for stretch in (1, 4):
        logits = (stretch * odds - shift.bias) * shift.temperature - shift.prior_shift
        monkeypatch.setattr(
            "ich_ray.bundle.bundle.predict_logits",
            lambda network, slices, *_, of=logits: of[slices.rows],
        )
        found = evaluate(search.root)
        error, null = found.metrics["ece"].value, found.ece_null
        assert error is not None
        assert null is not None
        assert null.high is not None
        assert (error > null.high) == (stretch == 4)
        assert any("more than a perfect model" in note for note in found.notes) == (stretch == 4)
        slope = found.metrics["calibration_slope"]
        assert slope.value is not None
        assert (slope.value < 0.5) == (stretch == 4)


def test_too_few_positive_patients_are_a_note(
    search: SearchFiles, dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate(search.root)
    labels, patients = dataset.label("any").copy(), dataset.column("patient")
    test = (dataset.column("role") == "test") & (labels == 1)
    labels[test & (patients != patients[test][0])] = 0
    monkeypatch.setattr(PreparedDataset, "label", lambda self, name: labels)
    found = evaluate(search.root)
    assert any(note.startswith("1 test patient has a slice with haemorrhage, and fewer than 6") for note in found.notes)
    assert found.metrics["roc_auc"].value is not None
    assert (found.metrics["roc_auc"].low, found.metrics["log_loss"].high) == (None, None)
    assert found.operating_points["f2"].specificity.low is not None


def test_undefined_figures_are_null(search: SearchFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrate(search.root)
    monkeypatch.setattr(PreparedDataset, "label", lambda self, name: np.zeros(len(self), np.float32))
    found = evaluate(search.root)
    assert found.metrics["average_precision"].value is None
    assert found.operating_points["f2"].sensitivity.value is None
    assert found.metrics["calibration_slope"].value is None
    assert found.subtypes == {}
    assert found.at_chance
