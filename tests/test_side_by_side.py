from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ich_ray.cli import call
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError
from ich_ray.results import SearchResult, open_search
from ich_ray.search.ledger import Ledger
from ich_ray.side_by_side import BundleChange, side_by_side
from ich_ray.storage import SearchFiles, locate, read_json, write_json
from tests.html_report.fake_search import build_search
from tests.prepared import make_dataset
from tests.records import make_confirmation
from tests.search.test_chances import ledger_of, trained


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_dataset(tmp_path_factory.mktemp("beside") / "data", patients=100)


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(str(build_search(tmp_path_factory.mktemp("tested"), trials=3, patients=60)))


def search(folder: Path, dataset: PreparedDataset, *skills: float) -> Ledger:
    ledger = ledger_of(folder, dataset)
    for skill in skills:
        trained(ledger, dataset, skill)
    return ledger


def opened(*ledgers: Ledger) -> list[SearchResult]:
    return [open_search(ledger.files.root) for ledger in ledgers]


def changed(ledger: Ledger, **values: object) -> Ledger:
    write_json(ledger.files.search, {**read_json(ledger.files.search), **values})
    return ledger


def test_a_difference_that_the_patients_show_is_beyond_noise(tmp_path: Path, dataset: PreparedDataset) -> None:
    good, weak, twin = (
        search(tmp_path / name, dataset, *skills)
        for name, skills in {"good": (6.0, 1.0), "weak": (0.5,), "twin": (6.0, 1.0)}.items()
    )
    compared = side_by_side(opened(good, weak, twin))
    worse, same = compared.pairs
    assert worse.same_dataset
    assert (worse.differences, worse.p_better, worse.test) == ((), 0.0, None)
    assert worse.verdict == "worse beyond noise (better in 0.0% of draws of the patients who judged both)"
    assert replace(worse, p_better=1.0).verdict.startswith("better beyond noise (better in 100.0% of draws")
    assert (same.p_better, same.verdict.partition(" (")[0]) == (0.5, "within noise")
    first = compared.searches[0]
    assert (first.trials, first.completed, first.trial, first.images, first.gpu_hours) == (2, 2, 0, 600, 0.0)
    assert first.best == open_search(good.files.root).best().value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fingerprint": "e" * 32}, "they are of different datasets"),
        ({"space": {"name": "by-hand", "objective": {"metric": "roc_auc"}}}, "their trials were judged otherwise"),
        ({"dataset": "s3://bucket/data"}, "names its dataset, at s3://bucket/data"),
        ({"dataset": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
)
def test_what_cannot_be_told_is_said(
    change: dict[str, object], said: str, tmp_path: Path, dataset: PreparedDataset
) -> None:
    one, other = search(tmp_path / "one", dataset, 6.0), search(tmp_path / "other", dataset, 6.0)
    (pair,) = side_by_side(opened(one, changed(other, **change))).pairs
    assert pair.p_better is None
    assert pair.verdict.startswith("cannot be told apart from noise: ")
    assert said in pair.problem
    assert pair.same_dataset == ("fingerprint" not in change)


def test_logits_that_were_not_kept_are_named(tmp_path: Path, dataset: PreparedDataset) -> None:
    one, other, empty = (search(tmp_path / name, dataset, *skills) for name, skills in
                         {"one": (6.0,), "other": (6.0,), "empty": ()}.items())  # fmt: skip
    for path in other.files.logits_of(0).iterdir():
        path.unlink()
    lost, none = side_by_side(opened(one, other, empty)).pairs
    assert "the logits of trial 0 of" in lost.problem
    assert "has no completed trial" in none.problem


def test_a_dataset_that_only_a_record_names_may_be_given(tmp_path: Path, dataset: PreparedDataset) -> None:
    one, other = (changed(search(tmp_path / name, dataset, 6.0), dataset="s3://bucket/data") for name in ("a", "b"))
    (pair,) = side_by_side(opened(one, other), dataset.files.root).pairs
    assert pair.p_better == 0.5
    with pytest.raises(ConfigError, match=r"a prepared dataset holds dataset\.json, got none"):
        side_by_side(opened(one, other), tmp_path)


def test_bundles_are_told_apart_by_the_test_patients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, weak = (
        SearchFiles(build_search(tmp_path / name, trials=3, patients=60, signal=signal))
        for name, signal in (("good", 2.0), ("weak", 0.3))
    )
    assert call(["results", str(good.root), str(weak.root), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    ((test,), first) = [pair["test"] for pair in told["pairs"]], told["searches"][0]
    assert -0.6 < test["low"] < test["difference"] < test["high"] < 0
    said = f"(difference {test['difference']:+.4f}, 95 % from {test['low']:+.4f} to {test['high']:+.4f})"
    assert test["verdict"] == f"worse beyond noise {said}"
    assert (first["test"], first["test_low"], first["test_high"]) == pytest.approx((0.79, 0.73, 0.85))
    assert first["ended"] is True
    assert call(["results", str(good.root), str(weak.root)]) == 0
    assert f"  test of search 2: worse beyond noise {said}" in capsys.readouterr().out.splitlines()
    (back,) = side_by_side([open_search(files.root) for files in (weak, good)]).pairs
    assert back.test is not None
    assert back.test.verdict.startswith("better beyond noise (difference +0.")
    # Whose card has lost its test since has another bundle than the one that was tested.
    card = good.bundle / "card.json"
    write_json(card, {**read_json(card), "test": None})
    again = side_by_side([open_search(files.root) for files in (weak, good)])
    assert (again.pairs[0].test, [search.test for search in again.searches]) == (None, [0.79, None])


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (BundleChange(0.1, -0.01, 0.2), "within noise (difference +0.1000, 95 % from -0.0100 to +0.2000)"),
        (BundleChange(0.1, 0.01, 0.2), "better beyond noise (difference +0.1000, 95 % from +0.0100 to +0.2000)"),
        (BundleChange(-0.1, -0.2, -0.01, sign=-1), "better beyond noise (difference -0.1000, 95 % from"),
        (BundleChange(0.1, 0.01, 0.2, sign=-1), "worse beyond noise (difference +0.1000"),
        (BundleChange(0.1, problem="too few"), "cannot be told apart from noise: too few"),
    ],
)
def test_a_difference_whose_interval_has_zero_is_noise(change: BundleChange, verdict: str) -> None:
    assert change.verdict.startswith(verdict)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fingerprint": "e" * 32}, "they are of different datasets"),
        (
            {"space": {"name": "x", "objective": {"metric": "f2"}}},
            "they must have the same objective, one of log_loss, ",
        ),
    ],
)
def test_what_cannot_be_told_of_bundles_is_said(change: dict[str, object], said: str, tested: Path) -> None:
    files = SearchFiles(locate(tested.parent / "other"))
    shutil.copytree(tested, str(files.root))
    try:
        write_json(files.search, {**read_json(files.search), **change})
        (pair,) = side_by_side([open_search(tested), open_search(files.root)]).pairs
    finally:
        shutil.rmtree(str(files.root))
    assert pair.test is not None
    assert said in pair.test.problem


def test_the_command_tells_spaces_apart(
    tmp_path: Path, dataset: PreparedDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = search(tmp_path / "one", dataset, 6.0), search(tmp_path / "other", dataset, 0.5)
    space = read_json(other.files.search)["space"]
    listed = [{"dropout": number / 100} for number in range(50)]
    changed(other, seed=3, space={**space, "parameters": {"dropout": {"uniform": [0.0, 0.5]}}, "candidates": listed})
    write_json(one.files.confirmation, make_confirmation(0, 0))
    places = [str(one.files.root), str(other.files.root)]
    assert call(["results", *places]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:8] == ["1", "by-hand", "1", "of", "1", "average_precision", "1.0000", "0.4000"]
    assert "search 2 and search 1: the same dataset" in lines
    assert "  seed: 0 -> 3" in lines
    assert "  parameters.dropout.uniform: [0.0, 0.8] -> [0.0, 0.5]" in lines
    assert "  best of search 2: worse beyond noise (better in 0.0% of draws of the patients who judged both)" in lines
    (cut,) = (line for line in lines if line.startswith("  candidates"))
    assert cut == f"  candidates: nothing -> {str(listed)[:79]}…; --json has all"
    assert call(["results", *places, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [search["confirmed"] for search in told["searches"]] == [0.4, None]
    assert told["pairs"][0]["p_better"] == 0.0
    assert f"candidates: nothing -> {listed}" in told["pairs"][0]["differences"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "each search must be given once, got"),
        (["--top", "3"], "--top: trials are shown of one search, got 3 with 2"),
        (["--at-half"], "--at-half: tells of one search, got 2"),
    ],
)
def test_what_is_asked_of_one_search_alone_is_refused(
    flags: list[str], said: str, tmp_path: Path, dataset: PreparedDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(search(tmp_path / "s", dataset, 6.0).files.root)
    assert call(["results", place, place, *flags]) == 2
    assert said in capsys.readouterr().err
