from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ich_ray.assess.evaluate import evaluate_site
from ich_ray.assess.recalibration import recalibrate
from ich_ray.bundle.bundle import load_bundle
from ich_ray.bundle.card_file import read_card
from ich_ray.cli import call
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError
from ich_ray.refit import adaptation_training, bundle_features
from ich_ray.refit.adapt import adapt
from ich_ray.refit.adaptation_training import Adapted
from ich_ray.runtime import connected
from ich_ray.storage import locate, read_json, write_json
from tests.examined import half_bleeding, with_columns, with_examinations
from tests.prepared import SLICES_A_PATIENT, make_dataset, squares
from tests.searched import PARAMETERS, calibrated_bundle
from tests.sequence_bundles import add_sequence

PATIENTS = 160  # 24 of calibration and of validation, half of whom bleed


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated bundle whose sequence model is drawn and not trained."""
    folder = tmp_path_factory.mktemp("home")
    made = add_sequence(calibrated_bundle(folder, PARAMETERS.model_copy(update={"labels": "all"})))
    file = locate(made / "card.json")
    write_json(file, {**read_json(file), "test": {"slices": 1}, "openings": 1})
    return made


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """A site that labels slices, and where what the network takes for blood is in patients who have none.

    One patient of eight is not what the others of its kind look like.
    """
    patient = np.repeat(np.arange(PATIENTS), SLICES_A_PATIENT)
    images = squares(np.random.default_rng(5), 32, (patient % 2 == 1) ^ (patient % 16 >= 14))
    return half_bleeding(make_dataset(tmp_path_factory.mktemp("site") / "data", PATIENTS, seed=5, images=images))


@pytest.fixture(scope="module")
def site(slices: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """The same site with labels of its studies alone."""
    folder = tmp_path_factory.mktemp("studies") / "data"
    shutil.copytree(str(slices.files.root), folder)
    known = {f"t{patient:04d}": {"any": int(patient % 2 == 0)} for patient in range(PATIENTS)}
    return with_examinations(PreparedDataset.open(folder), "study", known, alone=True)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Parts of the features are made here, except where a test starts Ray."""
    if "ray" in request.fixturenames:
        return

    def mapped(job: Any, numbers: list[int]) -> Iterator[int]:
        for number in numbers:
            bundle_features.make_part(job, number)
            yield number

    monkeypatch.setattr(bundle_features, "_mapped", mapped)
    monkeypatch.setattr("ich_ray.refit.adapt.connected", lambda _: torch.no_grad())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation_training, "budget_of", lambda _: 1000)


@pytest.fixture
def ray() -> Iterator[None]:
    with connected(cpus=1):
        yield


def weights(folder: Path) -> dict[str, torch.Tensor]:
    network = load_bundle(folder).sequence
    assert network is not None
    return dict(network.state_dict())


def changed(one: Path, other: Path) -> set[str]:
    before, after = weights(one), weights(other)
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_labels_of_studies_alone_fit_the_study_head(
    home: Path, site: PreparedDataset, tmp_path: Path, ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out, before = tmp_path / "out", tree(home)
    assert call(["adapt", str(home), str(site.files.root), "--out", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert tree(home) == before
    old, new = read_card(locate(home)), read_card(locate(out))
    assert new.sequence is not None
    assert old.sequence is not None
    (note,) = new.sequence.adaptations
    assert note.model_dump(mode="json") == told
    assert (note.dataset, note.labels, note.budget) == (site.manifest.fingerprint, "studies", 4000)
    assert note.train.model_dump() == {"patients": 88, "positives": 44, "series": 88}
    assert note.calibration.model_dump() == {"patients": 24, "positives": 12, "series": 24}
    assert note.changed
    assert note.loss_after < note.loss_before - 0.1
    figure = note.figures["study_roc_auc"]
    assert figure.difference == pytest.approx(figure.after - figure.before)
    assert figure.before < 0.5
    assert figure.after > 0.7
    assert figure.low is not None
    assert figure.low > 0
    assert [*note.figures] == ["study_log_loss", "study_average_precision", "study_roc_auc"]
    heads = ("attention.", "study_head.")
    assert changed(home, out) == {name for name in weights(home) if name.startswith(heads)}
    assert new.sequence.blend == old.sequence.blend
    assert (new.scaling, new.operating_points, new.weights) == (old.scaling, old.operating_points, old.weights)
    assert new.studies is not None
    assert (new.studies.dataset, new.studies.labels["any"].scaled_by) == (site.manifest.fingerprint, "own")
    assert (new.test, new.openings, new.sequence.figures) == (None, 1, {})
    assert f"fitted to labels of studies of 88 patients of dataset {note.dataset}" in new.checklist["Final training"]
    named = {"card.json", "patients.json", new.weights.file, new.sequence.weights.file}
    assert {path.name for path in out.iterdir()} == named, "no features are left"


def test_slices_say_what_they_said_before_and_studies_what_the_note_says(
    home: Path, site: PreparedDataset, tmp_path: Path, quick: None
) -> None:
    note = adapt(home, site.files.root, tmp_path / "out")
    one, other, calibration = load_bundle(home), load_bundle(tmp_path / "out"), site.role("calibration")
    np.testing.assert_array_equal(other.slice_label_logits(calibration), one.slice_label_logits(calibration))
    logits = [bundle.study_label_logits(calibration).logits[:, -1] for bundle in (one, other)]
    bleeding = np.arange(len(logits[0])) % 2 == 0
    shares = [np.mean(each[bleeding][:, None] > each[~bleeding]) for each in logits]
    # Each fold of five has numbers of its own, which move studies a little against each other.
    assert shares[1] == pytest.approx(note.figures["study_roc_auc"].after, abs=0.1)
    found = evaluate_site(tmp_path / "out", site.files.root, tmp_path / "figures")
    assert found.studies is not None
    assert (found.studies.score, found.studies.cases) == ("study head", 24)
    assert (found.studies.metrics["roc_auc"].value or 0) > 0.7


def test_labels_of_slices_fit_all_of_it_its_blend_and_both_calibrations(
    home: Path, slices: PreparedDataset, tmp_path: Path, quick: None
) -> None:
    note = adapt(home, slices.files.root, tmp_path / "out")
    assert (note.labels, note.changed) == ("slices", True)
    assert {"log_loss", "average_precision", "roc_auc", "study_log_loss", "study_roc_auc"} <= {*note.figures}
    assert note.figures["study_roc_auc"].difference > 0.2
    assert changed(home, tmp_path / "out") == {name for name in weights(home) if name not in {"mean", "std"}}
    old, new = read_card(locate(home)), read_card(locate(tmp_path / "out"))
    assert new.sequence is not None
    assert old.sequence is not None
    assert new.sequence.blend != old.sequence.blend
    assert [one.dataset for one in new.calibrations[len(old.calibrations) :]] == [slices.manifest.fingerprint]
    assert (new.calibrations[-1].method, new.calibrations[-1].patients) == ("temperature", 24)
    assert new.studies is not None
    assert new.studies.labels["any"].studies == 24


def test_a_model_that_no_report_betters_stays_and_says_so(
    home: Path, slices: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("ich_ray.refit.adapt.say", said.append)
    losses = iter([0.5, *[0.6] * 100])
    monkeypatch.setattr(adaptation_training, "site_loss", lambda *_: next(losses))
    monkeypatch.setattr(adaptation_training, "budget_of", lambda _: 100)
    note = adapt(home, slices.files.root, tmp_path / "out")
    assert (note.best, note.changed, note.loss_before, note.loss_after, note.figures) == (0, False, 0.5, 0.5, {})
    assert said == [
        "  the sequence model stays as it was: on the validation patients no report was better than the start, scaled "
        "log loss 0.5000 (88 series of 88 patients by labels of slices)"
    ]
    assert changed(home, tmp_path / "out") == set()
    new = read_card(locate(tmp_path / "out"))
    assert new.calibrations[-1].dataset == slices.manifest.fingerprint, "calibrated to the site all the same"


def test_labels_of_test_patients_do_not_matter(
    home: Path, slices: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptation_training, "budget_of", lambda _: 200)
    first = adapt(home, slices.files.root, tmp_path / "one")
    original = PreparedDataset.label

    def scrambled(self: PreparedDataset, name: str) -> Any:
        labels, test = original(self, name).copy(), self.column("role") == "test"
        labels[test] = 1 - labels[test]
        return labels

    monkeypatch.setattr(PreparedDataset, "label", scrambled)
    again = adapt(home, slices.files.root, tmp_path / "two")
    assert again.model_copy(update={"created": first.created}) == first
    one, two = (read_card(locate(tmp_path / name)).sequence for name in ("one", "two"))
    assert one is not None
    assert two is not None
    assert one.weights == two.weights


def test_features_that_are_whole_are_used_by_whoever_goes_on(
    home: Path, site: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(adaptation_training, "fit_to_labels", killed)
        with pytest.raises(KeyboardInterrupt):
            adapt(home, site.files.root, tmp_path / "out")
    assert not (tmp_path / "out" / "card.json").exists()
    monkeypatch.setattr(bundle_features, "make_part", lambda *_: pytest.fail("computed again"))
    adapt(home, site.files.root, tmp_path / "out")
    assert not (tmp_path / "out" / "adaptation").exists()


def test_object_storage_cannot_hold_what_is_mapped(home: Path, site: PreparedDataset) -> None:
    with pytest.raises(ConfigError, match="features of slices are mapped from a folder that all machines see, got obj"):
        adapt(home, site.files.root, "memory://bundles/site")


class TestAfterwards:
    """What a site may do with a bundle that was adapted to it."""

    @pytest.fixture
    def adapted(self, home: Path, site: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        start = load_bundle(home).sequence
        assert start is not None
        kept = Adapted({name: value.cpu() for name, value in start.state_dict().items()}, 0, (0.5,))
        monkeypatch.setattr(adaptation_training, "fit_to_labels", lambda *_, **__: kept)
        adapt(home, site.files.root, tmp_path / "adapted")
        return tmp_path / "adapted"

    def test_it_is_recalibrated_on_the_calibration_patients_alone(
        self, adapted: Path, site: PreparedDataset, tmp_path: Path
    ) -> None:
        found = recalibrate(adapted, site.files.root, tmp_path / "again")
        assert found.labels["any"].studies == 24  # type: ignore[union-attr]
        card = read_card(locate(tmp_path / "again"))
        assert card.sequence is not None
        assert len(card.sequence.adaptations) == 1

    def test_the_same_patients_in_another_dataset_are_refused(
        self, adapted: Path, home: Path, site: PreparedDataset, tmp_path: Path
    ) -> None:
        shutil.copytree(str(site.files.root), tmp_path / "again")
        manifest = locate(tmp_path / "again" / "dataset.json")
        write_json(manifest, {**read_json(manifest), "fingerprint": "a" * 32})
        with pytest.raises(ConfigError, match="got 136 of 160 to whose labels the bundle was adapted; give the"):
            evaluate_site(adapted, tmp_path / "again", tmp_path / "figures")
        evaluate_site(home, tmp_path / "again", tmp_path / "figures")
        assert "sites" not in read_json(locate(home / "patients.json"))

    def test_a_site_after_a_site_is_noted_too(self, adapted: Path, slices: PreparedDataset, tmp_path: Path) -> None:
        shutil.copytree(str(slices.files.root), tmp_path / "other")
        manifest = locate(tmp_path / "other" / "dataset.json")
        write_json(manifest, {**read_json(manifest), "fingerprint": "b" * 32})
        with_columns(PreparedDataset.open(tmp_path / "other"), patient=[f"x{row // 4}" for row in range(PATIENTS * 4)])
        adapt(adapted, tmp_path / "other", tmp_path / "both")
        card = read_card(locate(tmp_path / "both"))
        assert card.sequence is not None
        assert [one.labels for one in card.sequence.adaptations] == ["studies", "slices"]
        assert len(read_json(locate(tmp_path / "both" / "patients.json"))["sites"]) == 2


def _without_sequence(bundle: Path) -> None:
    _card(bundle, sequence=None)


def _ensemble(bundle: Path) -> None:
    card = read_json(locate(bundle / "card.json"))
    member = {"parameters": card["parameters"], "trial": 1, "seed": 1, "weights": card["weights"], "shifts": [0.0] * 6}
    _card(bundle, sequence=None, members=[member])


def _uncalibrated(bundle: Path) -> None:
    _card(bundle, operating_points={})


def _other_size(bundle: Path) -> None:
    _card(bundle, size=48, image_shape=[3, 48, 48])


def _made_by_it(bundle: Path) -> None:
    marks = read_json(locate(bundle / "patients.json"))
    from ich_ray.storage import sha256

    write_json(locate(bundle / "patients.json"), {**marks, "marks": [sha256(b"p50003")[:12]]})


def _as_it_is(bundle: Path) -> None:
    del bundle


def _card(bundle: Path, **changes: Any) -> None:
    file = locate(bundle / "card.json")
    write_json(file, {**read_json(file), **changes})


def _features_of_another(out: Path) -> None:
    write_json(locate(out / "adaptation" / "features" / ("0" * 16) / "features.json"), {})


def _a_bundle(out: Path) -> None:
    write_json(locate(out / "card.json"), {})


@pytest.mark.parametrize(
    ("change", "there", "says"),
    [
        (_without_sequence, _as_it_is, "a bundle with a sequence model must be given, got one without; run"),
        (_ensemble, _as_it_is, "a bundle of one network and its sequence model must be given, got an ensemble"),
        (_uncalibrated, _as_it_is, "a calibrated bundle must be given where labels are of a study each"),
        (_other_size, _as_it_is, "windows and size must be those of the bundle, got .* at 32 px"),
        (_made_by_it, _as_it_is, "got 1 of 160 who are in the dataset that made the bundle"),
        (_as_it_is, _a_bundle, "--out .*: a folder without a bundle must be given, got one with a bundle"),
        (_as_it_is, _features_of_another, r"features must be of this bundle and dataset, got others \(0{16} instead"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_line_and_writes_nothing(
    change: Callable[[Path], None],
    there: Callable[[Path], None],
    says: str,
    home: Path,
    site: PreparedDataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle, out = tmp_path / "bundle", tmp_path / "out"
    shutil.copytree(home, bundle)
    change(bundle)
    there(out)
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match=says):
        adapt(bundle, site.files.root, out)
    assert call(["adapt", str(bundle), str(site.files.root), "--out", str(out)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert tree(tmp_path) == before
    assert out.exists() == (there is not _as_it_is)


def test_a_site_with_few_patients_or_torn_series_is_refused(home: Path, tmp_path: Path) -> None:
    few = half_bleeding(make_dataset(tmp_path / "few", 80, seed=5))
    said = "at least 10 patients with a slice with haemorrhage must be in the validation role, got 6; label more"
    with pytest.raises(ConfigError, match=said):
        adapt(home, few.files.root, tmp_path / "out")
    unnamed = with_examinations(few, "study", {"t0000": {"any": 1}}, alone=True)
    with pytest.raises(ConfigError, match="10 patients with a study with haemorrhage must be in the train role, got 1"):
        adapt(home, few.files.root, tmp_path / "out")
    with_columns(unnamed, study=[""] * len(unnamed))
    with pytest.raises(ConfigError, match=r"studies must be there to be learned from, got none in the train role \("):
        adapt(home, few.files.root, tmp_path / "out")
    manifest = locate(tmp_path / "few" / "dataset.json")
    write_json(manifest, {**read_json(manifest), "split": "slice"})
    with pytest.raises(ConfigError, match="needs roles drawn by patient, got --split slice, where slices"):
        adapt(home, few.files.root, tmp_path / "out")
    assert not (tmp_path / "out").exists()
