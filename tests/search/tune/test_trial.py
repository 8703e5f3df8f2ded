from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ich_ray.errors import TrialFailure
from ich_ray.search.tune.trial import Checkpoints, as_failure
from ich_ray.storage import SearchFiles, locate, sha256
from tests.search.fakes import FakeProgress

REPORTS = [{"images_seen": 100, "metrics": {"average_precision": None}, "elapsed_s": 1.0}]


@pytest.fixture
def files(tmp_path: Path) -> SearchFiles:
    return SearchFiles(locate(tmp_path))


def save(files: SearchFiles, *images: int) -> Checkpoints:
    checkpoints = Checkpoints(files, 3)
    for seen in images:
        reference = checkpoints.save(FakeProgress(seen, {}, 1.0), REPORTS)
        assert reference.sha256 == sha256(files.root / reference.file)
    return checkpoints


def resumed(files: SearchFiles) -> int | None:
    kept = Checkpoints(files, 3).newest()
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
    checkpoints = Checkpoints(files, 3)
    checkpoints.newest()
    assert checkpoints.note == f"checkpoint {the(files, 'b-*.json').stem} was damaged"


def test_without_a_good_one_it_starts_again(files: SearchFiles) -> None:
    save(files, 100, 200)
    for name in "ab":
        the(files, f"{name}-*.safetensors").write_bytes(b"torn")
    assert resumed(files) is None


def test_the_good_one_stays_until_the_next_attempt_has_a_newer_one(files: SearchFiles) -> None:
    save(files, 100, 200, 300)
    checkpoints = Checkpoints(files, 3)
    kept = checkpoints.newest()
    assert kept is not None
    first = checkpoints.save(FakeProgress(400, {}, 1.0), REPORTS)
    assert len(names(files)) == 4
    Path(str(files.root / first.file)).write_bytes(b"torn")
    assert resumed(files) == 300
    checkpoints.save(FakeProgress(500, {}, 1.0), REPORTS)
    assert len(names(files)) == 4
    assert not kept.file.exists()
    assert resumed(files) == 500


def test_an_attempt_that_was_taken_for_lost_touches_nothing_of_the_next(files: SearchFiles) -> None:
    lost = save(files, 100)
    live = Checkpoints(files, 3)
    live.newest()
    live.save(FakeProgress(200, {}, 1.0), REPORTS)
    reference = live.save(FakeProgress(300, {}, 1.0), REPORTS)
    for seen in (200, 300):
        lost.save(FakeProgress(seen, {}, 1.0), REPORTS)
        assert reference.sha256 == sha256(files.root / reference.file)
    live.save(FakeProgress(400, {}, 1.0), REPORTS)
    assert resumed(files) == 400


@pytest.mark.parametrize(
    ("error", "reason", "detail"),
    [
        (TrialFailure("diverged", "loss is nan"), "diverged", "loss is nan"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", "OutOfMemoryError: CUDA out of memory"),
        (MemoryError("host"), "out_of_memory", "MemoryError: host"),
        (RuntimeError("STATUS_ALLOC_FAILED"), "out_of_memory", "RuntimeError: STATUS_ALLOC_FAILED"),
        (ValueError("planted"), "error", "ValueError: planted"),
    ],
)
def test_every_error_becomes_a_reason(error: Exception, reason: str, detail: str) -> None:
    failure = as_failure(error)
    assert (failure.reason, failure.detail) == (reason, detail)
