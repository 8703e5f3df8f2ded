"""Copies of remote files: right when opened again, and no more of them than asked."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from upath import UPath

from ich_ray.cache import lacking_room, local_copy
from ich_ray.errors import ConfigError, IchRayError, IntegrityError
from ich_ray.storage import sha256

DATA = bytes(range(250)) * 4000  # 1 MB
ONE, TWO, THREE, FOUR = (digit * 32 for digit in "1234")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ICH_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def remote(home: Path, data: bytes = DATA, name: str = "block.arrow") -> UPath:
    path = UPath(f"memory://{home.parent.name}/{name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def flip(copy: Path) -> None:
    """Change one byte, and leave size and time of change as they were."""
    facts, data = copy.stat(), bytearray(copy.read_bytes())
    data[7] ^= 1
    time.sleep(0.02)  # clocks of file systems tick in milliseconds
    copy.write_bytes(data)
    os.utime(copy, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_a_copy_is_fetched_once_and_hashed_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = remote(home)
    copy = local_copy(path, sha256(DATA), ONE, len(DATA))
    assert copy == home / ONE / f"{sha256(DATA)}.arrow"
    assert copy.read_bytes() == DATA
    path.unlink()
    monkeypatch.setattr("ich_ray.cache.sha256", lambda _: pytest.fail("hashed again"))
    assert local_copy(path, copy.stem, ONE, len(DATA)) == copy


def test_a_flipped_byte_is_seen_when_the_copy_is_opened_again(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = remote(home)
    copy = local_copy(path, sha256(DATA), ONE, len(DATA))
    for damage in (flip, lambda copy: copy.write_bytes(DATA[:-1]), Path.unlink):
        damage(copy)
        assert local_copy(path, sha256(DATA), ONE, len(DATA)).read_bytes() == DATA
    path.unlink()
    flip(copy)
    with pytest.raises(IntegrityError, match=r"block.arrow: a file of the manifest must be there, got none"):
        local_copy(path, sha256(DATA), ONE, len(DATA))


def test_what_a_disk_loses_by_itself_is_seen_within_a_day(home: Path) -> None:
    path = remote(home)
    copy = local_copy(path, sha256(DATA), ONE, len(DATA))
    flip(copy)
    facts = copy.stat()  # nobody wrote: the times are those of the last verification
    stamp = copy.with_suffix(".verified")
    stamp.write_text(f"{facts.st_ino} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}")
    assert local_copy(path, sha256(DATA), ONE, len(DATA)).read_bytes() != DATA
    os.utime(stamp, (0, stamp.stat().st_mtime - 25 * 3600))
    assert local_copy(path, sha256(DATA), ONE, len(DATA)).read_bytes() == DATA


def test_the_least_recently_used_dataset_makes_room(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICH_RAY_CACHE_GB", "0.0035")
    (home / "mine").mkdir(parents=True)
    (home / "mine" / "thesis").write_bytes(DATA * 9)
    path = remote(home)
    for second, dataset in enumerate((ONE, TWO, THREE)):
        local_copy(path, sha256(DATA), dataset, len(DATA))
        os.utime(home / dataset / ".used", (second, second))
    local_copy(path, sha256(DATA), ONE, len(DATA))  # used again: two is the oldest now
    local_copy(path, sha256(DATA), FOUR, len(DATA))
    assert {each.name for each in home.iterdir()} == {ONE, THREE, FOUR, "mine"}
    monkeypatch.setenv("ICH_RAY_CACHE_GB", "0")
    other = remote(home, DATA[::-1], "other.arrow")
    local_copy(other, sha256(DATA[::-1]), FOUR, len(DATA))
    assert {each.name for each in home.iterdir()} == {FOUR, "mine"}
    assert len(list((home / FOUR).glob("*.arrow"))) == 2  # never its own


def test_a_cache_that_cannot_be(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = remote(home)
    for text in ("much", "-1", "nan"):
        monkeypatch.setenv("ICH_RAY_CACHE_GB", text)
        with pytest.raises(ConfigError, match=f"ICH_RAY_CACHE_GB: a size in GB must be given, got '{text}'"):
            local_copy(path, sha256(DATA), ONE, len(DATA))
    home.rename(home.with_name("moved"))
    home.write_text("in the way")
    with pytest.raises(IchRayError, match="cache: copies of remote files must be written, got"):
        local_copy(path, sha256(DATA), ONE, len(DATA))


@pytest.mark.parametrize("name", ["../../.config", "1" * 31, "A" * 32, "1" * 32 + "/x", "", "." * 32])
def test_only_hashes_become_names(name: str, home: Path) -> None:
    path = remote(home)
    for digest, dataset in ((sha256(DATA), name), (name, ONE)):
        with pytest.raises(IntegrityError, match="its dataset must have hexadecimal hashes, got others"):
            local_copy(path, digest, dataset, len(DATA))
    assert not home.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("planted", ["folder", "copy", "stamp"])
def test_a_copy_that_another_user_calls_verified_is_hashed(planted: str, home: Path) -> None:
    path = remote(home)
    copy = local_copy(path, sha256(DATA), ONE, len(DATA))
    copy.write_bytes(DATA[::-1])
    facts = copy.stat()
    stamp = copy.with_suffix(".verified")
    stamp.write_text(f"{facts.st_ino} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}")
    os.chown({"folder": copy.parent, "copy": copy, "stamp": stamp}[planted], 1234, 1234)
    if planted == "copy":  # giving it away has changed its times
        facts = copy.stat()
        stamp.write_text(f"{facts.st_ino} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}")
    assert local_copy(path, sha256(DATA), ONE, len(DATA)).read_bytes() == DATA


def test_the_end_of_a_remote_name_is_not_taken_over(home: Path) -> None:
    path = remote(home, name="evil.pth")
    assert local_copy(path, sha256(DATA), ONE, len(DATA)).suffix == ".arrow"
    assert {each.suffix for each in (home / ONE).iterdir()} <= {".arrow", ".lock", ".verified", ""}


def test_no_more_is_fetched_than_there_can_be(home: Path) -> None:
    path = remote(home)
    with pytest.raises(IntegrityError, match=r"at most 999,999 bytes must be there, .* got more"):
        local_copy(path, sha256(DATA), ONE, len(DATA) - 1)
    with pytest.raises(IntegrityError, match=r"block\.arrow: SHA-256 must equal the manifest's"):
        local_copy(path, sha256(b""), ONE, len(DATA))
    assert [each.name for each in (home / ONE).iterdir() if each.suffix != ".lock"] == [".used"]


@pytest.mark.parametrize("name", ["", ".used", f"{sha256(DATA)}.arrow", f"{sha256(DATA)}.lock"])
def test_nothing_is_written_through_a_link(name: str, home: Path, tmp_path: Path) -> None:
    path, elsewhere = remote(home), tmp_path / "elsewhere"
    if name:
        (home / ONE).mkdir(parents=True)
        elsewhere.write_bytes(b"mine")
    else:
        home.mkdir()
        elsewhere.mkdir()
    (home / ONE / name).symlink_to(elsewhere)
    with pytest.raises(IchRayError, match="a cache holds files and folders of its own, got a link; remove it"):
        local_copy(path, sha256(DATA), ONE, len(DATA))
    if name:
        assert elsewhere.read_bytes() == b"mine"
    else:
        assert [*elsewhere.iterdir()] == []


def test_only_what_the_cache_has_made_is_removed(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = remote(home)
    local_copy(path, sha256(DATA), ONE, len(DATA))
    (home / ONE / "thesis.txt").write_text("years of work")
    others = tmp_path / "others"
    others.mkdir()
    (others / ".used").touch()
    (others / f"{sha256(DATA)}.arrow").write_bytes(DATA)
    (home / TWO).symlink_to(others)
    (home / THREE).mkdir()  # without the mark
    (home / THREE / f"{sha256(DATA)}.arrow").write_bytes(DATA)
    monkeypatch.setenv("ICH_RAY_CACHE_GB", "0")
    local_copy(path, sha256(DATA), FOUR, len(DATA))
    assert [each.name for each in (home / ONE).iterdir()] == ["thesis.txt"]
    assert len([*others.iterdir()]) == 2
    assert len([*(home / THREE).iterdir()]) == 1


@pytest.mark.parametrize(
    ("needed", "free", "limit", "told"),
    [
        (148_000_000_000, 149_000_000_000, "200", ""),
        (
            333_000_000_001, 10**15, "",
            "ICH_RAY_CACHE_GB: must be at least 334 for copies of memory://data, got 200; set it where Ray is started",
        ),
        (
            148_000_000_000, 147_000_000_000, "200",
            "{home}: 148 GB must be free for copies of memory://data, got 147.0; name a folder on a larger disk in "
            "ICH_RAY_CACHE, where Ray is started",
        ),
        (148_000_000_000, 147_000_000_000, "many", "ICH_RAY_CACHE_GB: a size in GB must be given, got 'many'"),
    ],
)  # fmt: skip
def test_a_dataset_larger_than_the_cache_or_its_disk_is_told_with_the_number_to_set(
    home: Path, monkeypatch: pytest.MonkeyPatch, needed: int, free: int, limit: str, told: str
) -> None:
    monkeypatch.setenv("ICH_RAY_CACHE_GB", limit)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    assert lacking_room(UPath("memory://data"), ONE, needed) == told.format(home=home)


def test_copies_that_are_there_need_no_room(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local_copy(remote(home), sha256(DATA), ONE, len(DATA))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=500_000))
    assert lacking_room(UPath("memory://data"), ONE, len(DATA) + 400_000) == ""
    assert lacking_room(UPath("memory://data"), TWO, len(DATA) + 400_000).startswith(f"{home}: 1 GB must be free")


@pytest.mark.parametrize(
    ("limit_gb", "free", "told"),
    [
        ("0.0015", 500_000, ""),  # of 1 MB there and as much to come the first is dropped before the disk is full
        ("0.0015", 499_999, "1 GB must be free"),  # the disk is full first
        ("0.003", 999_999, "1 GB must be free"),  # nothing is dropped
        ("0.003", 1_000_000, ""),
    ],
)
def test_room_that_the_cache_makes_by_dropping_other_datasets_counts_as_free(
    home: Path, monkeypatch: pytest.MonkeyPatch, limit_gb: str, free: int, told: str
) -> None:
    path = remote(home)
    copy = local_copy(path, sha256(DATA), ONE, len(DATA))
    stamp = copy.with_suffix(".verified").stat().st_size
    monkeypatch.setenv("ICH_RAY_CACHE_GB", limit_gb)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free - stamp * (limit_gb == "0.0015")))
    found = lacking_room(UPath("memory://data"), TWO, len(DATA))
    assert told in found
    assert bool(told) == bool(found)
    local_copy(path, sha256(DATA), TWO, len(DATA))
    assert copy.exists() == (limit_gb == "0.003")
