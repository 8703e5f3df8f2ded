from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
from upath import UPath

from ich_ray.errors import ConfigError
from ich_ray.results import read_trial
from ich_ray.search_records import EndCheck
from ich_ray.storage import SearchFiles, stamp, stamps, write_json
from ich_ray.trial_records import TrialResult
from ich_ray.watch import followed as module
from ich_ray.watch.followed import FollowedSearch
from tests.watch.planted import plant_search, write_trial


@pytest.fixture
def files(tmp_path: Path) -> SearchFiles:
    return plant_search(tmp_path / "search")


def test_a_folder_that_is_no_search_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a search holds search\.json, got none; check the path"):
        FollowedSearch(tmp_path)


def test_only_what_has_changed_is_read_again(files: SearchFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    followed = FollowedSearch(files.root)
    assert followed.refresh() == set(range(12))
    read: list[str] = []

    def noted(of: SearchFiles, path: UPath) -> TrialResult:
        read.append(path.name)
        return read_trial(of, path)

    monkeypatch.setattr(module, "read_trial", noted)
    assert followed.refresh() == set()
    write_trial(files, followed.trials[11].model_copy(update={"attempts": 5}))
    assert followed.refresh() == {11}
    assert read == ["00011.json"]
    assert followed.trials[11].attempts == 5


def test_a_damaged_file_is_named_and_hides_nothing(files: SearchFiles) -> None:
    followed = FollowedSearch(files.root)
    followed.refresh()
    files.trial(11).write_bytes(b"{")
    files.trial(12).write_bytes(b"[]")
    assert followed.refresh() == {11, 12}
    assert sorted(followed.damaged) == ["00011.json", "00012.json"]
    assert sorted(followed.trials) == [*range(12)]  # 11 as it was
    write_trial(files, followed.trials[11])
    files.trial(12).unlink()
    followed.refresh()
    assert followed.damaged == {}


class LibraryError(Exception):
    """Of a library for a storage, which knows nothing of OSError."""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            ConfigError("00003.json: must be readable, got stale file handle; let this user read it"),
            "stale file handle",
        ),
        (
            LibraryError("503, try later"),
            "00003.json: must be readable, got LibraryError: 503, try later; it is asked for again",
        ),
    ],
)
def test_what_a_storage_does_not_give_is_asked_for_again(
    files: SearchFiles, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def fails(of: SearchFiles, path: UPath) -> TrialResult:
        if path.name == "00003.json":
            raise error
        return read_trial(of, path)

    followed = FollowedSearch(files.root)
    with monkeypatch.context() as patch:
        patch.setattr(module, "read_trial", fails)
        assert followed.refresh() == set(range(12))
        assert followed.refresh() == {3}
    assert told in followed.damaged["00003.json"]
    assert sorted(followed.trials) == [number for number in range(12) if number != 3]
    assert followed.refresh() == {3}
    assert (followed.damaged, sorted(followed.trials)) == ({}, [*range(12)])


def test_a_record_that_a_storage_does_not_give_is_asked_for_again(
    files: SearchFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: SearchFiles) -> None:
        raise LibraryError("503, try later")

    followed = FollowedSearch(files.root)
    change = {"time": 1.0, "trials": 99}
    write_json(files.search, followed.record.model_copy(update={"amendments": (change,)}).model_dump(mode="json"))
    with monkeypatch.context() as patch:
        patch.setattr(module, "read_search_record", fails)
        followed.refresh()
    assert "LibraryError: 503, try later" in followed.damaged["search.json"]
    followed.refresh()
    assert (followed.damaged, followed.record.wanted) == ({}, 99)


def test_what_is_gone_is_gone(files: SearchFiles) -> None:
    followed = FollowedSearch(files.root)
    followed.refresh()
    files.trial(3).unlink()
    assert followed.refresh() == {3}
    assert 3 not in followed.trials


def test_files_of_other_names_are_not_read(files: SearchFiles) -> None:
    for name in ("١.json", "1e3.json", "notes.json", "00001.json.part", "999999999.json"):
        (files.trials / name).write_bytes(b"x")
    followed = FollowedSearch(files.root)
    assert followed.refresh() == set(range(12))
    assert followed.damaged == {}


def test_what_was_asked_is_read_again_when_it_changes(files: SearchFiles) -> None:
    followed = FollowedSearch(files.root)
    change = {"time": 1.0, "trials": 99}
    write_json(files.search, followed.record.model_copy(update={"amendments": (change,)}).model_dump(mode="json"))
    followed.refresh()
    assert followed.record.wanted == 99
    files.search.write_bytes(b"{")
    followed.refresh()
    assert followed.record.wanted == 99
    assert "search.json" in followed.damaged


def test_it_runs_while_a_driver_holds_the_lock(files: SearchFiles) -> None:
    followed = FollowedSearch(files.root)
    with Path(str(files.lock)).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        followed.refresh()
        assert followed.state(0.0) == "running"
    followed.refresh()
    assert followed.state(0.0) == "interrupted"


def test_it_has_ended_when_all_trials_have_or_the_time_is_over(tmp_path: Path) -> None:
    followed = FollowedSearch(plant_search(tmp_path / "whole", running=0, wanted=12).root)
    followed.refresh()
    assert followed.state(0.0) == "ended"
    over = EndCheck(trials=12, asked=20, sampler=12, tune=12, out_of_time=True).model_dump()
    early = plant_search(tmp_path / "early", running=0, amendments=({"time": 1.0, "ended": over},))
    followed = FollowedSearch(early.root)
    followed.refresh()
    assert followed.state(0.0) == "ended"


def test_one_that_has_ended_is_no_interrupted_one_for_a_damaged_file(tmp_path: Path) -> None:
    over = EndCheck(trials=12, asked=12, sampler=12, tune=12, out_of_time=False).model_dump()
    files = plant_search(tmp_path / "whole", running=0, wanted=12, amendments=({"time": 1.0, "ended": over},))
    files.trial(3).write_bytes(b"{")
    followed = FollowedSearch(files.root)
    followed.refresh()
    assert (sorted(followed.damaged), followed.state(0.0)) == (["00003.json"], "ended")


def test_it_is_followed_in_object_storage(files: SearchFiles) -> None:
    there = UPath("memory://watch/search")
    for path in (files.search, *files.records()):
        (there / path.relative_to(files.root).as_posix()).write_bytes(path.read_bytes())
    followed = FollowedSearch(there)
    assert followed.refresh() == set(range(12))
    assert followed.refresh() == set()
    trial = followed.trials[11].model_copy(update={"attempts": 22})
    (there / "trials" / "00011.json").write_text(trial.model_dump_json())
    assert followed.refresh() == {11}
    assert followed.state(followed.last_written() + 60) == "running"
    assert followed.state(followed.last_written() + 3600) == "interrupted"


def test_a_stamp_differs_once_a_file_was_written_anew(files: SearchFiles) -> None:
    before = stamps(files.trials)["00001.json"]
    assert before == stamp(files.trial(1))
    files.trial(1).rename(kept := files.trials / "kept")
    files.trial(1).write_bytes(kept.read_bytes())
    assert stamps(files.trials)["00001.json"] != before
    assert stamp(files.trial(77)) == ()
    assert stamps(files.root / "none") == {}
