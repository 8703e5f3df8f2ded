"""Files that one machine writes and another reads."""

from __future__ import annotations

from pathlib import Path

from upath import UPath

from ich_ray.cluster.storage_speed import StorageSpeed, read_others, write_own


def test_what_one_writes_another_reads_and_the_time_is_taken(tmp_path: Path) -> None:
    folder = UPath(tmp_path)
    speed = write_own(folder, "a")
    assert speed.latency_s > 0
    assert speed.write_mb_per_s > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.large"]
    assert (tmp_path / "a.large").stat().st_size == 32 + (8 << 20)
    wrong, rate = read_others(str(tmp_path), ["a"], "a")
    assert wrong == {}
    assert rate is not None


def test_what_is_missing_or_other_bytes_is_named(tmp_path: Path) -> None:
    write_own(UPath(tmp_path), "a")
    whole = (tmp_path / "a.large").read_bytes()
    (tmp_path / "a.large").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    wrong, rate = read_others(str(tmp_path), ["a", "b"], "a")
    assert wrong == {
        "b": f"FileNotFoundError: [Errno 2] No such file or directory: '{tmp_path}/b'",
        "a": "other bytes than were written",
    }
    assert rate is None


def test_it_works_in_an_object_store_too() -> None:
    folder = UPath("memory://doctor")
    write_own(folder, "a")
    wrong, rate = read_others(str(folder), ["a"], "a")
    assert wrong == {}
    assert rate is not None


def test_the_time_of_a_state_has_that_of_a_small_file_in_it() -> None:
    assert StorageSpeed(latency_s=0.5, write_mb_per_s=20.0).state_s == 5.5
