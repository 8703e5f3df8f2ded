from __future__ import annotations

import os
from pathlib import Path

import pytest

from ich_ray.search import trial_output
from ich_ray.search.trial_output import Output, kept_output, read_output, write_output
from ich_ray.storage import SearchFiles, locate, write_json
from tests.hostile_text import HOSTILE, PLANTED, steers


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The stdout and the stderr of a process that has run before."""
    out, err = tmp_path / "worker.out", tmp_path / "worker.err"
    out.write_text(":job_id:01000000\nof a trial before\n")
    err.write_text(":job_id:01000000\n:actor_name:ImplicitFunc\nof a trial before\n")
    return out, err


def add(file: Path, text: str) -> None:
    with file.open("a", newline="") as written:
        written.write(text)


def test_what_a_process_has_written_before_is_of_another_trial(files: tuple[Path, Path]) -> None:
    output = Output.from_now("host, process 7", [*map(str, files)])
    assert (output.lines(), output.sizes() == output.begin) == ([], True)
    add(files[0], "to stdout\n")
    add(files[1], ":actor_name:x\nfirst\n\nlast")
    assert output.lines() == ["to stdout", "first", "last"]
    assert output.sizes() != output.begin
    assert kept_output([output]) == "# host, process 7, its last lines\nto stdout\nfirst\nlast\n"
    files[1].write_text("begun anew\n")
    assert output.lines() == ["to stdout", "begun anew"]
    files[0].unlink()
    assert output.lines() == ["begun anew"]
    assert kept_output([Output.from_now("host, process 7", [])]) == ""


@pytest.mark.parametrize(
    ("out", "err", "first", "kept"),
    [
        (100, 0, "out 60", (40, 0)),
        (0, 100, "err 60", (0, 40)),
        (100, 100, "out 85", (15, 25)),
        (3, 100, "out 0", (3, 37)),
        (100, 3, "out 63", (37, 3)),
    ],
)
def test_the_last_lines_of_both_are_kept(
    files: tuple[Path, Path], out: int, err: int, first: str, kept: tuple[int, int]
) -> None:
    output = Output.from_now("x", [*map(str, files)])
    add(files[0], "".join(f"out {at}\n" for at in range(out)))
    add(files[1], "".join(f"err {at}\n" for at in range(err)))
    lines = output.lines()
    assert lines[0] == first
    assert (sum(line.startswith("out") for line in lines), sum(line.startswith("err") for line in lines)) == kept


def test_lines_are_bounded_and_steer_nobody(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    output = Output.from_now("x", [*map(str, files)])
    add(files[1], "\x1b[31mred\x1b[0m\r\n  1 %|bar\r 50 %|bar\r100 %|bar\ns3://me:hunter2@host/x /home/somebody/x\n")
    add(files[1], HOSTILE.replace("\n", " ").replace("\r", " ") + "\n" + 1000 * "y")
    *first, hostile, long = output.lines()
    assert first == ["red", "100 %|bar", "s3://host/x ~/x"]
    assert not steers(hostile)
    assert long == 400 * "y" + "…"
    add(files[1], "\n" + 40_000 * "z" + "\nlast\n")
    assert output.lines() == ["last"], "a line without its begin is none"


def test_where_an_error_came_from_is_kept_with_what_a_worker_said_of_it() -> None:
    def fail() -> None:
        raise ValueError("planted\x1b[2J")

    with pytest.raises(ValueError, match="planted") as raised:
        fail()
    raised.value.add_note("# host, process 8, its last lines\nsegments")
    lines = kept_output([Output.from_now("host, process 7", [])], raised.value).splitlines()
    assert lines[0] == "# host, process 7, where the error came from"
    assert lines[-3:] == ["ValueError: planted\\x1b[2J", "# host, process 8, its last lines", "segments"]
    assert any(line.endswith("in fail") for line in lines)


def test_it_is_kept_in_the_folder_of_a_search_that_is_there(tmp_path: Path) -> None:
    files = SearchFiles(locate(tmp_path / "s"))
    write_output(str(tmp_path / "s"), 3, "one\ntwo\n")
    assert not (tmp_path / "s").exists(), "nothing is written where a shared folder should be"
    write_json(files.search, {})
    write_output(str(tmp_path / "s"), 3, "one\ntwo\n")
    write_output(str(tmp_path / "s"), 3, "three\n", lost=True)
    (when, *lines) = read_output(files.log(3))
    assert (when[:2], when[-4:], lines) == ("# ", " UTC", ["one", "two"])
    assert read_output(files.lost_log(3))[1:] == ["three"]
    assert sorted(path.name for path in (tmp_path / "s/logs").iterdir()) == ["00003-lost.txt", "00003.txt"]
    assert read_output(files.log(4)) == []


def test_a_file_that_cannot_be_written_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(SearchFiles(locate(tmp_path / "s")).search, {})

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(trial_output, "writing", full)
    write_output(str(tmp_path / "s"), 3, "one\n")
    assert not (tmp_path / "s/logs").exists()


def test_a_file_of_somebody_else_is_bounded_and_filtered_data(tmp_path: Path) -> None:
    log = SearchFiles(locate(tmp_path)).log(1)
    log.parent.mkdir()
    log.write_bytes(HOSTILE.encode() + b"\xff\xfe\n" + b"x" * 1000 + b"\n" + b"y\n" * 1000)
    lines = read_output(log)
    assert (len(lines), lines[-1]) == (200, "y")
    log.write_text(HOSTILE)
    assert not any(map(steers, read_output(log)))
    assert "".join(read_output(log)).replace("\\r", "") == PLANTED.replace("\\r", "").replace("\\n", "")
    log.write_bytes(b"z" * (1 << 20))
    assert read_output(log) == [400 * "z" + "…"]


@pytest.mark.parametrize("kind", ["link", "linked folder", "pipe", "folder"])
def test_only_a_file_is_read(kind: str, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    log = Path(str(SearchFiles(locate(tmp_path / "s")).log(1)))
    log.parent.mkdir(parents=True)
    if kind == "link":
        log.symlink_to(tmp_path / "secret.txt")
    elif kind == "linked folder":
        log.parent.rmdir()
        (tmp_path / "else").mkdir()
        (tmp_path / "else/00001.txt").write_text("secret")
        log.parent.symlink_to(tmp_path / "else")
    elif kind == "pipe":
        os.mkfifo(log)
    else:
        log.mkdir()
    (said,) = read_output(locate(log))
    assert said in {"(a link: not read)", "(cannot be read: IntegrityError)"}
