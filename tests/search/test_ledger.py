from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ich_ray.errors import ConfigError
from ich_ray.results import open_search
from ich_ray.search.ledger import Ledger, Verdict, differences, trial_seed
from ich_ray.trial_records import CheckpointReference
from tests.records import make_record

RECORD = make_record(
    space={"name": "x", "budget": {"images": 900}, "parameters": {"dropout": {"uniform": [0, 0.5]}}},
    fingerprint="f00d" * 8,
    prevalence=0.2,
    trials=3,
)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "s", RECORD)


def test_what_is_written_is_read(ledger: Ledger) -> None:
    first, second = ledger.add({"dropout": 0.1}), ledger.add({"dropout": 0.2})
    assert (first.number, second.number) == (0, 1)
    assert (first.seed, second.seed) == (trial_seed(0, 0), trial_seed(0, 1))
    reference = CheckpointReference(file="checkpoints/00000/a.safetensors", sha256="0" * 64, images_seen=100)
    ledger.report(0, 100, {"average_precision": 0.5, "train_loss": math.nan}, 1.5, checkpoint=reference, where="h:1")
    ledger.report(0, 200, {"average_precision": 0.4}, 2.5, end=Verdict("pruned", "rung_200"), cost_gpu_s=3.0)
    read = open_search(ledger.files.root)
    assert read.record == RECORD
    assert read.trials == tuple(ledger.trials.values())
    trial = read.trials[0]
    assert (trial.state, trial.reason, trial.images_seen, trial.value) == ("pruned", "rung_200", 200, 0.5)
    assert trial.reports[0].metrics == {"average_precision": 0.5, "train_loss": None}
    assert (trial.checkpoint, trial.where, trial.cost_gpu_s, trial.attempts) == (None, "h:1", 3.0, 1)
    assert Ledger.open(ledger.files.root).unfinished == [second]


def test_files_are_strict_json(ledger: Ledger) -> None:
    ledger.add({"dropout": 0.1})
    ledger.report(0, 100, {"average_precision": math.inf, "f2": -math.inf}, 1.0)
    text = Path(str(ledger.files.trial(0))).read_text()
    assert "Infinity" not in text
    assert json.loads(text)["reports"][0]["metrics"] == {"average_precision": None, "f2": None}


def test_a_report_that_is_told_again_changes_nothing(ledger: Ledger) -> None:
    ledger.add({"dropout": 0.1})
    ledger.report(0, 100, {"average_precision": 0.5}, 1.0)
    ledger.report(0, 100, {"average_precision": 0.9}, 9.0)
    ledger.report(0, 50, {"average_precision": 0.9}, 9.0)
    assert [report.metrics["average_precision"] for report in ledger.trials[0].reports] == [0.5]


def test_a_report_that_is_told_again_says_where_the_newest_state_lies(ledger: Ledger) -> None:
    ledger.add({"dropout": 0.1})
    old, new = (CheckpointReference(file=f"{name}.safetensors", sha256=name * 64, images_seen=100) for name in "ab")
    ledger.report(0, 100, {"average_precision": 0.5}, 1.0, checkpoint=old)
    ledger.report(0, 100, {"average_precision": 0.5}, 1.0)
    assert ledger.trials[0].checkpoint == old
    ledger.report(0, 100, {"average_precision": 0.5}, 1.0, checkpoint=new)
    assert ledger.trials[0].checkpoint == new


@pytest.mark.parametrize(
    ("value", "state", "flag"), [(0.3, "completed", True), (0.31, "completed", False), (0.3, "pruned", False)]
)
def test_a_trial_that_learned_nothing_is_flagged(ledger: Ledger, value: float, state: str, flag: bool) -> None:
    ledger.add({"dropout": 0.1})
    ledger.report(0, 900, {"average_precision": value}, 1.0, end=Verdict(state))  # type: ignore[arg-type]
    assert ledger.trials[0].at_chance is flag


def test_an_ended_trial_leaves_no_checkpoint(ledger: Ledger) -> None:
    ledger.add({"dropout": 0.1})
    folder = Path(str(ledger.files.checkpoint(0)))
    folder.mkdir(parents=True)
    (folder / "a.safetensors").write_bytes(b"1")
    ledger.finish(0, Verdict("failed", "worker_died", "lost"))
    assert not folder.exists()
    assert ledger.trials[0].detail == "lost"
    folder.mkdir()
    Ledger.open(ledger.files.root)
    assert not folder.exists()


def test_a_folder_with_a_search_is_refused(ledger: Ledger) -> None:
    with pytest.raises(ConfigError, match="got this very search; add --resume to go on with it"):
        Ledger.create(ledger.files.root, RECORD)
    other = RECORD.model_copy(
        update={"seed": 7, "space": {"name": "x", "budget": {"images": 800}, "parameters": {"decay": 0.1}}}
    )
    with pytest.raises(ConfigError) as caught:
        Ledger.create(ledger.files.root, other)
    assert "got another search (seed: there 0, asked 7; budget.images: there 900, asked 800;" in str(caught.value)
    assert "parameters.dropout.uniform: there [0, 0.5], asked nothing" in str(caught.value)


@pytest.mark.parametrize("part", ["trials", "checkpoints"])
def test_what_is_left_of_another_search_is_not_taken_over(ledger: Ledger, part: str) -> None:
    if part == "trials":
        ledger.add({"dropout": 0.1})
    else:
        ledger.files.checkpoint(0).mkdir(parents=True)
    ledger.files.search.unlink()
    with pytest.raises(
        ConfigError, match=f"needs a folder without trials, got {part} of one whose search.json is gone"
    ):
        Ledger.create(ledger.files.root, RECORD)


def test_a_trial_file_that_was_lost_leaves_no_gap_and_no_checkpoint(ledger: Ledger) -> None:
    for dropout in (0.1, 0.2, 0.3):
        ledger.add({"dropout": dropout})
    for number in (0, 1):
        ledger.files.checkpoint(number).mkdir(parents=True)
    ledger.files.trial(1).unlink()
    again = Ledger.open(ledger.files.root)
    assert [again.files.checkpoint(number).exists() for number in (0, 1)] == [True, False]
    assert [again.add({"dropout": dropout}).number for dropout in (0.4, 0.5)] == [1, 3]
    assert again.trials[1].seed == trial_seed(0, 1)


def test_equal_searches_do_not_differ() -> None:
    assert differences(RECORD, RECORD.model_copy(update={"created": 5.0, "trials": 9, "versions": {"ray": "3"}})) == []
    assert differences(RECORD, RECORD.model_copy(update={"fingerprint": "beef" * 8})) == [
        f"dataset: there {'f00d' * 8}, asked {'beef' * 8}"
    ]


def test_more_trials_are_an_amendment(ledger: Ledger) -> None:
    assert ledger.record.wanted == 3
    ledger.amend(trials=8)
    read = open_search(ledger.files.root).record
    assert (read.trials, read.wanted) == (3, 8)
    assert len(read.amendments) == 1


def test_a_dataset_that_was_moved_is_an_amendment(ledger: Ledger) -> None:
    assert ledger.record.dataset_folder == RECORD.dataset
    ledger.amend(dataset="elsewhere")
    read = open_search(ledger.files.root).record
    assert (read.dataset, read.dataset_folder) == (RECORD.dataset, "elsewhere")


def test_seeds_differ_between_trials_and_searches() -> None:
    assert len({trial_seed(seed, number) for seed in range(10) for number in range(100)}) == 1000
