"""Searches whose trials are judged by folds, from their request to their audit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from ich_ray import progress
from ich_ray.cli import call
from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.folds import pool_of
from ich_ray.errors import ConfigError
from ich_ray.results import SearchResult, open_search
from ich_ray.runtime import connected
from ich_ray.search import checked_folds
from ich_ray.search.audit.search_audit import audit
from ich_ray.search.checked_request import validate_request
from ich_ray.search.plan.plan_report import plan_search
from ich_ray.search.request import SearchRequest
from ich_ray.search.run import run_search
from ich_ray.search.space.yaml_file import load_space
from tests.prepared import make_dataset
from tests.search.fakes import FoldTrainer

RATES = [1e-3, 1.2e-3, 1e-5, 0.9e-3, 3e-2]  # of tests.search.fakes.curve, which is best at 0.001
SPACE = {
    "name": "folded",
    "objective": {"folds": 3},
    "budget": {"images": 400, "report_every": 100, "first_rung": 100, "min_peers": 2},
    "candidates": [{"learning_rate": rate, "dropout": 0.3} for rate in RATES],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(str(make_dataset(tmp_path_factory.mktemp("folds") / "data", patients=40).files.root))


@pytest.fixture(scope="module")
def ray_on_two_slots() -> Iterator[None]:
    with connected(cpus=2):
        yield


def space(folder: Path, **changes: Any) -> Path:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(SPACE | changes))
    return path


def of_subtypes(folder: Path, objective: dict[str, Any]) -> Path:
    return space(folder, objective=objective, candidates=[{"learning_rate": 1e-3, "labels": "all"}])


def values(found: SearchResult) -> list[Any]:
    """What a search has measured."""
    return [
        [(report.images_seen, report.metrics, report.fold and report.fold.value) for report in trial.reports]
        for trial in found.trials
    ]


@pytest.fixture(scope="module")
def found(data: Path, ray_on_two_slots: None, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    folder = tmp_path_factory.mktemp("found")
    return run_search(data, space(folder), folder / "s", concurrent=1, _trainer=FoldTrainer())


def test_a_trial_trains_a_network_for_each_fold(found: SearchResult) -> None:
    ended = [(trial.reason or trial.state, trial.images_seen, trial.folds_done) for trial in found.trials]
    assert ended[0] == ("completed", 1200, 3)
    assert ended[2] == ("rung_100", 100, 0)  # within the first fold, as without folds
    best = found.best()
    assert best.number in {0, 1, 3}
    assert best.best_report in best.reports[8:]  # of the last fold, whose metrics are of all of them
    assert len(best.fold_values) == 3
    assert audit(found.files.root).breached == ()
    assert audit(found.files.root).state == "ended"


def test_logits_stay_of_trials_that_others_are_compared_with(found: SearchResult) -> None:
    kept = sorted(path.name for path in found.files.logits.iterdir())
    assert kept == [f"{trial.number:05d}" for trial in found.trials if trial.folds_done]
    assert "00002" not in kept


def test_results_tell_what_each_fold_gave(found: SearchResult, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["results", str(found.files.root)]) == 0
    _, head, best, *_ = capsys.readouterr().out.splitlines()
    columns = ["trial", "state", "average_precision", "best", "images", "seconds", "each", "fold", "parameters"]
    assert head.split() == columns
    values = [f"{value:.4f}" for value in found.best().fold_values]
    chance = found.p_best[found.best().number]
    assert sum(found.p_best.values()) == pytest.approx(1.0)
    told = [str(found.best().number), "completed", f"{found.best().value:.4f}", f"{chance:.0%}", "1,200", "1"]
    assert best.split()[:6] == told
    assert best.split()[6:9] == values
    reports = found.to_frame(reports=True)
    assert reports[reports["number"] == 0]["fold"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert call(["report", str(found.files.root)]) == 0
    assert call(["results", str(found.files.root), "--at-half"]) == 2
    assert "--at-half tells what one network decides, got a search by 3 folds" in capsys.readouterr().err


def test_a_search_that_was_judged_otherwise_teaches_nothing(found: SearchResult, data: Path, tmp_path: Path) -> None:
    drawn = {"parameters": {"learning_rate": {"loguniform": [1e-4, 1e-2]}}, "objective": {}}
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in SPACE.items() if key != "candidates"} | drawn))
    with pytest.raises(ConfigError, match=r"--warm-start .*: must be judged as this search is, by 0 folds, got 3"):
        run_search(data, path, tmp_path / "s", warm_start=found.files.root)


@pytest.mark.parametrize(
    ("change", "breach"),
    [
        (lambda report: report["fold"].update(number=1), "trial 0: the report at 200 images must be of fold 0 at 200"),
        (lambda report: report.update(fold=None), "trial 0: the report at 200 images must name its fold"),
    ],
)
def test_the_audit_finds_a_report_of_another_fold(
    found: SearchResult, change: Any, breach: str, tmp_path: Path
) -> None:
    shutil.copytree(str(found.files.root), tmp_path / "s")
    trial = tmp_path / "s" / "trials" / "00000.json"
    record = json.loads(trial.read_text())
    change(record["reports"][1])
    trial.write_text(json.dumps(record))
    assert any(breach in one for check in audit(tmp_path / "s").breached for one in check.breaches)


def test_the_audit_finds_logits_that_are_lost(found: SearchResult, tmp_path: Path) -> None:
    shutil.copytree(str(found.files.root), tmp_path / "s")
    lost = tmp_path / "s" / found.trials[0].reports[5].fold.logits.file  # type: ignore[union-attr]
    lost.unlink()
    (check,) = audit(tmp_path / "s").breached
    assert (check.invariant, check.breaches) == (
        "I7",
        (f"trial 0: {lost.relative_to(tmp_path / 's')} must be readable, got FileNotFoundError",),
    )


# Within the second fold, and before the third.
@pytest.mark.parametrize(("how", "reports"), [("kill_once", 5), ("full_once", 8)])
def test_a_search_that_ends_between_its_folds_goes_on_there(
    data: Path, ray_on_two_slots: None, found: SearchResult, how: str, reports: int, tmp_path: Path
) -> None:
    once, log = tmp_path / "once", tmp_path / "log"
    once.touch()
    trainer = FoldTrainer(log=str(log), reports=reports, **{how: str(once)})
    path, out = space(tmp_path), tmp_path / "s"
    again = run_search(data, path, out, concurrent=1, _trainer=trainer)
    causes = [attempt.cause for trial in again.trials for attempt in trial.lost]
    assert causes == (["storage"] if how == "full_once" else [])
    assert values(again) == values(found)
    assert [trial.reason for trial in again.trials] == [trial.reason for trial in found.trials]
    assert audit(again.files.root).breached == ()
    total = sum(len(trial.reports) for trial in again.trials)
    # One report was trained twice; and the one before, where its state was not whole.
    assert len(log.read_text().splitlines()) - total in ((1, 2) if how == "kill_once" else (2,))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"folds": 1}, "objective.folds: must be 0, .* or at least 2, or auto, got 1"),
        ({"folds": True}, r"objective\.folds: must be a whole number up to 100, 0 for none, or auto, got True"),
        ({"folds": -1}, r"objective\.folds: must be a whole number up to 100, 0 for none, or auto, got -1"),
        ({"folds": 101}, r"objective\.folds: must be a whole number up to 100, 0 for none, or auto, got 101"),
        ({"repeats": 2}, "objective.repeats: needs folds, which it divides anew, got 2 of none"),
        ({"folds": 25}, r"each fold needs a patient with and one without .* got 25 folds where .* has \d+ such"),
    ],
)
def test_folds_that_cannot_be_are_refused(objective: Any, message: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run_search(data, space(tmp_path, objective=objective), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_first_fold_that_lacks_the_subtype_of_the_objective_is_refused(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", patients=120)
    row = {"folds": 15, "metric": "roc_auc_epidural"}
    with pytest.raises(
        ConfigError,
        match=r"objective\.folds: roc_auc_epidural needs slices with and without epidural in the first fold, "
        r"got 0 positive of 24 in .*; ask for fewer folds, or give another --seed",
    ):
        validate_request(SearchRequest(data.files.root, of_subtypes(tmp_path, row), tmp_path / "s", seed=0))
    for fine in (row | {"folds": 3}, row | {"metric": "roc_auc_subtypes"}):
        validate_request(SearchRequest(data.files.root, of_subtypes(tmp_path, fine), tmp_path / "s", seed=0))


def test_a_trial_may_draw_all_slices_outside_a_fold(data: Path, ray_on_two_slots: None, tmp_path: Path) -> None:
    whole = PreparedDataset.open(data)
    assert (len(whole.role("train")), len(pool_of(whole))) == (88, 112)
    trials = [{"learning_rate": 1e-3, "training_slices": 96}]  # outside the largest of seven folds
    path = space(tmp_path, objective={"folds": 7}, candidates=trials)
    assert plan_search(data, path, tmp_path / "s").plan.networks == 7
    trials[0]["training_slices"] = 97
    with pytest.raises(ConfigError, match=r"at most the 96 slices outside a fold of .* can be drawn, got 97"):
        plan_search(data, space(tmp_path, objective={"folds": 7}, candidates=trials), tmp_path / "s")


def test_folds_of_slices_are_refused(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    manifest = json.loads((data / "dataset.json").read_text())
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({**manifest, "split": "slice"}))
    with pytest.raises(ConfigError, match=r"folds part patients, got a dataset divided by slice"):
        run_search(tmp_path / "data", space(tmp_path), tmp_path / "s")


def test_epochs_and_folds_are_refused_together(data: Path, tmp_path: Path) -> None:
    listed = [{"learning_rate": 1e-3, "epochs": 2, "training_slices": 50}]
    with pytest.raises(ConfigError, match=r"objective\.folds: every network of a trial must spend its whole budget"):
        run_search(data, space(tmp_path, candidates=listed), tmp_path / "s")


def test_several_workers_a_trial_are_refused(data: Path, ray_on_two_slots: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a trial with folds trains in one process, got 2 workers"):
        run_search(data, space(tmp_path), tmp_path / "s", workers_per_trial=2, _trainer=FoldTrainer())


def test_the_plan_counts_every_network(data: Path, ray_on_two_slots: None, tmp_path: Path) -> None:
    plan = plan_search(data, space(tmp_path), tmp_path / "s").plan
    assert plan.images_at_most == 5 * 3 * 400
    # 5 start, 2 pass each rung, as many as have no peers: 5 x 100 + 2 x 300, then 2 networks of 400 more for each of 2
    assert plan.images == 5 * 100 + 2 * 200 + 2 * 100 + 2 * 2 * 400
    path = space(tmp_path, budget=SPACE["budget"] | {"first_rung": 400})  # type: ignore[operator]
    without = str(plan_search(data, path, tmp_path / "s").plan)
    assert "rungs: none, no trial is stopped early within the first fold" in without
    assert "trains up to 3 networks, one after the other, and costs up to 3 times its budget" in str(plan)


@pytest.mark.parametrize(
    ("positive", "folds", "told"),
    [
        (14, 5, "14 validation patients have a haemorrhage, fewer than 15: trials are judged by 5 folds"),
        (15, 0, "15 validation patients have a haemorrhage, not fewer than 15: trials are judged by the validation"),
    ],
)
def test_auto_takes_folds_where_they_were_worth_their_images(
    positive: int,
    folds: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(checked_folds, "_most_folds", lambda _: 9)
    role = SimpleNamespace(positive_patients=lambda _: positive)
    dataset: Any = SimpleNamespace(role=lambda _: role, manifest=SimpleNamespace(leak=False))
    asked = load_space(space(tmp_path, objective={"folds": "auto"}))
    progress.show()
    decided = checked_folds.decided(asked, dataset, None)
    progress.show(False)
    assert decided.objective.folds == folds
    assert told in capsys.readouterr().err


def test_auto_is_decided_by_the_dataset_and_stays(
    data: Path, ray_on_two_slots: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = space(tmp_path, objective={"folds": "auto"}, candidates=SPACE["candidates"][:1]), tmp_path / "s"  # type: ignore[index]
    progress.show()
    first = run_search(data, path, out, _trainer=FoldTrainer())
    progress.show(False)
    validation = PreparedDataset.open(data).role("validation")
    positive = len(np.unique(validation.patients[validation.labels == 1].astype(str)))
    assert (
        f"folds: auto: {positive} validation patients have a haemorrhage, fewer than 15: trials are judged by 5 folds"
        in capsys.readouterr().err
    )
    assert (first.record.folds, first.objective.folds, first.trials[0].folds_done) == (5, 5, 5)
    record = json.loads((out / "search.json").read_text())
    (out / "search.json").write_text(json.dumps({**record, "folds": 4}))
    again = run_search(data, path, out, resume=True, _trainer=FoldTrainer())
    assert again.objective.folds == 4  # what the search was begun with
    assert open_search(out).record.space["objective"] == {"folds": "auto"}
