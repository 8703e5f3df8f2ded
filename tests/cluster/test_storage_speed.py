"""Files that one machine writes and another reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from upath import UPath

from ich_ray.cluster import storage_speed
from ich_ray.cluster.storage_speed import read_others, write_own


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


class Busy:
    """A disk whose clock is told: what each file takes to write or to read, in turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *takes_s: float) -> None:
        self.now, self.takes_s, self.sizes = 0.0, [*takes_s], list[int]()
        monkeypatch.setattr(storage_speed.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(storage_speed, "write_bytes", lambda _, data: self._meet(len(data)))
        monkeypatch.setattr(storage_speed, "_problem", lambda _: self._meet(0))

    def _meet(self, size: int) -> str:
        self.sizes.append(size)
        self.now += self.takes_s.pop(0)
        return ""


def test_a_busy_moment_changes_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files that met one took longer than the large one: nothing is made of the difference."""
    busy = Busy(monkeypatch, 0.9, 0.02, 0.9, 0.8, 0.5, 0.7)
    speed = write_own(UPath("memory://busy"), "a")
    assert busy.sizes == [96] * 3 + [32 + (8 << 20)] * 3
    assert speed.latency_s == pytest.approx(0.02)
    assert speed.write_mb_per_s == pytest.approx(8.388608 / 0.5)
    assert speed.state_s == pytest.approx(100 / 8.388608 * 0.5)
    busy.takes_s = [0.3, 0.1, 0.2]
    assert read_others("memory://busy", [], "a")[1] == pytest.approx(83.88608)


def test_what_takes_long_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Busy(monkeypatch, 6.0, 20.0)
    assert write_own(UPath("memory://slow"), "a").write_mb_per_s == pytest.approx(8.388608 / 20)
    assert busy.takes_s == []
