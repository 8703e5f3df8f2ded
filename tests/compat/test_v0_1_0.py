"""What version 0.1.0 wrote is opened, gone on with and read as it was: make_v0_1_0.py says how it was written.

The files are copied and given a new place, as by a user who has moved them. Figures hold to 1e-6 where PyTorch runs the
kernels that they were recorded with, else to 1e-3; each test that compares any says which as a property of its record.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ich_ray import cli
from ich_ray.assess.evaluate import evaluate
from ich_ray.bundle.bundle import load_bundle
from ich_ray.data.dataset import PreparedDataset
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.refit import retrain
from ich_ray.refit.retrain_record import RetrainCourse
from ich_ray.results import open_search
from ich_ray.runtime import connected
from ich_ray.search.audit.search_audit import audit
from ich_ray.search.run import run_search
from ich_ray.search.tune.trial import Trainer, TrialSettings, checkpoints_of, train_model
from ich_ray.training.loop import Progress
from ich_ray.vocabulary import Role
from tests.compat.recorded import FIXTURES, SMOOTH, TRAININGS, tolerance, trained
from tests.model.test_hyperparameters import OneMore

RECORDED = json.loads((FIXTURES / "recorded.json").read_text())

Property = Callable[[str, object], None]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A copy of everything, whose searches know where the dataset lies now."""
    copy = tmp_path / "v0_1_0"
    shutil.copytree(FIXTURES, copy)
    for name in ("finished", "interrupted", "published"):
        move(copy / name, copy / "dataset")
    return copy


def move(search: Path, dataset: Path) -> None:
    """What `search --resume` notes where it is given the dataset at another place."""
    record = json.loads((search / "search.json").read_text())
    record["amendments"].append({"time": 0.0, "dataset": str(dataset)})
    (search / "search.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        root = str(Path(__file__).parents[2])
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")])))
        with connected(cpus=2):
            yield


@pytest.fixture
def within(record_property: Property) -> float:
    """The tolerance of figures on this machine, told in the record of the test."""
    held = tolerance(RECORDED["machine"])
    record_property("tolerance", held)
    return held


def test_the_dataset_opens_and_is_whole(files: Path) -> None:
    dataset = PreparedDataset.open(files / "dataset", verify=True)
    dataset.verify("train", "validation", "calibration", "test")
    assert dataset.manifest.fingerprint == "4524a718c89eafbe48970bc3ce83c331"
    assert dataset.image_shape == (3, 32, 32)
    assert [window.name for window in dataset.manifest.windows] == ["brain", "subdural", "bone"]
    assert [check.state for check in audit(files / "dataset").checks] == ["ok"]


@pytest.mark.parametrize("role", ["train", "validation", "calibration", "test"])
def test_the_pixels_of_each_role_are_those_that_were_prepared(files: Path, role: Role) -> None:
    slices = PreparedDataset.open(files / "dataset").role(role)
    images = slices.gather(np.arange(len(slices)))
    assert hashlib.sha256(images.tobytes()).hexdigest() == RECORDED["pixels_sha256"][role]


def test_the_dataset_keeps_the_identifiers_of_its_slices(files: Path) -> None:
    dataset = PreparedDataset.open(files / "dataset")
    assert all(name.startswith("ID_") for name in dataset.column("slice_id"))
    assert set(dataset.column("file")) == {f"{name}.dcm" for name in dataset.column("slice_id")}


def test_a_finished_search_is_listed_and_audited(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["results", str(files / "finished"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    states = {trial["number"]: trial["state"] for trial in found["trials"]}
    assert states == {0: "completed", 1: "completed", 2: "completed", 3: "pruned", 4: "pruned"}
    assert open_search(files / "finished").best().number == 1
    assert cli.call(["audit", str(files / "finished")]) == 0


def test_the_test_patients_are_evaluated_again_with_the_same_figures(files: Path, within: float) -> None:
    written = json.loads((files / "finished/final/evaluation.json").read_text())
    evaluate(files / "finished")
    again = json.loads((files / "finished/final/evaluation.json").read_text())
    assert (written.pop("opened"), again.pop("opened")) == (1, 2)
    for record in (written, again):
        del record["time"], record["notes"]  # one more says that they were opened before
    figures, recorded = flat(again), flat(written)
    assert figures.keys() == recorded.keys()
    for name, value in recorded.items():
        wanted = pytest.approx(value, rel=within, abs=within) if isinstance(value, float) else value
        assert figures[name] == wanted, name


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Figures by their path."""
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return {name: inner for key, part in parts for name, inner in flat(part, f"{prefix}/{key}").items()}
    return {prefix: value}


def test_a_report_is_written_of_a_finished_search(files: Path) -> None:
    assert cli.call(["report", str(files / "finished")]) == 0
    assert "<html" in (files / "finished/final/report.html").read_text()


def test_the_bundle_predicts_the_probabilities_that_were_recorded(files: Path, within: float) -> None:
    rows = load_bundle(files / "finished/final/bundle").predict([files / "slices"])
    recorded = RECORDED["predictions"]
    assert {Path(row.file).name: row.decision for row in rows} == {n: row["decision"] for n, row in recorded.items()}
    probabilities = {Path(row.file).name: row.probability for row in rows}
    assert probabilities == pytest.approx({name: row["probability"] for name, row in recorded.items()}, abs=within)


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_reports_what_was_recorded(files: Path, name: str, within: float) -> None:
    found = trained(name, PreparedDataset.open(files / "dataset"))
    recorded = RECORDED["trainings"][name]
    assert [report["images_seen"] for report in found] == [report["images_seen"] for report in recorded]
    for one, other in zip(found, recorded, strict=True):
        names = [*other["metrics"]] if within == 1e-6 else SMOOTH
        figures, wanted = ({name: report["metrics"][name] for name in names} for report in (one, other))
        assert figures == pytest.approx(wanted, rel=within, abs=within)


@pytest.mark.parametrize("kind", [Hyperparameters, OneMore])
@pytest.mark.parametrize(("name", "number", "budget"), [("interrupted", 3, 3000), ("published", 1, 4000)])
def test_a_trial_goes_on_from_its_checkpoint_to_its_end(
    files: Path, name: str, number: int, budget: int, kind: type[Hyperparameters]
) -> None:
    found = open_search(files / name)
    trial, kept = found.trials[number], checkpoints_of(found.files, number).newest()
    assert trial.state == "running"
    assert kept is not None
    dataset = PreparedDataset.open(files / "dataset")
    settings = TrialSettings(str(files / "dataset"), RECORDED["fingerprint"], str(files / name), budget, 200, 1, 0)
    parameters = kind.model_validate(trial.parameters)
    seen = [report.images_seen for report in train_model(parameters, dataset, settings, trial.seed, kept.file)]
    assert seen == [*range(kept.images_seen + 200, budget + 1, 200)]


def with_one_more_field(parameters: Hyperparameters, *others: Any) -> Generator[Progress]:
    yield from train_model(OneMore.model_validate(parameters.identity()), *others)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", [None, with_one_more_field])
@pytest.mark.parametrize(("name", "trials"), [("interrupted", 8), ("published", 2)])
def test_an_interrupted_search_is_resumed_to_its_end(
    files: Path, cluster: None, name: str, trials: int, trainer: Trainer | None
) -> None:
    before = {trial.number: trial for trial in open_search(files / name).trials}
    unfinished = [trial for trial in before.values() if trial.state == "running"]
    assert any(trial.checkpoint for trial in unfinished)
    found = run_search(files / "dataset", files / f"{name}.yaml", files / name, resume=True, _trainer=trainer)
    after = {trial.number: trial for trial in found.trials}
    assert {*after} == {*range(trials)}
    assert {trial.state for trial in after.values()} <= {"completed", "pruned"}
    for trial in unfinished:
        assert after[trial.number].reports[: len(trial.reports)] == trial.reports, "none is reported twice or lost"
        assert after[trial.number].detail == ""
    assert not audit(files / name).breached


@pytest.mark.slow
def test_a_killed_retraining_goes_on_where_it_was(files: Path, cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = begun(files)
    reports = json.loads((folder / "reports.json").read_text())
    assert [report["images_seen"] for report in reports] == [200, 400]
    monkeypatch.setattr("ich_ray.refit.retrain.Hyperparameters", OneMore)
    retrain.retrain(files / "published")
    kept = json.loads((files / "published/final/retraining.json").read_text())["reports"]
    assert kept[:2] == reports
    assert len(kept) > 2
    assert not [*(files / "published/final").glob("retraining-*/")]


@pytest.mark.parametrize("kind", [Hyperparameters, OneMore])
def test_a_killed_retraining_is_found_by_its_old_name(files: Path, kind: type[Hyperparameters]) -> None:
    found, folder = open_search(files / "published"), begun(files)
    plan = retrain._plan(found, RetrainCourse(kind.model_validate(found.trials[0].parameters), 1600, 200, ""), "train")
    plan = replace(plan, seed=found.trials[0].seed)
    assert retrain._seeded(found, plan, kind.model_validate(found.trials[0].parameters)).folder == str(folder)
    folder.rename(folder.with_name("elsewhere"))
    new = retrain._seeded(found, plan, kind.model_validate(found.trials[0].parameters)).folder
    assert Path(new).parent == folder.parent
    assert new not in {str(folder), str(folder.with_name("elsewhere"))}


def test_a_retraining_with_a_field_that_came_later_does_not_go_on_with_an_older_one(files: Path) -> None:
    found, folder = open_search(files / "published"), begun(files)
    parameters = OneMore.model_validate({**found.trials[0].parameters, "blur": 1.5})
    plan = replace(retrain._plan(found, RetrainCourse(parameters, 1600, 200, ""), "train"), seed=found.trials[0].seed)
    assert retrain._seeded(found, plan, parameters).folder != str(folder)


@pytest.mark.parametrize("kind", [Hyperparameters, OneMore])
def test_a_finished_retraining_still_says_how_long_another_may_train(files: Path, kind: type[Hyperparameters]) -> None:
    found = open_search(files / "finished")
    trial = found.trials[json.loads((files / "finished/final/retraining.json").read_text())["trial"]]
    parameters = kind.model_validate(trial.parameters)
    assert [run.best_images_seen for run in retrain._rehearsal(found, trial, parameters)] == [400, 600]
    assert retrain._rehearsal(found, trial, parameters.model_copy(update={"blocks": 1})) == ()


def begun(files: Path) -> Path:
    """The folder of the killed retraining, under the name that version 0.1.0 gives it where the dataset lies now."""
    folder = next((files / "published/final").glob("retraining-*"))
    return folder.rename(folder.with_name(f"retraining-{identity(files)}"))


def identity(files: Path) -> str:
    """What version 0.1.0 calls the folder of this retraining: it names the place of the dataset, which was moved."""
    told = {
        "folder": "",
        "dataset": str(files / "dataset"),
        "fingerprint": "4524a718c89eafbe48970bc3ce83c331",
        "parameters": {
            "architecture": "stacked_cnn",
            "blocks": 2,
            "filters": 4,
            "convolutions": "6/3",
            "padding": "valid",
            "input_batch_norm": True,
            "dense": 8,
            "dense_layers": 1,
            "dropout_before_pool": 0.0,
            "dropout_after_pool": 0.0,
            "dropout_dense": 0.0,
            "weights": "none",
            "unfreeze_from": "all",
            "batch_size": 8,
            "learning_rate": 1e-3,
            "decay": 0.0,
            "dropout": 0.0,
            "optimizer": "adam",
            "momentum": 0.9,
            "weight_decay": 0.0,
            "loss": "weighted",
            "training_slices": 40,
            "epochs": 20,
        },
        "objective": {"metric": "f2", "mode": "max"},
        "images": 1600,
        "report_every": 200,
        "seed": 2968811710,
        "patients": "train",
        "placement": "",
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
