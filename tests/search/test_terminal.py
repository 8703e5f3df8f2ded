"""The real command on a pseudo-terminal of 80 columns and 24 lines, and without one."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.prepared import make_dataset

pytestmark = pytest.mark.slow

SPACE = """
name: terminal
budget: {images: 1600, report_every: 400, first_rung: 400, reduction: 2, min_peers: 2}
parameters:
  blocks: {fixed: 1}
  filters: {choice: [2, 4]}
  learning_rate: {loguniform: [1.0e-4, 1.0e-2]}
"""
COMMAND = [sys.executable, "-c", "from ich_ray.cli import main; main()", "search", "data", "--space", "space.yaml"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_dataset(tmp_path / "data", patients=200)
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent), "TERM": "xterm-256color"}


def on_a_terminal(arguments: list[str], folder: Path) -> tuple[str, str]:
    """What the command wrote to stdout, a pipe, and to stderr, a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=theirs, text=True
    ) as command:
        os.close(theirs)
        shown = b""
        while True:
            try:
                read = os.read(ours, 65536)
            except OSError:  # Linux says so when the other side is closed
                break
            shown += read
        assert command.stdout is not None
        printed = command.stdout.read()
    os.close(ours)
    assert command.returncode == 0, shown.decode()
    return printed, shown.decode()


def test_a_search_draws_its_table_on_a_terminal(folder: Path) -> None:
    printed, shown = on_a_terminal(["--out", "s", "--trials", "6"], folder)
    assert "search terminal" not in printed
    assert printed.startswith("terminal: 6 of 6 trials:")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "\n")
    lines = [line for line in plain.splitlines() if line]
    for expected in (
        r"search terminal: \d of 6 trials ended, \d running",
        r"ended     \d completed, \d pruned, \d failed( \([\d,.]+ an hour\))?",
        r"images    [\d,]+ \([\d,]+/s\) in 0:00:\d\d, (about 0:0\d:\d\d left|time left unknown)",
        r"best      average_precision [01]\.\d{4}, trial \d",
        r"rung +400  800 *",
        r"reached +\d +\d",
        r"trial +images  average_precision  parameters *",
        r" +\d +[\d,]+ / 1,600 +([01]\.\d{4}|-)  learning_rate=\S+ filters=\d *",
    ):
        assert any(re.fullmatch(expected, line) for line in lines), f"{expected}\n{plain}"
    heads = [line for line in lines if "of 6 trials ended" in line]
    assert len(heads) > 3, "the table is drawn again and again"
    assert max(len(line) for line in lines if not line.startswith(("trial", "search", "best of all"))) <= 80
    # It is drawn over itself: every frame first goes up to where the last one began, and the cursor comes back.
    assert shown.count("\x1b[1A") >= 8 * (len(heads) - 1)
    assert "\x1b[?25h" in shown[shown.rindex("\x1b[?25l") :]


def test_a_search_says_lines_where_there_is_no_terminal(folder: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--out", "s", "--trials", "2"],
        cwd=folder, env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "\x1b" not in done.stderr
    assert "reached" not in done.stderr
    assert re.search(
        r"^trial 0 completed.*: average_precision [01]\.\d{4} after 1,600 images; best ", done.stderr, re.M
    )
    assert "search terminal: 2 trials ended (2 completed, 0 pruned, 0 failed), 3,200 images" in done.stderr
