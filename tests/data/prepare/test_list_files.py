"""What is listed, what is refused before it is opened, and when two listings are the same."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from upath import UPath

from ich_ray import terminal
from ich_ray.data.prepare.list_files import list_files
from ich_ray.errors import ConfigError
from ich_ray.spreadsheet import inert
from ich_ray.storage import locate


def test_every_regular_file_at_any_depth_in_order(tmp_path: Path) -> None:
    for name in ("b/2.dcm", "a/1", "c.txt", "b/c/3.DCM", "labels.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    listing = list_files(locate(tmp_path), skip=[locate(tmp_path / "labels.csv")])
    assert listing.files == ("a/1", "b/2.dcm", "b/c/3.DCM", "c.txt")
    assert listing.refused == ()
    assert list_files(locate(tmp_path), skip=[locate(tmp_path / "labels.csv")]).digest == listing.digest
    assert len(list_files(locate(tmp_path))) == 5
    os.utime(tmp_path / "c.txt", ns=(0, 0))
    assert list_files(locate(tmp_path), skip=[locate(tmp_path / "labels.csv")]).digest != listing.digest


def test_links_stay_inside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.dcm").write_text("a")
    (tmp_path / "secret").write_text("s")
    os.symlink(tmp_path / "secret", root / "out.dcm")
    os.symlink(tmp_path, root / "up")
    os.symlink(root / "sub" / "a.dcm", root / "in.dcm")
    os.symlink(root / "sub", root / "again")
    os.symlink("itself", root / "itself")
    listing = list_files(locate(root))
    assert listing.files == ("in.dcm", "sub/a.dcm")
    assert listing.refused == (("itself", "not_regular"), ("out.dcm", "path_escape"), ("up", "path_escape"))


def test_names_that_cannot_be_written_down(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.dcm")).write_text("x")
    (tmp_path / "new\nline.dcm").write_text("x")
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/Sch\xe4del"))
    folder.mkdir()
    for name in ("1.dcm", "2.dcm"):
        (folder / name).write_text("x")
    assert [reason for _, reason in list_files(locate(tmp_path)).refused] == ["name_invalid"] * 4


@pytest.mark.parametrize(
    "name",
    [
        "Anna\u00a0Meier",
        "\u5c71\u7530\u3000\u592a\u90ce",
        "CT 10.15\u202fPM",
        "Sch\u00e4del\u00adCT",
        "a\u200db",
        "\ue000",
        "\u05d0\u200f1",
    ],
)
def test_names_with_spaces_of_every_width_are_read_and_shown_safely(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "1.dcm").write_text("x")
    assert list_files(locate(tmp_path)).files == (f"{name}/1.dcm",)
    terminal.print_line(name)
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == 1
    assert not {unicodedata.category(one) for one in shown[:-1]} & {"Cc", "Cf", "Co", "Zl", "Zp"}
    assert inert(f"{name}=1+1") == f"{name}=1+1"
    assert inert(f"\u3000\u202f={name}") == f"'\u3000\u202f={name}"


@pytest.mark.parametrize("character", ["\t", "\x1b", "\x7f", "\x85", "\u2028", "\u2029", "\u202e", "\u2066", "\u2069"])
def test_names_that_could_deceive_are_refused_wherever_they_lie(tmp_path: Path, character: str) -> None:
    (tmp_path / f"a{character}b").write_text("x")
    assert [reason for _, reason in list_files(locate(tmp_path)).refused] == ["name_invalid"]
    root = UPath(f"memory://names{ord(character)}/images")
    root.mkdir(parents=True)
    (root / f"a{character}b").write_bytes(b"x")
    assert [reason for _, reason in list_files(root).refused] == ["name_invalid"]


def test_a_folder_that_nobody_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(folder: str) -> object:
        if folder.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ConfigError, match=r"closed: must be readable, got permission denied"):
        list_files(locate(tmp_path))


def test_object_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    root = UPath("memory://listing/images")
    for name in ("b.dcm", "a/1.dcm"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    assert list_files(root).files == ("a/1.dcm", "b.dcm")
    (root / "labels.csv").write_bytes(b"x")
    assert list_files(root, skip=[root / "labels.csv"]).files == ("a/1.dcm", "b.dcm")
    assert len(list_files(root, skip=[UPath("/listing/images/labels.csv")])) == 3
    (root / "archive.zip").write_bytes(b"x" * 11)
    monkeypatch.setattr("ich_ray.data.prepare.list_files._REMOTE_LIMIT_BYTES", 10)
    assert list_files(root).refused == (("archive.zip", "size_limit"),)
