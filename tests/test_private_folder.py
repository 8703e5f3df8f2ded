"""What is for its owner only: Ray's folder below /tmp, and files with names in them."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from ich_ray import cli
from ich_ray.errors import ConfigError
from ich_ray.runtime import connected
from ich_ray.storage import locate, private, private_folder, write_bytes, write_table, writing


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("before", [None, 0o777, 0o755, 0o701, 0o700])
def test_a_folder_of_this_user_is_closed_to_all_others(tmp_path: Path, before: int | None) -> None:
    folder = tmp_path / "own"
    if before is not None:
        folder.mkdir()
        folder.chmod(before)
    assert private_folder(folder) == folder
    assert mode(folder) == 0o700


def a_link(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir(mode=0o755)
    folder.symlink_to(folder.parent / "elsewhere")


def a_link_to_nothing(folder: Path) -> None:
    folder.symlink_to(folder.parent / "nothing")


def a_file(folder: Path) -> None:
    folder.write_text("")


def a_folder_of_another(folder: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a folder away")
    folder.mkdir(mode=0o755)
    os.chown(folder, 65534, 65534)


PLANTED = [
    (a_link, "a link"),
    (a_link_to_nothing, "a link"),
    (a_file, "not a directory"),
    (a_folder_of_another, "a folder of user 65534"),
]


@pytest.mark.parametrize(("plant", "got"), PLANTED)
def test_what_another_has_put_there_is_refused_and_untouched(
    tmp_path: Path, plant: Callable[[Path], None], got: str
) -> None:
    folder = tmp_path / "own"
    plant(folder)
    before = folder.lstat()
    told = (
        rf"^{re.escape(str(folder))}: must be a folder of user \d+ alone, got {got}; let its owner, or root, remove it$"
    )
    with pytest.raises(ConfigError, match=told):
        private_folder(folder)
    assert (folder.lstat().st_mode, folder.lstat().st_uid) == (before.st_mode, before.st_uid)
    if (tmp_path / "elsewhere").exists():
        assert mode(tmp_path / "elsewhere") == 0o755


@pytest.mark.parametrize("below", ["", "r"])
def test_no_ray_is_started_in_a_folder_of_another(
    tmp_path: Path,
    below: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(private, "_TMP", tmp_path)
    folder = tmp_path / f"ich{os.geteuid()}"
    if below:
        folder.mkdir()
    a_link(folder / below)
    with pytest.raises(ConfigError, match=rf"{folder / below}: must be a folder of user \d+ alone"), connected(cpus=1):
        pytest.fail("Ray was started")


def test_a_mode_is_there_before_the_first_byte_and_replaces_another(tmp_path: Path) -> None:
    path = tmp_path / "names.csv"
    path.write_text("open to all")
    path.chmod(0o666)
    with writing(locate(path), private=True) as file:
        (temporary,) = tmp_path.glob(".names.csv.*.tmp")
        assert mode(temporary) == 0o600
        file.write(b"names")
    assert (mode(path), path.read_bytes()) == (0o600, b"names")


def test_only_what_is_private_is_closed(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        for private, expected in ((False, 0o644), (True, 0o600)):
            write_bytes(locate(tmp_path / "bytes"), b"x", private)
            write_table(locate(tmp_path / "table"), pa.table({"a": [1]}), private)
            assert [mode(tmp_path / name) for name in ("bytes", "table")] == [expected] * 2
    finally:
        os.umask(before)


def test_a_folder_of_another_ends_a_command_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.data.folders import write_cohort

    monkeypatch.setattr(private, "_TMP", tmp_path / "tmp")
    (tmp_path / "tmp").mkdir()
    a_link(tmp_path / "tmp" / f"ich{os.geteuid()}")
    labels = write_cohort(tmp_path / "images")
    arguments = ["prepare", str(tmp_path / "images"), "--labels", str(labels), "--out", str(tmp_path / "out")]
    assert cli.call([*arguments, "--size", "16"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "must be a folder of user" in line
