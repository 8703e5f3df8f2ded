from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import expit, logit

from ich_ray import cli, progress
from ich_ray.assess.evaluate import evaluate_site
from ich_ray.assess.recalibration import recalibrate
from ich_ray.bundle.bundle import Bundle, load_bundle
from ich_ray.bundle.training_patients import check_site
from ich_ray.data.dataset import PreparedDataset, SliceSet
from ich_ray.errors import ConfigError
from ich_ray.statistics.metrics import confusion, log_loss
from ich_ray.storage import locate, read_json, write_json
from tests.prepared import make_dataset
from tests.searched import calibrated_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated bundle with test figures."""
    made = calibrated_bundle(tmp_path_factory.mktemp("home"))
    file = locate(made / "card.json")
    write_json(file, {**read_json(file), "test": {"slices": 1}, "openings": 1})
    return made


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_dataset(tmp_path_factory.mktemp("site") / "dataset", patients=80, seed=5)


def other_roles(site: PreparedDataset) -> SliceSet:
    return SliceSet(site, np.flatnonzero(site.column("role") != "test"))


def test_the_new_card_names_both_calibrations(bundle: Path, site: PreparedDataset, tmp_path: Path) -> None:
    found = recalibrate(bundle, site.files.root, tmp_path / "new")
    old, new = load_bundle(bundle).card, load_bundle(tmp_path / "new").card
    assert [note.dataset for note in new.calibrations] == [old.dataset.fingerprint, site.manifest.fingerprint]
    assert [note.method for note in new.calibrations] == ["temperature", "platt"]
    assert (new.calibrations[1].positives, new.test, new.openings) == (found.positives, None, 1)
    assert (new.dataset, new.weights.sha256) == (old.dataset, old.weights.sha256)
    assert new.operating_points == found.operating_points != old.operating_points
    assert old.test == {"slices": 1}, "the first bundle stays as it was"


def test_it_fits_a_site_whose_scans_look_otherwise(
    bundle: Path, site: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits that overlap, are 2.5 times too large and 3 too high there come back to the rate of the site."""
    noise = np.random.default_rng(0).normal(-1, 1, len(site))
    of_site = lambda _, slices: (2.5 * (noise[slices.rows] + 2 * slices.labels) + 3)[:, None]  # noqa: E731
    monkeypatch.setattr(Bundle, "slice_label_logits", of_site)
    found = recalibrate(bundle, site.files.root, tmp_path / "new", sensitivity=0.8)
    slices, new = other_roles(site), load_bundle(tmp_path / "new")
    probabilities = new.calibrated(new.slice_logits(slices))
    assert probabilities.mean() == pytest.approx(slices.prevalence, abs=1e-4)
    before = load_bundle(bundle).calibrated(new.slice_logits(slices))
    assert found.log_loss_before == pytest.approx(log_loss(slices.labels, before))
    assert found.log_loss_after == pytest.approx(log_loss(slices.labels, probabilities))
    assert found.log_loss_after < found.log_loss_before - 0.1
    again = expit(logit(probabilities) * 1.3)
    assert log_loss(slices.labels, again) > found.log_loss_after, "no other slope does better"
    point = found.operating_points["sensitivity_80"]
    assert confusion(slices.labels, probabilities, point.threshold).sensitivity == point.sensitivity
    assert 0.8 <= (point.sensitivity or 0) < 0.85


def test_the_labels_of_its_test_role_do_not_matter(
    bundle: Path, site: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = recalibrate(bundle, site.files.root, tmp_path / "one")
    original = PreparedDataset.label

    def scrambled(self: PreparedDataset, name: str) -> np.ndarray:
        labels, test = original(self, name).copy(), self.column("role") == "test"
        labels[test] = 1 - labels[test]
        return labels

    monkeypatch.setattr(PreparedDataset, "label", scrambled)
    assert recalibrate(bundle, site.files.root, tmp_path / "two") == before


def test_what_does_not_fit_is_refused(bundle: Path, site: PreparedDataset, tmp_path: Path) -> None:
    small = make_dataset(tmp_path / "small", patients=20, size=16)
    message = r"--size 32 --windows brain=40/80,subdural=80/200,bone=600/2800"
    with pytest.raises(ConfigError, match=message):
        recalibrate(bundle, small.files.root, tmp_path / "new")
    card = load_bundle(bundle).card
    seeing = card.model_copy(update={"parameters": card.parameters.model_copy(update={"neighbors": 1})})
    nowhere = make_dataset(tmp_path / "nowhere", patients=20, seed=4)
    pq.write_table(nowhere.slices.drop_columns(["position_mm"]), str(nowhere.files.slices))
    nowhere = PreparedDataset.open(nowhere.files.root)
    check_site(locate(bundle), card, nowhere)
    with pytest.raises(ConfigError, match="neighbors: 1 needs the series and position of slices, got none in"):
        check_site(locate(bundle), seeing, nowhere)
    few = make_dataset(tmp_path / "few", patients=20, seed=3)
    with pytest.raises(ConfigError, match=r"at least 20 patients with a slice with .*, got 1\d; use --method"):
        recalibrate(bundle, few.files.root, tmp_path / "new")
    fewer = make_dataset(tmp_path / "fewer", patients=9, seed=3)
    with pytest.raises(ConfigError, match=r"at least 10 patients .* fit by temperature, got \d; label more"):
        recalibrate(bundle, fewer.files.root, tmp_path / "new", method="temperature")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match="a folder without a bundle must be given"):
        recalibrate(bundle, site.files.root, bundle)
    home = read_json(bundle / "card.json")["dataset"]["fingerprint"]  # type: ignore[arg-type]
    own = make_dataset(tmp_path / "own")
    assert own.manifest.fingerprint == home
    with pytest.raises(ConfigError, match="got the dataset that trained the bundle"):
        recalibrate(bundle, own.files.root, tmp_path / "new")


def test_patients_that_the_bundle_knows_are_no_other_site(bundle: Path, tmp_path: Path) -> None:
    """The same patients prepared again, with more of them, have another fingerprint."""
    again = make_dataset(tmp_path / "again", patients=80)
    message = r"again: patients of another site must be given, got 60 of 80 who are in the dataset that made the bundle"
    with pytest.raises(ConfigError, match=message):
        recalibrate(bundle, again.files.root, tmp_path / "new")
    with pytest.raises(ConfigError, match=message):
        evaluate_site(bundle, again.files.root, tmp_path / "figures")
    assert read_json(locate(bundle) / "card.json")["site_openings"] == {}
    other = make_dataset(tmp_path / "other", patients=80, seed=5)
    recalibrate(bundle, other.files.root, tmp_path / "new")
    with pytest.raises(ConfigError, match=message):
        evaluate_site(tmp_path / "new", again.files.root, tmp_path / "figures")
    assert not any(patient in (bundle / "patients.json").read_text() for patient in again.column("patient"))
    (tmp_path / "new" / "patients.json").unlink()  # as in bundles of older versions
    evaluate_site(tmp_path / "new", again.files.root, tmp_path / "figures")


def test_the_site_can_measure_what_it_got(
    bundle: Path,
    site: PreparedDataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On its own test patients, whom recalibration left closed; openings are counted for each dataset."""
    monkeypatch.setattr("ich_ray.assess.evaluate.RESAMPLES", 50)
    recalibrate(bundle, site.files.root, tmp_path / "new")
    command = [
        "evaluate-site",
        str(tmp_path / "new"),
        str(site.files.root),
        "--out",
        str(tmp_path / "figures"),
        "--json",
    ]
    assert cli.call([*command, "--prevalence", "0.02"]) == 0
    found = json.loads(capsys.readouterr().out)
    test = site.role("test")
    assert (found["slices"], found["positives"], found["opened"]) == (len(test), int(test.labels.sum()), 1)
    assert found["dataset"] == site.manifest.fingerprint
    assert found["operating_points"]["f2"]["stated"]["prevalence"] == 0.02
    assert not any("rank models" in note for note in found["notes"]), "nothing was ranked there"
    table = pq.read_table(str(tmp_path / "figures" / "predictions.parquet")).to_pydict()
    assert table["slice_id"] == site.column("slice_id")[test.rows].tolist()
    new = load_bundle(tmp_path / "new")
    assert table["probability"] == pytest.approx(new.calibrated(new.slice_logits(test)).tolist())
    assert (new.card.openings, new.card.site_openings) == (1, {site.manifest.fingerprint: 1})
    assert new.card.checklist["Testing on data of other sites"].startswith(
        f"dataset {site.manifest.fingerprint}, opened 1"
    )
    assert cli.call(command) == 0
    assert json.loads(capsys.readouterr().out)["opened"] == 2
    other = make_dataset(tmp_path / "other", patients=80, seed=6)
    recalibrate(tmp_path / "new", other.files.root, tmp_path / "newer")
    newer = load_bundle(tmp_path / "newer").card
    assert (newer.site_tests, newer.site_openings) == ({}, {site.manifest.fingerprint: 2}), "figures of the one before"
    own = make_dataset(tmp_path / "own")
    with pytest.raises(ConfigError, match="got the dataset that trained the bundle"):
        evaluate_site(tmp_path / "new", own.files.root, tmp_path / "figures")


def test_one_command_does_it(
    bundle: Path, site: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    command = ["recalibrate", str(bundle), str(site.files.root), "--out", str(out)]
    assert cli.call([*command, "--method", "temperature", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dataset"] == site.manifest.fingerprint
    assert load_bundle(out).card.calibrations[-1].method == "temperature"
    assert cli.call(command) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("command", ["recalibrate", "evaluate-site"])
def test_a_site_unlike_the_training_data_is_said(
    command: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = make_dataset(tmp_path / "site", patients=80, seed=6)
    thin = pa.array(np.asarray(site.column("position_mm"), np.float32) * np.float32(0.1))
    table = site.slices.drop_columns("position_mm").append_column("position_mm", thin)
    pq.write_table(table, str(site.files.slices))
    progress.show()
    try:
        assert cli.call([command, str(bundle), str(site.files.root), "--out", str(tmp_path / "out")]) == 0
    finally:
        progress.show(False)
    said = "slices of this site are unlike those that trained the bundle: distance of slices in mm 0.5, trained with 5"
    assert said in capsys.readouterr().err


def test_a_file_in_place_of_the_folder_costs_no_opening(
    bundle: Path, site: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken, before = tmp_path / "taken", read_json(bundle / "card.json")
    taken.write_text("mine")
    for verb in ("evaluate-site", "recalibrate"):
        assert cli.call([verb, str(bundle), str(site.files.root), "--out", str(taken)]) == 2
        said = f"ich-ray: --out {taken}: must be a folder, got a file at {taken}; name another\n"
        assert capsys.readouterr().err == said
    (tmp_path / "figures" / "evaluation.json").mkdir(parents=True)
    assert cli.call(["evaluate-site", str(bundle), str(site.files.root), "--out", str(tmp_path / "figures")]) == 2
    assert "evaluation.json: must be a file, got a folder" in capsys.readouterr().err
    assert read_json(bundle / "card.json") == before
    assert taken.read_text() == "mine"
