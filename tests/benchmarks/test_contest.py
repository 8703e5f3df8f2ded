"""What the side-by-side measurements rest on, without the peers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import benchmarks
from benchmarks.contest import Peer, absent, ratios, spread, table
from benchmarks.searchers.task import Task, losses, named, note, notes

FOLDER = Path(benchmarks.__file__).parent
FIELD = sorted(FOLDER.glob("field_*.py"))


def test_a_table_is_aligned_markdown() -> None:
    assert table(["route", "ms"], [["ours", "0.6"], ["usual code", "10.2"]]).splitlines() == [
        "| route      | ms   |",
        "|------------|------|",
        "| ours       | 0.6  |",
        "| usual code | 10.2 |",
    ]


def test_ratios_are_taken_within_a_round() -> None:
    assert ratios([10.0, 30.0, 8.0], [1.0, 2.0, 1.0]) == [10.0, 15.0, 8.0]
    assert spread(ratios([10.0, 30.0, 8.0], [1.0, 2.0, 1.0])) == "10.0 (8.0 to 15.0)"
    assert spread([1234.6, 999.0], 0) == "1,117 (999 to 1,235)"
    assert spread([1234.6], 0) == "1,235"


def test_a_peer_that_is_not_there_is_named() -> None:
    peers = [Peer("NumPy", "numpy", "numpy"), Peer("Fast Reader", "no_such_module", "fast-reader")]
    assert absent(peers) == ["Fast Reader: not installed: pip install fast-reader"]


def test_what_is_begun_twice_is_counted_and_what_never_ended_is_lost() -> None:
    noted = [
        {"trial": "a", "images": 0, "at": 0},
        {"trial": "a", "images": 500, "at": 500},
        {"trial": "b", "images": 500, "at": 500},
        {"trial": "a", "images": 500, "at": 1000},
        # killed; `a` goes on from an old state, `b` never does, `c` is new
        {"trial": "a", "images": 0, "at": 500},
        {"trial": "a", "images": 500, "at": 1000},
        {"trial": "a", "images": 500, "at": 1500},
        {"trial": "c", "images": 500, "at": 500},
    ]
    assert losses(noted, 4, {"a", "c"}) == (2, 1, 1000)
    assert losses(noted, 4, {"a", "b", "c"}) == (2, 0, 500)


def test_a_search_ends_when_its_images_are_noted(tmp_path: Path) -> None:
    task = Task(
        "data", str(tmp_path / "search"), 0, images=1000, trial_images=1000, report_every=500, first_rung=500, slots=2
    )
    task.write()
    assert Task.read(tmp_path / "search") == task
    note(task.notes, trial="a", images=500)
    assert not task.spent()
    note(task.notes, trial="b", images=500)
    with task.notes.open("a") as torn:
        torn.write('{"trial": "c", "ima')
    assert [one["trial"] for one in notes(task.notes)] == ["a", "b"]
    assert task.spent()


def test_a_number_given_twice_names_two_trials() -> None:
    drawn: dict[str, object] = {
        "blocks": 1,
        "filters": 8,
        "batch_size": 32,
        "learning_rate": 0.001,
        "decay": 0.01,
        "dropout": 0.1,
    }
    drawn["optimizer"] = "sgd"
    assert named("3", drawn) == named("3", {**drawn, "blocks": 1.0})
    assert named("3", drawn) != named("3", {**drawn, "blocks": 2})


@pytest.mark.parametrize("path", FIELD, ids=lambda path: path.stem)
def test_peers_are_imported_where_they_are_used(path: Path) -> None:
    """So that a benchmark runs without them and names them."""
    peers = {"dicomsdl", "SimpleITK", "monai", "webdataset", "streaming", "litdata", "datasets", "syne_tune"}
    top = {
        alias.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import) for alias in node.names
    }
    top |= {node.module or "" for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)}
    assert top
    assert not {name.split(".")[0] for name in top} & peers
