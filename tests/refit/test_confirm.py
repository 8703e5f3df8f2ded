"""The choice among the best trials; with Ray only in the slow tests, tests/search/test_run.py holds a quick one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from upath import UPath

from ich_ray import cli
from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.folds import HeldOut
from ich_ray.errors import ConfigError, IchRayError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.refit import confirm as module
from ich_ray.refit.confirm import confirm
from ich_ray.refit.confirmation import Confirmation, chosen_trial
from ich_ray.results import open_search
from ich_ray.search.ledger import Ledger, Verdict
from ich_ray.search.tune.trial import TrialSettings, train_model
from ich_ray.search_records import SearchRecord
from ich_ray.storage import SearchFiles, locate, read_json, write_json
from ich_ray.vocabulary import Precision
from tests.prepared import make_dataset
from tests.search.fakes import FakeProgress

REPOSITORY = Path(__file__).parent.parent.parent
SPACE = {
    "name": "by-hand",
    "objective": {"metric": "average_precision", "mode": "max"},
    "budget": {"images": 300, "report_every": 100, "first_rung": 100, "reduction": 3, "min_peers": 3},
    "parameters": {"learning_rate": {"loguniform": [1e-4, 1e-1]}, "filters": {"fixed": 8}},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_dataset(tmp_path_factory.mktemp("confirm") / "data", patients=40)


def searched(folder: Path, dataset: PreparedDataset, values: dict[float, float], **keys: object) -> Path:
    """A finished search: one completed trial per learning rate, with its selection score, and one that was stopped."""
    record = SearchRecord(
        name="by-hand", space=SPACE, dataset=str(dataset.files.root), fingerprint=dataset.manifest.fingerprint,
        prevalence=0.3, seed=4, trials=len(values) + 1, versions={}, created=0.0,
    )  # fmt: skip
    ledger = Ledger.create(folder, record.model_copy(update=keys))
    for number, (rate, value) in enumerate(values.items()):
        ledger.add({"learning_rate": rate, "filters": 8})
        ledger.report(number, 300, {"average_precision": value}, 1.0, end=Verdict("completed"))
    ledger.add({"learning_rate": 5e-2, "filters": 8})
    ledger.report(len(values), 100, {"average_precision": 0.99}, 1.0, end=Verdict("pruned", "rung_100"))
    return folder


@dataclass(frozen=True)
class PartTrainer:
    """The value of a training is a table's entry for its learning rate and fold (or, with seeds, its turn).

    It insists on patients of train and validation only, and on the two being apart.
    """

    values: dict[float, tuple[float, ...]]
    wait_s: float = 0.0

    def __call__(
        self, parameters: Hyperparameters, dataset: PreparedDataset, settings: TrialSettings, seed: int,
        resume: UPath | None,
    ) -> Generator[FakeProgress, None, None]:  # fmt: skip
        whole = PreparedDataset.open(settings.dataset)
        forbidden = {*whole.role("calibration").patients, *whole.role("test").patients}
        train, validation = dataset.role("train"), dataset.role("validation")
        assert not forbidden & {*train.patients, *validation.patients}
        assert not set(train.patients) & set(validation.patients)
        table = self.values[parameters.learning_rate]
        value = table[dataset.fold] if isinstance(dataset, HeldOut) else table[seed % len(table)]
        seen = json.loads(resume.read_text())["images_seen"] if resume else 0
        while seen < settings.images:
            time.sleep(self.wait_s)
            seen += settings.report_every
            yield FakeProgress(seen, {"average_precision": value if value >= 0 else np.nan}, seen / 1000)


# The search's favorite (rate 1e-3) is worse on average than the second, and the third fails on one fold.
FAVORITES = {1e-3: 0.80, 1e-2: 0.78, 2e-2: 0.77, 3e-2: 0.40}
ON_FOLDS = {1e-3: (0.6, 0.7), 1e-2: (0.7, 0.74), 2e-2: (0.9, -1.0), 3e-2: (0.1, 0.1)}


def ledger_of(folder: Path, trainings: list[tuple[int, int | None, float | None]]) -> Path:
    """The ledger of a confirmation: what each training repeats, on which fold, and how it came out."""
    ledger = Ledger.create(
        folder,
        SearchRecord(
            name="x", space=SPACE, dataset="d", fingerprint="f" * 32, prevalence=0.3, seed=0, trials=len(trainings),
            versions={}, created=0.0,
        ),
    )  # fmt: skip
    for number, (repeats, fold, value) in enumerate(trainings):
        ledger.add({"learning_rate": 1e-3}, repeats=repeats, fold=fold)
        end = Verdict("failed", "diverged") if value is None else Verdict("completed")
        ledger.report(number, 300, {"average_precision": value}, 1.0, end=end)
    return folder


def test_the_choice_is_the_best_mean_of_those_that_came_through(tmp_path: Path, dataset: PreparedDataset) -> None:
    found = open_search(searched(tmp_path / "s", dataset, FAVORITES))
    trainings = [(0, 0, 0.6), (1, 0, 0.7), (2, 0, 0.9), (0, 1, 0.7), (1, 1, 0.74), (2, 1, None)]
    trained = open_search(ledger_of(tmp_path / "c", trainings))
    confirmation = module._confirmation(found, trained, found.ranked()[:3], "folds", [0, 1])
    assert confirmation.chosen == 1
    first, second, third = confirmation.candidates
    assert (first.trial, first.selection_value, first.values) == (0, 0.8, (0.6, 0.7))
    assert first.mean == pytest.approx(0.65)
    assert first.spread == pytest.approx(0.0707107, abs=1e-6)
    assert (second.mean, third.mean, third.spread, third.values) == (pytest.approx(0.72), 0.9, None, (0.9, None))
    assert confirmation.images == 1800


def test_with_nobody_through_there_is_no_choice(tmp_path: Path, dataset: PreparedDataset) -> None:
    found = open_search(searched(tmp_path / "s", dataset, FAVORITES))
    trained = open_search(ledger_of(tmp_path / "c", [(0, 0, 0.6), (0, 1, None)]))
    with pytest.raises(IchRayError, match="one candidate at least must get through all its trainings, got none"):
        module._confirmation(found, trained, found.ranked()[:1], "folds", [0, 1])


def test_what_is_there_is_not_trained_again(tmp_path: Path, dataset: PreparedDataset) -> None:
    ranked = open_search(searched(tmp_path / "s", dataset, FAVORITES)).ranked()
    ledger = Ledger.open(ledger_of(tmp_path / "c", [(0, 0, 0.6), (1, 0, 0.7), (0, 1, 0.7)]))
    missing = module._missing(ledger, ranked[:3], [0, 1])
    assert [(one.repeats, one.fold) for one in missing] == [(2, 0), (1, 1), (2, 1)]
    assert missing[0].parameters == {"learning_rate": 2e-2, "filters": 8}
    seeds = Ledger.open(ledger_of(tmp_path / "d", [(0, None, 0.6), (1, None, 0.7)]))
    assert [one.repeats for one in module._missing(seeds, ranked[:2], [None, None, None])] == [0, 1, 0, 1]


def test_what_failed_is_trained_again_unless_it_diverged(tmp_path: Path, dataset: PreparedDataset) -> None:
    ranked = open_search(searched(tmp_path / "s", dataset, FAVORITES)).ranked()
    ledger = Ledger.open(ledger_of(tmp_path / "c", [(0, 0, None)]))  # diverged, and would again
    ledger.add({"learning_rate": 1e-3}, repeats=0, fold=1)
    ledger.finish(1, Verdict("failed", "out_of_memory"))
    missing = module._missing(ledger, ranked[:1], [0, 1])
    assert [(one.repeats, one.fold) for one in missing] == [(0, 1)]
    ledger.add(missing[0].parameters, repeats=0, fold=1)
    ledger.report(2, 300, {"average_precision": 0.7}, 1.0, end=Verdict("completed"))
    trainings = module._trainings(open_search(ledger.files.root), ranked[0], [0, 1])
    assert [(one.number, one.state) for one in trainings] == [(0, "failed"), (2, "completed")]


@pytest.mark.parametrize(
    ("name", "confirmed"),
    [("short", "short-confirm"), ("a" * 72, "a" * 72 + "-confirm"), ("b" * 80, "b" * 72 + "-confirm")],
)
def test_any_name_can_be_confirmed(tmp_path: Path, dataset: PreparedDataset, name: str, confirmed: str) -> None:
    found = open_search(searched(tmp_path / "s", dataset, FAVORITES, space={**SPACE, "name": name}))
    assert module._space(found).name == confirmed


@pytest.mark.parametrize("precision", [None, "float32", "bfloat16 channels_last"])
def test_it_computes_as_the_search_did(tmp_path: Path, dataset: PreparedDataset, precision: Precision | None) -> None:
    """None is of version 0.1.0, whose search.json has no such key."""
    folder = searched(tmp_path / "s", dataset, FAVORITES, precision=precision)
    if precision is None:
        record = read_json(SearchFiles(locate(folder)).search)
        assert record.pop("precision", "absent") is None
        write_json(SearchFiles(locate(folder)).search, record)
    found = open_search(folder)
    assert module._record(found, module._space(found), 6).precision == precision


def test_no_rule_stops_a_confirmation(tmp_path: Path, dataset: PreparedDataset) -> None:
    """Nor need the rule of the search be registered where it is confirmed."""
    budget = {**SPACE["budget"], "rule": "median"}  # type: ignore[dict-item]
    space = module._space(open_search(searched(tmp_path / "s", dataset, FAVORITES, space={**SPACE, "budget": budget})))
    assert (space.budget.rule, space.rungs()) == ("asha", [])


def test_seeds_are_not_those_of_the_search(tmp_path: Path, dataset: PreparedDataset) -> None:
    found = open_search(searched(tmp_path / "s", dataset, FAVORITES))
    space = module._space(found)
    assert space.rungs() == []
    ledger = Ledger.create(tmp_path / "c", module._record(found, space, 6))
    for _ in range(5):
        ledger.add({"learning_rate": 1e-3, "filters": 8})
    own = {trial.seed for trial in ledger.trials.values()}
    assert len(own) == 5
    assert not own & {trial.seed for trial in found.trials}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"folds": 2, "seeds": 2}, "--folds, --seeds: one of them must be given, got both"),
        (
            {"gpus_per_trial": "auto"},
            "--gpus-per-trial auto: shares are planned for the trials of a search, got it for",
        ),
        ({"top": 0}, "--top: must be at least 1, got 0"),
        ({"seeds": 1}, "--seeds: must be at least 2, so that there is a spread, got 1"),
        ({"folds": 9}, "--folds: must be from 2 to 5, the folds of this dataset, got 9"),
    ],
)
def test_what_cannot_be_confirmed_is_refused(
    tmp_path: Path, dataset: PreparedDataset, keys: dict[str, Any], message: str
) -> None:
    folder = searched(tmp_path / "s", dataset, FAVORITES)
    with pytest.raises(ConfigError, match=message):
        confirm(folder, **keys)
    assert not (folder / "final").exists()


def test_a_search_without_completed_trials_says_so(tmp_path: Path, dataset: PreparedDataset) -> None:
    folder = searched(tmp_path / "s", dataset, {})
    with pytest.raises(IchRayError, match=r"the best trial needs a completed one, got none \(0 running, 1 pruned, 0 f"):
        confirm(folder)


def test_fewer_than_asked_for_are_said(
    tmp_path: Path, dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(module, "say", said.append)
    found = open_search(searched(tmp_path / "s", dataset, FAVORITES))
    assert [trial.number for trial in module._top(found, 9)] == [0, 1, 2, 3]
    assert said == ["confirm: only 4 of the 9 trials asked for have completed, those are confirmed"]
    assert [trial.number for trial in module._top(found, 2)] == [0, 1]
    assert len(said) == 1


def test_a_training_on_a_fold_reads_no_slice_of_calibration_or_test(
    tmp_path: Path, dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    gather = PreparedDataset.gather

    def spy(self: PreparedDataset, rows: np.ndarray, *others: Any, **named: Any) -> np.ndarray:
        read.extend(rows.reshape(-1).tolist())
        return gather(self, rows, *others, **named)

    monkeypatch.setattr(PreparedDataset, "gather", spy)
    settings = TrialSettings(str(dataset.files.root), "", str(tmp_path), images=150, report_every=150, cpus=1, gpus=0)
    parameters = Hyperparameters(filters=4, dense=8, batch_size=32)
    for progress in train_model(parameters, HeldOut(dataset, 1), settings, 0, None):
        assert progress.images_seen == 150
    roles = Counter(dataset.column("role")[sorted(set(read))].tolist())
    assert set(roles) == {"train", "validation"}
    assert sum(roles.values()) == len(dataset.role("train")) + len(dataset.role("validation"))


def test_the_verb_prints_a_table_or_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = (
        {"trial": 3, "selection_value": 0.8, "values": (0.5, 0.7), "mean": 0.6, "spread": 0.1414},
        {"trial": 1, "selection_value": 0.7, "values": (0.4, None), "mean": 0.4, "spread": None},
    )
    value = {"kind": "seeds", "parts": 2, "objective": {}, "chosen": 3, "candidates": candidates, "images": 1,
             "cost_gpu_s": 0, "created": 0}  # fmt: skip
    monkeypatch.setattr(module, "confirm", lambda folder, **keys: Confirmation.model_validate(value))
    assert cli.call(["confirm", "s", "--seeds", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "chosen  trial 3, by the mean of 2 seeds"
    assert lines[2].split() == ["3", "0.8000", "0.6000", "0.1414", "2", "0.5000", "0.7000"]
    assert lines[3].split() == ["1", "0.7000", "0.4000", "-", "1", "0.4000", "failed"]
    assert cli.call(["confirm", "s", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chosen"] == 3


@pytest.mark.slow
def test_the_top_are_confirmed_on_folds_and_what_follows_uses_the_chosen(
    tmp_path: Path, dataset: PreparedDataset
) -> None:
    folder = searched(tmp_path / "s", dataset, FAVORITES)
    confirmation = confirm(folder, top=3, folds=2, _trainer=PartTrainer(ON_FOLDS))
    assert confirmation.chosen == 1
    assert [candidate.values for candidate in confirmation.candidates] == [(0.6, 0.7), (0.7, 0.74), (0.9, None)]
    found = open_search(folder)
    assert read_json(found.files.confirmation) == json.loads(confirmation.model_dump_json())
    assert found.best().number == 0
    assert chosen_trial(found).number == 1
    trainings = open_search(found.files.confirming("folds").root)
    assert Counter(trial.state for trial in trainings.trials) == {"completed": 5, "failed": 1}
    assert {trial.images_seen for trial in trainings.trials if trial.state == "completed"} == {300}
    before = {path: path.read_bytes() for path in Path(str(trainings.files.trials)).iterdir()}
    more = confirm(folder, top=4, folds=2, _trainer=PartTrainer(ON_FOLDS))
    assert (more.chosen, len(more.candidates)) == (1, 4)
    assert {path: path.read_bytes() for path in before} == before
    assert open_search(trainings.files.root).record.wanted == 8
    with_seeds = confirm(folder, top=2, seeds=3, _trainer=PartTrainer({1e-3: (0.9,), 1e-2: (0.8,)}))
    assert (with_seeds.kind, with_seeds.chosen, with_seeds.candidates[0].spread) == ("seeds", 0, 0.0)
    assert len({trial.seed for trial in open_search(found.files.confirming("seeds").root).trials}) == 6


DRIVER = """
import sys
from ich_ray.refit.confirm import confirm
from tests.refit.test_confirm import ON_FOLDS, PartTrainer
confirm(sys.argv[1], top=2, folds=2, _trainer=PartTrainer(ON_FOLDS, wait_s=0.5))
"""


@pytest.mark.slow
def test_a_killed_confirmation_goes_on(tmp_path: Path, dataset: PreparedDataset) -> None:
    folder = searched(tmp_path / "s", dataset, FAVORITES)
    files = SearchFiles(locate(folder)).confirming("folds")
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder)], cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and driver.poll() is None:
        if files.search.exists() and sum(len(trial.reports) for trial in open_search(files.root).trials) >= 2:
            break
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait(60)
    before = open_search(files.root).trials
    assert any(trial.state == "running" for trial in before)
    assert confirm(folder, top=2, folds=2, _trainer=PartTrainer(ON_FOLDS)).chosen == 1
    after = open_search(files.root).trials
    assert [(trial.repeats, trial.fold, trial.state) for trial in after] == [
        (0, 0, "completed"), (1, 0, "completed"), (0, 1, "completed"), (1, 1, "completed"),
    ]  # fmt: skip
    for one, other in zip(before, after, strict=False):
        assert other.reports[: len(one.reports)] == one.reports
    for trial in after:
        assert [report.images_seen for report in trial.reports] == [100, 200, 300]
