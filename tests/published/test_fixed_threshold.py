from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from ich_ray import registry
from ich_ray.cli import call
from ich_ray.data.folds import HeldOut
from ich_ray.published.fixed_threshold import quick_evaluation, spread_of
from ich_ray.results import SearchResult, open_search
from ich_ray.search.space.yaml_file import load_space
from ich_ray.storage import SearchFiles, locate, write_json
from ich_ray.training.validation import VALIDATION_METRICS, validation_metrics
from ich_ray.trial_records import Report, TrialResult
from tests.prepared import make_dataset
from tests.searched import make_search

REPOSITORY = Path(__file__).parent.parent.parent


def decided(search: SearchResult, number: int, sensitivity: float, specificity: float, fold: int | None = None) -> None:
    metrics: dict[str, float | None] = {
        "average_precision": 0.5, "sensitivity_at_half": sensitivity, "specificity_at_half": specificity,
    }  # fmt: skip
    report = Report(images_seen=100, metrics=metrics, elapsed_s=1.0, time=0.0)
    trial = TrialResult(number=number, parameters={}, state="completed", reports=(report,), fold=fold, repeats=fold)
    write_json(search.files.trial(number), trial.model_dump(mode="json"))


def test_columns_carry_their_right_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = make_dataset(tmp_path / "data", patients=40)
    files = make_search(tmp_path / "search", dataset)
    search = open_search(files.root)
    decided(search, 0, 0.8, 0.75)
    decided(search, 1, 0.0, 1.0)
    prevalence = search.record.prevalence
    first, second, third = quick_evaluation(open_search(files.root))
    figures = first.figures()
    assert (figures["sensitivity"], figures["specificity"]) == pytest.approx((0.8, 0.75))
    ppv = prevalence * 0.8 / (prevalence * 0.8 + (1 - prevalence) * 0.25)
    assert figures["ppv"] == pytest.approx(ppv)
    assert figures["f2"] == pytest.approx(5 * ppv * 0.8 / (4 * ppv + 0.8))
    assert figures["accuracy"] == pytest.approx(0.8 * prevalence + 0.75 * (1 - prevalence))
    assert (second.figures()["ppv"], second.figures()["f2"]) == (None, 0.0)
    assert third.figures()["f2"] is None
    assert call(["results", str(files.root), "--at-half", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["specificity"] == pytest.approx(0.75)
    assert call(["results", str(files.root), "--at-half"]) == 0
    assert "specificity" in capsys.readouterr().out
    assert call(["results", str(files.root), "--dataset", "elsewhere"]) == 2
    assert "--dataset: only --at-half reads it, got elsewhere without" in capsys.readouterr().err


LABELS = np.array([1, 0, 1, 0, 0], np.float32)
# As probabilities 0.8, 0.75, 0.4, 0.25 and 0.2.
LOGITS = np.log(np.array([4, 3, 2 / 3, 1 / 3, 1 / 4])).astype(np.float32)
OF_THE_CORE = ["average_precision", "roc_auc", "f2", "f2_threshold", "log_loss"]


def test_every_report_has_the_decisions_that_are_judged() -> None:
    plain, corrected = (validation_metrics(LABELS, LOGITS, shift) for shift in (0.0, -2.0))
    assert list(plain) == [*OF_THE_CORE, "sensitivity_at_half", "specificity_at_half"]
    for found in (plain, corrected):
        assert (found["sensitivity_at_half"], found["specificity_at_half"]) == pytest.approx((1 / 2, 2 / 3))
    alone = validation_metrics(np.zeros(5, np.float32), LOGITS, 0.0)
    assert math.isnan(alone["sensitivity_at_half"])
    assert alone["specificity_at_half"] == pytest.approx(3 / 5)


def test_without_what_is_announced_only_the_metrics_of_the_core_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    before = validation_metrics(LABELS, LOGITS, 0.0)
    monkeypatch.setattr(registry, "_ANNOUNCED", {})
    assert validation_metrics(LABELS, LOGITS, 0.0) == {name: before[name] for name in OF_THE_CORE}
    monkeypatch.setattr(VALIDATION_METRICS, "registered", {})  # for this test alone
    VALIDATION_METRICS.register("highest", lambda _, logits: float(logits.max()))
    VALIDATION_METRICS.register("roc_auc", lambda *_: 2.0)  # a name that is taken
    found = validation_metrics(LABELS, LOGITS, 0.0)
    assert list(found) == [*OF_THE_CORE, "highest"]
    assert (found["roc_auc"], found["highest"]) == pytest.approx((5 / 6, math.log(4)))


def test_folds_count_with_their_own_prevalence(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", patients=40)
    files = make_search(tmp_path / "search", dataset)
    search = open_search(files.root)
    for fold in range(2):
        decided(search, fold, 1.0, 0.0, fold)
    (files.trials / "00002.json").unlink()
    rows = quick_evaluation(open_search(files.root))
    held_out = [HeldOut(dataset, fold).role("validation").prevalence for fold in range(2)]
    assert [row.figures()["ppv"] for row in rows] == pytest.approx(held_out)
    found = spread_of([row.figures() for row in rows], "accuracy")
    assert found is not None
    assert found.values == pytest.approx(held_out)
    assert found.deviation == pytest.approx(abs(held_out[0] - held_out[1]) / 2**0.5)
    assert spread_of([rows[0].figures()], "accuracy") is None


def test_report_b_is_its_table() -> None:
    space = load_space(REPOSITORY / "search_spaces" / "report_b.yaml")
    assert space.listed is not None
    rows = [
        (c["convolutions"], c["dropout_after_pool"], c["dropout_before_pool"], c["dropout_dense"],
         [c["dense"]] * int(c["dense_layers"]), c["epochs"], c["batch_size"], c["training_slices"])
        for c in space.listed
    ]  # fmt: skip
    assert rows == [
        ("none", 0, 0, 0, [32], 10, 32, 10_000),
        ("3/2,3/2", 0, 0, 0, [64], 10, 16, 10_000),
        ("3/2,3/2", 0.5, 0, 0, [64], 20, 16, 10_000),
        ("3/2", 0, 0, 0, [64], 10, 12, 10_000),
        ("3/2,3/2", 0, 0, 0, [64], 10, 16, 30_000),
        ("6/3,6/3", 0, 0, 0, [64], 5, 16, 30_000),
        ("6/3,3/2,3/2", 0, 0, 0, [64], 10, 16, 30_000),
        ("6/3,3/2,3/2", 0, 0, 0, [64, 64], 10, 16, 30_000),
        ("6/3,3/2,3/2", 0, 0.1, 0.5, [64, 64], 15, 16, 90_000),
        ("6/3,3/2,3/2", 0, 0, 0, [64, 64], 5, 16, 90_000),
    ]
    assert {(c["padding"], c["input_batch_norm"], c["filters"], c["dropout"]) for c in space.listed} == {
        ("valid", True, 64, 0.0)
    }


def test_an_unreadable_place_is_said(tmp_path: Path) -> None:
    assert not SearchFiles(locate(tmp_path)).search.exists()
    assert call(["results", str(tmp_path), "--at-half"]) == 2
