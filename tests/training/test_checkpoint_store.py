"""States of a training in a folder: which stay, which is resumed, and what is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from upath import UPath

from ich_ray.storage import SearchFiles, locate, sha256, write_json
from ich_ray.training.checkpoint_store import CheckpointStore
from ich_ray.training.state import TrainingState
from tests.search.fakes import FakeState

REPORTS = [{"images_seen": 100, "metrics": {"average_precision": None}, "elapsed_s": 1.0}]


@pytest.fixture
def files(tmp_path: Path) -> SearchFiles:
    return SearchFiles(locate(tmp_path))


def save(files: SearchFiles, *images: int) -> CheckpointStore:
    checkpoints = CheckpointStore(files.checkpoint(3), "newest")
    for seen in images:
        saved = checkpoints.save(seen, FakeState(seen), REPORTS)
        assert saved.sha256 == sha256(saved.file)
    return checkpoints


def resumed(files: SearchFiles) -> int | None:
    kept = CheckpointStore(files.checkpoint(3), "newest").newest()
    if kept is None:
        return None
    assert json.loads(kept.file.read_text())["images_seen"] == kept.images_seen
    assert list(kept.reports) == REPORTS
    return kept.images_seen


def test_there_is_none_at_first(files: SearchFiles) -> None:
    assert resumed(files) is None


def test_the_newest_of_two_is_resumed(files: SearchFiles) -> None:
    save(files, 100, 200, 300)
    assert resumed(files) == 300
    assert [name[:1] + name[10:] for name in names(files)] == ["a.json", "a.safetensors", "b.json", "b.safetensors"]


def names(files: SearchFiles) -> list[str]:
    return sorted(path.name for path in files.checkpoint(3).iterdir())


def the(files: SearchFiles, pattern: str) -> Path:
    (found,) = Path(str(files.checkpoint(3))).glob(pattern)
    return found


@pytest.mark.parametrize("damage", [b"", b'{"images_seen": 200', None])
def test_a_torn_state_falls_back_to_the_one_before(files: SearchFiles, damage: bytes | None) -> None:
    save(files, 100, 200)
    newest = the(files, "b-*.safetensors")
    newest.write_bytes(damage) if damage is not None else newest.unlink()
    assert resumed(files) == 100


@pytest.mark.parametrize("damage", ["", "[]", '{"file": "b.safetensors"}'])
def test_a_torn_index_falls_back_to_the_one_before(files: SearchFiles, damage: str) -> None:
    save(files, 100, 200)
    the(files, "b-*.json").write_text(damage)
    assert resumed(files) == 100
    checkpoints = CheckpointStore(files.checkpoint(3), "newest")
    checkpoints.newest()
    assert checkpoints.note == f"checkpoint {the(files, 'b-*.json').stem} was damaged"


def test_without_a_good_one_it_starts_again(files: SearchFiles) -> None:
    save(files, 100, 200)
    for name in "ab":
        the(files, f"{name}-*.safetensors").write_bytes(b"torn")
    assert resumed(files) is None


def test_the_good_one_stays_until_the_next_attempt_has_a_newer_one(files: SearchFiles) -> None:
    save(files, 100, 200, 300)
    checkpoints = CheckpointStore(files.checkpoint(3), "newest")
    kept = checkpoints.newest()
    assert kept is not None
    first = checkpoints.save(400, FakeState(400), REPORTS)
    assert len(names(files)) == 4
    first.file.write_bytes(b"torn")
    assert resumed(files) == 300
    checkpoints.save(500, FakeState(500), REPORTS)
    assert len(names(files)) == 4
    assert not kept.file.exists()
    assert resumed(files) == 500


def test_an_attempt_that_was_taken_for_lost_touches_nothing_of_the_next(files: SearchFiles) -> None:
    lost = save(files, 100)
    live = CheckpointStore(files.checkpoint(3), "newest")
    live.newest()
    live.save(200, FakeState(200), REPORTS)
    saved = live.save(300, FakeState(300), REPORTS)
    for seen in (200, 300):
        lost.save(seen, FakeState(seen), REPORTS)
        assert saved.sha256 == sha256(saved.file)
    live.save(400, FakeState(400), REPORTS)
    assert resumed(files) == 400


def of_0_1_0(folder: UPath, *images: int) -> None:
    """A retraining as version 0.1.0 left it: states without a hash, all reports in one file."""
    for seen in images:
        numbers = {"images_seen": seen, "elapsed_s": 0.0, "plan": {}}
        TrainingState({"weights.a": torch.zeros(1)}, numbers).save(folder / f"state-{seen:012d}.safetensors")
    write_json(folder / "reports.json", [{"images_seen": seen} for seen in (100, 200, 300)])


def best_of(folder: UPath) -> CheckpointStore:
    return CheckpointStore(folder, "newest and best")


def stems(folder: UPath) -> list[str]:
    return sorted({path.stem for path in folder.iterdir()})


def test_only_the_newest_and_the_best_state_stay(tmp_path: Path) -> None:
    folder, reports = locate(tmp_path), []
    store = best_of(folder)
    for seen, best in ((100, 100), (200, 200), (300, 200)):
        reports.append({"images_seen": seen})
        store.save(seen, FakeState(seen), reports, best)
    assert stems(folder) == ["state-000000000200", "state-000000000300"]
    assert best_of(folder).reports() == ({"images_seen": 100}, {"images_seen": 200}, {"images_seen": 300})
    best_of(folder).file(300).write_bytes(b"torn")
    store = best_of(folder)
    resumed = store.newest()
    assert resumed is not None
    assert (resumed.file, resumed.images_seen, len(resumed.reports)) == (store.file(200), 200, 2)
    assert store.note == "checkpoint state-000000000300 was damaged"
    store.save(400, FakeState(400), reports, None)
    assert stems(folder) == ["state-000000000400"]


def test_a_retraining_of_version_0_1_0_goes_on(tmp_path: Path) -> None:
    folder = locate(tmp_path)
    of_0_1_0(folder, 200, 300)
    store = best_of(folder)
    assert len(store.reports()) == 3
    resumed = store.newest()
    assert resumed is not None
    assert (resumed.images_seen, resumed.reports) == (300, tuple({"images_seen": seen} for seen in (100, 200, 300)))
    store.save(400, FakeState(400), [*resumed.reports, {"images_seen": 400}], 200)
    assert stems(folder) == ["reports", "state-000000000200", "state-000000000400"]
    assert len(store.reports()) == 4


@pytest.mark.parametrize("damage", [b"", b"torn"])
def test_a_torn_state_of_version_0_1_0_falls_back_to_the_one_before(tmp_path: Path, damage: bytes) -> None:
    folder = locate(tmp_path)
    of_0_1_0(folder, 200, 300)
    store = best_of(folder)
    store.file(300).write_bytes(damage)
    resumed = store.newest()
    assert resumed is not None
    assert (resumed.images_seen, len(resumed.reports)) == (200, 2)
    assert "state-000000000300.safetensors: a training state must be there, whole" in store.note


@pytest.mark.parametrize("reports", ["{}", "5", '[{"images_seen": "300"}]', "[null]"])
def test_reports_of_version_0_1_0_that_are_none_start_again(tmp_path: Path, reports: str) -> None:
    of_0_1_0(locate(tmp_path), 200, 300)
    (tmp_path / "reports.json").write_text(reports)
    assert best_of(locate(tmp_path)).newest() is None


def test_other_files_of_the_folder_are_left_alone(tmp_path: Path) -> None:
    for name in ("run.json", "notes-a-.txt", "a-01234567.safetensors", ".b-01234567.json.1f.tmp", "state-1.json"):
        (tmp_path / name).write_text("{}")
    store = CheckpointStore(locate(tmp_path), "newest")
    assert store.newest() is None
    for seen in (100, 200):
        store.save(seen, FakeState(seen), REPORTS)
    left = {path.name for path in tmp_path.iterdir() if path not in {*tmp_path.glob("[ab]-*")}}
    assert left == {"run.json", "notes-a-.txt", "state-1.json"}
    assert len([*tmp_path.glob("[ab]-*")]) == 4
