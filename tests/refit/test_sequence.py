from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score

from ich_ray.assess.calibration import calibrate
from ich_ray.bundle.bundle import load_bundle
from ich_ray.bundle.card_file import read_card
from ich_ray.bundle.study_logits import study_logits
from ich_ray.cli import call
from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.study_labels import studies_of
from ich_ray.errors import ConfigError, SpaceError
from ich_ray.refit import bundle_features
from ich_ray.refit.bundle_features import features_key, open_features
from ich_ray.refit.sequence import sequence, space_for
from ich_ray.refit.sequence_conditions import drop_outdated
from ich_ray.refit.sequence_trials import SequenceTrainer
from ich_ray.results import open_search
from ich_ray.runtime import connected
from ich_ray.search.audit.search_audit import audit
from ich_ray.search.best_states import best_state
from ich_ray.search.run import run_request
from ich_ray.search.tune.trial import TrialSettings
from ich_ray.storage import SearchFiles, locate, read_json, write_json
from ich_ray.training.sequence_batches import sequence_logits
from ich_ray.training.sequence_set import SequenceSet
from ich_ray.training.state import TrainingState
from tests.prepared import make_dataset
from tests.searched import make_bundle, make_search

SPACE = """
name: tiny
searches: sequence
budget: {images: 400, report_every: 100, first_rung: 400}
parameters:
  model: {choice: [bigru, dilated_conv]}
  hidden: {fixed: 8}
  projection: {fixed: 8}
  batch_size: {fixed: 8}
  learning_rate: {loguniform: [1.0e-3, 1.0e-2]}
"""


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "sequence.yaml"
    path.write_text(SPACE)
    return path


@pytest.fixture
def copied(retrained: SearchFiles, tmp_path: Path) -> SearchFiles:
    """A search with a bundle that is not calibrated, to write into."""
    shutil.copytree(str(retrained.root), str(tmp_path / "search"))
    return SearchFiles(locate(tmp_path / "search"))


def tree(folder: object) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path(str(folder)).rglob("*")) if path.is_file()}


def trained_on_all(files: SearchFiles) -> None:
    card = read_json(files.bundle / "card.json")
    retraining = {"patients": "train+validation", "images": 1, "budget": "", "best_images_seen": 1, "seed": 0,
                  "seeds": [0], "rule": "the only one", "validation": None}  # fmt: skip
    write_json(files.bundle / "card.json", {**card, "retraining": retraining})


def without_bundle(files: SearchFiles) -> None:
    shutil.rmtree(str(files.bundle))


def with_features_of_another(files: SearchFiles) -> None:
    write_json(files.sequence.features / ("0" * 16) / "features.json", {})


def without_positive_calibration(files: SearchFiles) -> None:
    """The dataset is that of all tests: a copy of it."""
    record = read_json(files.search)
    folder = Path(str(files.root)) / "data"
    shutil.copytree(record["dataset"], folder)
    manifest = read_json(locate(folder / "dataset.json"))
    manifest["roles"]["calibration"]["positives"] = 0
    write_json(locate(folder / "dataset.json"), manifest)
    write_json(files.search, {**record, "dataset": str(folder)})


def as_it_is(files: SearchFiles) -> None:
    del files


@pytest.mark.parametrize(
    ("change", "written", "says"),
    [
        (without_bundle, SPACE, r"reads features of a bundle, got none; run `ich-ray retrain` first"),
        (trained_on_all, SPACE, r"got one that trained on train\+validation; retrain it with --patients train"),
        (with_features_of_another, SPACE, r"got others \(0{16} instead of .*; remove the folder to search anew"),
        (without_positive_calibration, SPACE, r"calibration must have positive and negative slices, got 0 positive of"),
        (as_it_is, SPACE.replace("searches: sequence", ""), r"sequence\.yaml: model: must be a parameter of the"),
        (as_it_is, "name: x\nbudget: {images: 4, report_every: 4, first_rung: 4}\nparameters: {dropout: 0.1}\n",
         r"searches: must be sequence here, got network; give it to `ich-ray search`"),
        (as_it_is, SPACE.replace("400}", "300}"), r"budget\.images|first_rung"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_and_nothing_is_written(
    change: Callable[[SearchFiles], None],
    written: str,
    says: str,
    copied: SearchFiles,
    space: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(copied)
    space.write_text(written.replace("report_every: 100", "report_every: 90") if "300}" in written else written)
    before = tree(copied.root)
    with pytest.raises((ConfigError, SpaceError), match=says):
        sequence(copied.root, space=space)
    assert call(["sequence", str(copied.root), "--space", str(space)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert tree(copied.root) == before


def test_a_search_of_networks_refuses_a_space_of_sequence_models(copied: SearchFiles, space: Path) -> None:
    dataset = open_search(copied.root).record.dataset
    out = copied.root.parent / "new"
    assert call(["search", dataset, "--space", str(space), "--out", str(out)]) == 2
    assert not out.exists()


@pytest.mark.parametrize("verb", ["sequence", "retrain", "confirm", "report"])
def test_a_search_of_sequence_models_has_no_bundle_of_its_own(
    verb: str, tmp_path: Path, dataset: PreparedDataset
) -> None:
    files = make_search(tmp_path / "search", dataset)
    record = read_json(files.search)
    write_json(files.search, {**record, "space": {**record["space"], "searches": "sequence"}})
    before = tree(files.root)
    assert call([verb, str(files.root)]) == 2
    assert tree(files.root) == before


def test_series_of_one_slice_teach_nothing(
    tmp_path: Path, space: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("ich_ray.refit.sequence.say", said.append)
    data = make_dataset(tmp_path / "data", patients=40, size=16)
    names = [f"s{number}" for number in range(len(data))]
    table = data.slices.set_column(data.slices.column_names.index("series"), "series", pa.array(names))
    pq.write_table(table, str(data.files.slices))
    files = make_search(tmp_path / "search", alone := PreparedDataset.open(data.files.root))
    make_bundle(files, alone)
    trained_on_all(files)  # which would be refused if there were something to learn
    before = tree(files.root)
    assert call(["sequence", str(files.root), "--space", str(space)]) == 0
    assert said == [
        "sequence: skipped, 0 of 88 train slices have another slice in their series; the bundle stays as it is"
    ]
    assert capsys.readouterr().out == f"bundle  {files.bundle}\n"
    assert tree(files.root) == before


@dataclass(frozen=True)
class Killed(SequenceTrainer):
    """Kills its process once, after its third report."""

    once: str = ""

    def __call__(self, *given: Any) -> Generator[Any, None, None]:
        for progress in super().__call__(*given):
            if progress.images_seen == 300 and Path(self.once).exists():
                Path(self.once).unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            yield progress


@pytest.fixture(scope="module")
def searched(retrained: SearchFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SearchFiles]:
    """One trial whose process was killed on its way, then a second one; files of features that were there were kept."""
    folder = tmp_path_factory.mktemp("sequence")
    shutil.copytree(str(retrained.root), str(folder / "search"))
    files = SearchFiles(locate(folder / "search"))
    (folder / "space.yaml").write_text(SPACE)
    (folder / "once").touch()
    labels = read_card(files.bundle).parameters.predicted_labels
    key = features_key(read_card(files.bundle), PreparedDataset.of_search(open_search(files.root)))
    with connected(cpus=2):
        killed = Killed(key, labels, once=str(folder / "once"))
        sequence(files.root, space=folder / "space.yaml", trials=1, _trainer=killed)
        assert not (folder / "once").exists()
        calibrate(files.root)
        sequence(files.root, space=folder / "space.yaml", trials=2, resume=True)
        yield files


def test_a_killed_trial_ends_as_an_undisturbed_one(searched: SearchFiles, dataset: PreparedDataset) -> None:
    trial = open_search(searched.sequence.root).trials[0]
    assert (trial.state, trial.attempts) == ("completed", 2)
    settings = TrialSettings(
        dataset=str(dataset.files.root),
        fingerprint=dataset.manifest.fingerprint,
        search=str(searched.sequence.root),
        images=400,
        report_every=100,
        cpus=1,
        gpus=0,
        searches="sequence",
    )
    card = read_card(searched.bundle)
    trainer = SequenceTrainer(features_key(card, dataset), card.parameters.predicted_labels)
    from ich_ray.model.sequence_parameters import SequenceParameters

    steps = trainer(SequenceParameters.model_validate(trial.parameters), dataset, settings, trial.seed, None)
    assert [step.metrics["average_precision"] for step in steps] == pytest.approx(
        [report.metrics["average_precision"] for report in trial.reports], rel=1e-6
    )


def test_its_search_is_one_like_any_other(searched: SearchFiles, capsys: pytest.CaptureFixture[str]) -> None:
    found = audit(searched.sequence.root)
    assert (found.state, found.breached) == ("ended", ())
    assert call(["results", str(searched.sequence.root)]) == 0
    assert "tiny: 2 of 2 trials: 2 completed" in capsys.readouterr().out
    assert {trial.metrics.keys() >= {"study_average_precision", "log_loss"} for trial in
            open_search(searched.sequence.root).trials} == {True}  # fmt: skip


def test_an_audit_of_the_search_sees_other_weights_of_the_sequence_model(searched: SearchFiles, tmp_path: Path) -> None:
    shutil.copytree(str(searched.root), str(tmp_path / "search"))
    assert audit(tmp_path / "search").checks[6].breaches == ()
    (file,) = (tmp_path / "search" / "final" / "bundle").glob("sequence-*.safetensors")
    file.write_bytes(b"others")
    told = f"final/bundle/{file.name}: SHA-256 must be the one in card.json, got another one"
    assert audit(tmp_path / "search").checks[6].breaches == (told,)


def test_the_bundle_holds_the_best_trial_and_what_each_way_reaches(searched: SearchFiles) -> None:
    ended, bundle = open_search(searched.sequence.root), load_bundle(searched.bundle)
    note, best = bundle.card.sequence, ended.best()
    assert note is not None
    assert bundle.sequence is not None
    assert (note.trial, note.trials, note.value) == (best.number, 2, best.value)
    state = TrainingState.load(best_state(ended.files.weights_of(best.seed), best))
    assert all(torch.equal(value.cpu(), state.part("weights")[name]) for name, value in
               bundle.sequence.state_dict().items())  # fmt: skip
    for figures in note.figures.values():
        assert isinstance(figures, dict)
        assert [*figures] == ["none", "smoothing", "sequence"]
    assert bundle.card.operating_points == {}  # those before were of the network alone


def test_what_the_bundle_answers_is_the_blend(searched: SearchFiles, dataset: PreparedDataset) -> None:
    bundle, slices = load_bundle(searched.bundle), dataset.role("calibration")
    assert bundle.card.sequence is not None
    blend = bundle.card.sequence.blend["any"]
    own, blended = bundle.network_label_logits(slices), bundle.slice_label_logits(slices)
    rest = blended - blend.own * own - blend.bias
    assert bundle.sequence is not None
    labels = bundle.card.parameters.predicted_labels
    features = open_features(searched.sequence, dataset, features_key(bundle.card, dataset))
    given = SequenceSet.of(dataset, slices.rows, features.of_rows(slices.rows), labels)
    said = sequence_logits(bundle.sequence, given.features, given.order, bundle.device).slices
    assert blend.sequence > 0
    assert said.std() > 0.01
    np.testing.assert_allclose(rest, blend.sequence * said, atol=1e-4)


def test_figures_of_studies_are_by_the_rules_of_evaluate(searched: SearchFiles, dataset: PreparedDataset) -> None:
    bundle, slices = load_bundle(searched.bundle), dataset.role("validation")
    assert bundle.card.sequence is not None
    own, studies = bundle.network_label_logits(slices), studies_of(slices)
    head = bundle.study_label_logits(slices)
    answering = study_logits(slices, head.answering, own, "maximum")
    figures = bundle.card.sequence.figures["validation"]
    assert isinstance(figures, dict)
    for way, found in (("none", answering), ("sequence", head)):
        expected = roc_auc_score(studies.label("any"), found.logits[found.of_slice[studies.first], -1])
        assert figures[way]["study_roc_auc"] == pytest.approx(expected)  # type: ignore[index,call-overload]


def test_class_weights_are_not_taken_out_of_blended_logits_again(
    searched: SearchFiles, copied: SearchFiles, tmp_path: Path
) -> None:
    shutil.copytree(str(searched.root), str(tmp_path / "blended"))
    assert calibrate(copied.root).prior_shift == pytest.approx(-0.762, abs=0.001)  # of a network alone
    assert calibrate(tmp_path / "blended").prior_shift == 0


def test_features_are_of_the_bundle_and_stay(searched: SearchFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is computed again, and a finished stage changes nothing."""

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(bundle_features, "_alone", never)
    before = tree(searched.bundle)
    note = sequence(searched.root, space=searched.root.parent / "space.yaml", resume=True)
    assert note == read_card(searched.bundle).sequence
    assert sequence(searched.root, resume=True) == note  # in the space that it was begun with, and no other
    assert call(["sequence", str(searched.root), "--resume"]) == 0
    assert tree(searched.bundle) == before


@pytest.fixture
def finished(searched: SearchFiles, tmp_path: Path) -> SearchFiles:
    """A copy whose bundle has the best of its trials, to write into."""
    shutil.copytree(str(searched.root), str(tmp_path / "search"))
    return SearchFiles(locate(tmp_path / "search"))


def other_weights(files: SearchFiles) -> None:
    bundle = load_bundle(files.bundle)
    assert bundle.sequence is not None
    with torch.no_grad():
        next(bundle.sequence.parameters()).add_(1)
    bundle.save(files.bundle)


def other_parameters(files: SearchFiles) -> None:
    card = read_json(files.bundle / "card.json")
    parameters = {**card["sequence"]["parameters"], "learning_rate": 0.5}
    write_json(files.bundle / "card.json", {**card, "sequence": {**card["sequence"], "parameters": parameters}})


@pytest.mark.parametrize("change", [other_weights, other_parameters])
def test_another_model_of_the_same_number_and_value_is_not_the_best_of_these_trials(
    finished: SearchFiles, change: Callable[[SearchFiles], None]
) -> None:
    before = read_card(finished.bundle).sequence
    change(finished)
    note = sequence(finished.root, resume=True)
    assert before is not None
    assert note is not None
    assert (note.parameters, note.weights) == (before.parameters, before.weights)
    assert read_card(finished.bundle).sequence == note


def test_a_bundle_that_was_replaced_meanwhile_gets_no_sequence_model(
    finished: SearchFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its features are of another network than those that were searched."""

    def replacing(*given: Any, **keys: Any) -> Any:
        ended = run_request(*given, **keys)
        bundle = load_bundle(finished.bundle)
        with torch.no_grad():
            next(bundle.network.parameters()).add_(1)
        bundle.save(finished.bundle)
        replaced.update(tree(finished.bundle))
        return ended

    replaced: dict[str, bytes] = {}
    monkeypatch.setattr("ich_ray.search.run.run_request", replacing)
    with pytest.raises(ConfigError, match=r"final/bundle: the bundle must be the one whose features were searched, go"):
        sequence(finished.root, resume=True)
    assert tree(finished.bundle) == replaced


def test_what_is_not_ours_among_the_features_is_not_another_bundle(finished: SearchFiles) -> None:
    (Path(str(finished.sequence.features)) / ".DS_Store").touch()
    before = read_card(finished.bundle).sequence
    assert sequence(finished.root, resume=True) == before
    drop_outdated(open_search(finished.root))
    assert finished.sequence.search.exists()


def test_a_search_of_the_bundle_before_is_dropped_and_of_this_one_kept(searched: SearchFiles, tmp_path: Path) -> None:
    shutil.copytree(str(searched.root), str(tmp_path / "search"))
    files = SearchFiles(locate(tmp_path / "search"))
    drop_outdated(open_search(files.root))
    assert files.sequence.search.exists()
    card = read_json(files.bundle / "card.json")
    write_json(files.bundle / "card.json", {**card, "weights": {**card["weights"], "sha256": "ab" * 32}})
    drop_outdated(open_search(files.root))
    assert not files.sequence.root.exists()


def test_the_space_follows_from_the_number_of_series(searched: SearchFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = PreparedDataset.of_search(open_search(searched.root))
    assert space_for(dataset).name == "sequence_small.yaml"
    monkeypatch.setattr("ich_ray.refit.sequence._MANY_SERIES", len(set(dataset.role("train").patients)))
    assert space_for(dataset).name == "sequence.yaml"
