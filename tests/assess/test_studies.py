"""Figures by study: fitted on calibration patients, measured on test patients, by labels of slices or of studies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics

from ich_ray import cli, progress
from ich_ray.assess.calibration import calibrate
from ich_ray.assess.evaluate import evaluate, evaluate_site
from ich_ray.assess.evaluation import Evaluation
from ich_ray.assess.recalibration import recalibrate
from ich_ray.bundle.bundle import Bundle, load_bundle
from ich_ray.bundle.sequence_note import OwnScaling
from ich_ray.data.dataset import PreparedDataset, SliceSet
from ich_ray.data.study_labels import studies_of
from ich_ray.errors import ConfigError
from ich_ray.storage import SearchFiles, locate, read_json, write_json
from tests.examined import half_bleeding, with_examinations
from tests.prepared import SLICES_A_PATIENT, make_dataset
from tests.searched import make_bundle, make_search
from tests.sequence_bundles import add_sequence

PATIENTS = 160  # 24 of calibration, 24 of test


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ich_ray.assess.evaluate.RESAMPLES", 100)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search with a bundle that is not calibrated, and its dataset."""
    folder = tmp_path_factory.mktemp("home")
    dataset = half_bleeding(make_dataset(folder / "dataset", patients=PATIENTS))
    make_bundle(make_search(folder / "search", dataset), dataset)
    return folder


@pytest.fixture
def search(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SearchFiles:
    """A copy, whose network says logits that overlap."""
    shutil.copytree(home / "search", tmp_path / "search")
    monkeypatch.setattr("ich_ray.bundle.bundle.predict_logits", lambda network, slices, *_: said_of(slices))
    return SearchFiles(locate(tmp_path / "search"))


def said_of(slices: SliceSet) -> NDArray[np.float32]:
    noise = np.random.default_rng(1).normal(-1, 1, len(slices.dataset))
    known = np.nan_to_num(slices.dataset.label("subdural"))
    return np.asarray((noise + 1.2 * known)[slices.rows], np.float32)


def highest(bundle: Bundle, slices: SliceSet) -> NDArray[np.float32]:
    return bundle.slice_logits(slices).reshape(-1, SLICES_A_PATIENT).max(1)


def test_probabilities_of_studies_are_fitted_to_the_share_of_studies(search: SearchFiles, home: Path) -> None:
    found = calibrate(search.root).studies
    assert found is not None
    bundle = load_bundle(search.bundle)
    assert bundle.card.studies == found
    slices = PreparedDataset.open(home / "dataset").role("calibration")
    fitted = found.labels["any"]
    assert (fitted.studies, fitted.positives, fitted.patients, fitted.scaled_by) == (24, 12, 12, "own")
    assert (found.score, found.unknown, [*found.labels]) == ("maximum", 0, ["any"])
    probabilities = found.scaling(highest(bundle, slices))
    assert probabilities.mean() == pytest.approx(0.5, abs=1e-4), "slices are positive in a quarter of cases"
    truth = slices.labels.reshape(-1, SLICES_A_PATIENT).max(1)
    assert fitted.log_loss_after == pytest.approx(sklearn_metrics.log_loss(truth, probabilities))
    before = bundle.calibrated(highest(bundle, slices))
    assert fitted.log_loss_before == pytest.approx(sklearn_metrics.log_loss(truth, before))
    assert [*found.operating_points] == ["study_f2", "study_sensitivity_90"]
    unreached = (
        "by study: operating point: a sensitivity of at least 0.95 must be reached by a threshold that does not "
    )
    assert fitted.notes[1].startswith(f"{unreached}call every study positive, got at most 0.9167")
    point = found.operating_points["study_sensitivity_90"]
    called = probabilities >= point.threshold
    assert point.sensitivity == pytest.approx(called[truth == 1].mean()) == pytest.approx(11 / 12)
    assert point.specificity == pytest.approx((~called[truth == 0]).mean())


def test_points_that_are_asked_for_are_found_of_studies_too_and_unreached_ones_are_notes(search: SearchFiles) -> None:
    found = calibrate(search.root, beta=1.0, points=["sensitivity=0.85", "sensitivity=0.93"])
    assert found.studies is not None
    assert {"f1", "sensitivity_85", "sensitivity_93"} <= {*found.operating_points}
    assert [*found.studies.operating_points] == ["study_f2", "study_f1", "study_sensitivity_85", "study_sensitivity_90"]
    notes = found.studies.labels["any"].notes
    assert [note.split(" at least ")[1].split()[0] for note in notes if "must be reached" in note] == [
        "0.93", "0.95", "0.98"
    ]  # fmt: skip
    assert load_bundle(search.bundle).card.studies == found.studies


def test_figures_of_studies_stand_beside_those_of_slices(search: SearchFiles, home: Path) -> None:
    calibrate(search.root)
    found = evaluate(search.root, study_prevalence=0.1)
    assert Evaluation.model_validate(read_json(search.evaluation)) == found
    card, studies = load_bundle(search.bundle).card, found.studies
    assert studies is not None
    assert card.studies is not None
    assert card.test is not None
    assert card.test["studies"] == read_json(search.evaluation)["studies"]
    slices = PreparedDataset.open(home / "dataset").role("test")
    truth = slices.labels.reshape(-1, SLICES_A_PATIENT).max(1)
    probabilities = card.studies.scaling(highest(load_bundle(search.bundle), slices))
    assert (studies.cases, studies.positives, studies.patients, studies.score) == (24, 12, 24, "maximum")
    assert studies.metrics["roc_auc"].value == pytest.approx(sklearn_metrics.roc_auc_score(truth, probabilities))
    precision = studies.metrics["average_precision"]
    assert precision.value == pytest.approx(sklearn_metrics.average_precision_score(truth, probabilities))
    assert precision.low is not None
    assert studies.metrics["log_loss"].value == pytest.approx(sklearn_metrics.log_loss(truth, probabilities))
    assert studies.ece_null is not None
    point = studies.operating_points["study_f2"]
    called = probabilities >= point.threshold
    assert point.threshold == card.studies.operating_points["study_f2"].threshold
    sensitivity, specificity = called[truth == 1].mean(), (~called[truth == 0]).mean()
    assert (point.sensitivity.value, point.specificity.value) == pytest.approx((sensitivity, specificity))
    assert point.ppv.value == pytest.approx(truth[called].mean())
    assert point.stated is not None
    alarms = (1 - specificity) * 0.9
    assert point.stated.ppv.value == pytest.approx(0.1 * sensitivity / (0.1 * sensitivity + alarms))
    assert found.operating_points["f2"].stated is None, "0.1 is of studies"
    assert (studies.subtypes["subdural"].cases, studies.subtypes["subdural"].positives) == (24, 12)
    assert studies.patient_level is not None
    assert studies.patient_level.metrics["roc_auc"].value == studies.metrics["roc_auc"].value, "one study each"
    table = pq.read_table(str(search.studies)).to_pydict()
    assert [*table] == ["study", "patient", "label", "slices", "probability"]
    assert table["study"] == slices.dataset.column("study")[slices.rows[::4]].tolist()
    assert (table["label"], table["slices"]) == (truth.astype(int).tolist(), [4] * 24)
    assert table["probability"] == pytest.approx(probabilities.tolist())


def test_too_few_studies_are_said_and_fit_nothing(retrained: SearchFiles, tmp_path: Path) -> None:
    shutil.copytree(str(retrained.root), tmp_path / "search")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ich_ray.assess.study_fitting.say", said.append)
        found = calibrate(tmp_path / "search")
    assert found.studies is not None
    fitted = found.studies.labels["any"]
    assert (fitted.scaled_by, fitted.temperature, fitted.operating_points) == ("slices", found.temperature, {})
    assert said == ["  by study: 10 calibration patients must have a study with haemorrhage, got 8: studies have no "
                    "probability or operating point of their own"]  # fmt: skip
    studies = evaluate(tmp_path / "search").studies
    assert studies is not None
    assert ([*studies.metrics], studies.operating_points) == (["average_precision", "roc_auc"], {})
    assert studies.notes[0].startswith("Too few calibration patients had studies of either kind")


def test_a_bundle_of_an_older_version_has_no_figures_of_studies(search: SearchFiles) -> None:
    calibrate(search.root)
    card = read_json(search.bundle / "card.json")
    del card["studies"]
    write_json(search.bundle / "card.json", card)
    found = evaluate(search.root)
    assert "studies" not in read_json(search.evaluation)
    assert not search.studies.exists()
    assert found.notes[-1].startswith("By study: no figures, as the bundle was calibrated without studies")


def test_studies_torn_by_a_slice_level_split_have_no_figures(search: SearchFiles, home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "dataset", tmp_path / "leaky")
    for path, changes in (
        (locate(tmp_path / "leaky" / "dataset.json"), {"split": "slice"}),
        (search.search, {"split": "slice", "dataset": str(tmp_path / "leaky")}),
    ):
        write_json(path, {**read_json(path), **changes})
    assert calibrate(search.root).studies is None


class TestSite:
    """A site that has labels of studies alone."""

    @pytest.fixture
    def site(self, tmp_path: Path) -> PreparedDataset:
        made = half_bleeding(make_dataset(tmp_path / "site", patients=PATIENTS, seed=5))
        of_slices, names = made.label("any"), made.column("study")
        known = {name: {"any": int(of_slices[names == name].max())} for name in sorted({*names}) if name != "t0159"}
        return with_examinations(made, "study", known, alone=True)

    @pytest.fixture
    def bundle(self, search: SearchFiles, monkeypatch: pytest.MonkeyPatch) -> Path:
        calibrate(search.root)
        other = np.random.default_rng(2).normal(0, 1, PATIENTS * SLICES_A_PATIENT)
        bleeding = np.repeat(np.arange(PATIENTS) % 2 == 0, SLICES_A_PATIENT)

        def louder(network: object, slices: SliceSet, *_: object) -> NDArray[np.float32]:
            return np.asarray(2 + (other + 0.8 * bleeding)[slices.rows], np.float32)

        monkeypatch.setattr("ich_ray.bundle.bundle.predict_logits", louder)
        return Path(str(search.bundle))

    def test_it_is_measured_by_study(
        self, bundle: Path, site: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ["evaluate-site", str(bundle), str(site.files.root), "--out", str(tmp_path / "figures"), "--json"]
        assert cli.call([*command, "--study-prevalence", "0.02"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert not {"positives", "prevalence", "metrics", "operating_points", "floors", "at_chance"} & {*found}
        assert (found["level"], found["slices"], found["patients"]) == ("study", 96, 24)
        assert found["notes"][0] == "Slices have no labels here: figures are of studies alone."
        studies = found["studies"]
        assert (studies["cases"], studies["positives"], studies["unknown"]) == (23, 12, 1)
        assert "1 studies without a label of haemorrhage are left out." in studies["notes"]
        assert studies["operating_points"]["study_f2"]["stated"]["prevalence"] == 0.02
        assert pq.read_table(str(tmp_path / "figures" / "predictions.parquet"))["label"].null_count == 96
        assert pq.read_table(str(tmp_path / "figures" / "studies.parquet"))["label"].null_count == 1
        card = load_bundle(bundle).card
        assert card.site_openings == {site.manifest.fingerprint: 1}
        assert card.site_tests[site.manifest.fingerprint]["studies"] == studies
        assert Evaluation.model_validate(found).metrics == {}

    @pytest.mark.parametrize("calibrated", [True, False])
    def test_what_needs_labels_of_slices_opens_nothing(
        self, bundle: Path, site: PreparedDataset, tmp_path: Path, calibrated: bool
    ) -> None:
        card = read_json(locate(bundle) / "card.json")
        write_json(locate(bundle) / "card.json", {**card, "studies": card["studies"] if calibrated else None})
        why = "--prevalence: slices with labels must be there" if calibrated else "got a bundle calibrated without"
        with pytest.raises(ConfigError, match=why):
            evaluate_site(bundle, site.files.root, tmp_path / "out", prevalence=0.1 if calibrated else None)
        assert read_json(locate(bundle) / "card.json")["site_openings"] == {}

    def test_it_fits_studies_and_leaves_slices_as_they_are(
        self, bundle: Path, site: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        progress.show()
        try:
            assert (
                cli.call(["recalibrate", str(bundle), str(site.files.root), "--out", str(tmp_path / "new"), "--json"])
                == 0
            )
        finally:
            progress.show(False)
        out, said = capsys.readouterr()
        assert "slices have no labels here: their probabilities and operating points are as before" in said
        old, new = load_bundle(bundle).card, load_bundle(tmp_path / "new").card
        assert json.loads(out) == new.studies.model_dump(mode="json") if new.studies else False
        assert new.studies is not None
        assert new.studies.dataset == site.manifest.fingerprint
        assert (new.scaling, new.operating_points, new.calibrations) == (
            old.scaling, old.operating_points, old.calibrations
        )  # fmt: skip
        slices = SliceSet(site, np.flatnonzero(site.column("role") != "test"))
        probabilities = new.studies.scaling(highest(load_bundle(bundle), slices))
        assert probabilities.mean() == pytest.approx(studies_of(slices).label("any").mean(), abs=1e-3)
        fitted = new.studies.labels["any"]
        assert fitted.log_loss_before is not None
        assert fitted.log_loss_after is not None
        assert fitted.log_loss_after < fitted.log_loss_before - 0.1
        assert new.test is None

    def test_what_studies_cannot_fit_is_refused(self, bundle: Path, site: PreparedDataset, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="studies are fitted by platt alone, got temperature"):
            recalibrate(bundle, site.files.root, tmp_path / "new", method="temperature")
        few = make_dataset(tmp_path / "few", patients=30, seed=6)
        few = with_examinations(few, "study", {"t0000": {"any": 1}, "t0001": {"any": 0}}, alone=True)
        message = "at least 10 patients with a study with haemorrhage must be there outside the test role, got 1;"
        with pytest.raises(ConfigError, match=message):
            recalibrate(bundle, few.files.root, tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_a_sequence_model_answers_for_studies_and_is_held_against_the_network(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "search", tmp_path / "search")
    search = SearchFiles(locate(tmp_path / "search"))
    alone = calibrate(search.root)
    without = OwnScaling(prior_shift=alone.prior_shift, temperature=alone.temperature, bias=alone.bias)
    add_sequence(Path(str(search.bundle)))
    calibrate(search.root)
    found = evaluate(search.root)
    assert found.studies is not None
    assert found.studies.score == "study head"
    bundle, slices = load_bundle(search.bundle), PreparedDataset.open(home / "dataset").role("test")
    own = bundle.network_label_logits(slices)[:, -1]
    truth = slices.labels.reshape(-1, SLICES_A_PATIENT).max(1)
    study = bundle.study_label_logits(slices).logits[:, -1]
    changed = found.sequence_change
    assert [*changed] == ["average_precision", "roc_auc", "study_average_precision", "study_roc_auc"]
    assert changed["roc_auc"].without == pytest.approx(sklearn_metrics.roc_auc_score(slices.labels, own))
    assert changed["roc_auc"].with_sequence == found.metrics["roc_auc"].value
    highest_own = own.reshape(-1, SLICES_A_PATIENT).max(1)
    figure = changed["study_roc_auc"]
    assert figure.without == pytest.approx(sklearn_metrics.roc_auc_score(truth, highest_own))
    assert figure.with_sequence == pytest.approx(sklearn_metrics.roc_auc_score(truth, study))
    assert figure.with_sequence == found.studies.metrics["roc_auc"].value
    assert figure.difference == pytest.approx(figure.with_sequence - (figure.without or 0))
    table = pq.read_table(str(search.predictions)).to_pydict()
    assert bundle.card.sequence is not None
    assert bundle.card.sequence.own_scaling is not None
    said = np.array(table["probability_without_sequence"])
    assert said == pytest.approx(bundle.card.sequence.own_scaling.scaling(own))
    fitted = PreparedDataset.open(home / "dataset").role("calibration")
    own_fitted, truth = bundle.network_label_logits(fitted)[:, -1], fitted.labels
    assert bundle.card.sequence.own_scaling == without
    blended = sklearn_metrics.log_loss(truth, bundle.calibrated(own_fitted))
    assert sklearn_metrics.log_loss(truth, without.scaling(own_fitted)) < blended - 0.001


def test_a_bundle_calibrated_by_an_older_version_says_nothing_of_its_network_alone(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "search", tmp_path / "search")
    search = SearchFiles(locate(tmp_path / "search"))
    add_sequence(Path(str(search.bundle)))
    calibrate(search.root)
    card = read_json(search.bundle / "card.json")
    del card["sequence"]["own_scaling"]
    write_json(search.bundle / "card.json", card)
    assert evaluate(search.root).sequence_change
    assert "probability_without_sequence" not in pq.read_schema(str(search.predictions)).names
