"""A reader of a page, who writes its files, runs its blocks in order, and stops where one does not end as it says."""

from __future__ import annotations

import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tests.docs.blocks import REPOSITORY, Block

LIMIT_S = 1800  # of a block, on a machine that has other work, too
_FAREWELL_S = 30
# What a clone has beside the folders that a reader makes.
_OF_A_CLONE = ("search_spaces", "clusters", "cluster.yaml")
_EXIT_CODE = re.compile(r"^(.*?)\s*# exit code (\d+)\s*$")
# A block goes on where the one before it stood: in its folder, with its variables.
_SHELL = r"""
set -aeo pipefail
. "$1"
_state=$1 _block=$2
trap 'echo "line $LINENO: exit code $?: $BASH_COMMAND" >&2' ERR
trap '{ export -p; printf "cd %q\n" "$PWD"; } >"$_state.new" && mv "$_state.new" "$_state"' EXIT
. "$_block"
: >"$_block.done"
"""
_NOT_DONE = 98  # as after an `exit 0` in the middle


class BlockFailed(Exception):
    """A block of a page did not end as the page says."""


def clone(folder: Path) -> None:
    """A new folder that has what a clone has, and its virtual environment."""
    folder.mkdir(parents=True)
    for name in _OF_A_CLONE:
        source = REPOSITORY / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)


class Reader:
    """Follows pages in `folder`, with a home of its own; whatever its blocks have started ends with it."""

    def __init__(self, folder: Path, home: Path) -> None:
        self._folder, self._home = folder, home
        self._blocks = home / "blocks"
        self._blocks.mkdir(parents=True, exist_ok=True)
        self._state = self._blocks / "state"
        self._state.write_text(f"cd {shlex.quote(str(folder))}\n")
        # What still runs writes to the end, wherever this reader reads.
        self._log = (self._blocks / "output").open("a+", encoding="utf-8", errors="replace")
        self._started: list[subprocess.Popen[str]] = []
        self._python: subprocess.Popen[str] | None = None
        self._printed = ""

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._python is not None:
            with suppress(subprocess.TimeoutExpired, BrokenPipeError):
                self._python.communicate(timeout=_FAREWELL_S)  # what it has started, such as Ray, ends with it
        for process in self._started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._log.close()

    def follow(self, page: Iterable[Block]) -> None:
        """Write the files and run the blocks of a page, and compare what they print with what it says.

        Raises:
            BlockFailed: page and line of the block, how it ended, and what it printed.
        """
        for block in page:
            if block.is_output:
                if (line := first_missing(block.text, self._printed)) is not None:
                    raise BlockFailed(f"{block.where}: {line!r} is not printed before, but:\n{self._printed}")
            elif block.title:
                path = self._folder / block.title
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, "utf-8")
            elif block.is_run:
                self._printed = self.run(block)

    def run(self, block: Block) -> str:
        """Run a block, and return what it printed."""
        file = self._blocks / Path(block.page).name
        text = checked(block.text) if block.language == "bash" else block.text
        file.write_text("\n" * (block.line - 1) + text, "utf-8")  # messages then name lines of the page
        begin = self._log.seek(0, os.SEEK_END)
        code = self._bash(file) if block.language == "bash" else self._in_python(file)
        self._log.seek(begin)
        printed = self._log.read()
        if code != 0:
            how = {None: f"was not done after {LIMIT_S} s", _NOT_DONE: "left before its end"}
            ended = f"a block of {block.language} {how.get(code, f'ended with {code}')}"
            raise BlockFailed(f"{block.where}: {ended}\n{block.text}\nIt printed:\n{printed}")
        return printed

    def _bash(self, file: Path) -> int | None:
        done = Path(f"{file}.done")
        done.unlink(missing_ok=True)
        code = exit_code_of(self._start("/bin/bash", "-c", _SHELL, "bash", str(self._state), str(file)))
        return code if code or done.exists() or code is None else _NOT_DONE

    def _in_python(self, file: Path) -> int | None:
        if self._python is None:
            self._python = self._start(sys.executable, str(Path(__file__).with_name("session.py")), talks=True)
        assert self._python.stdin is not None
        assert self._python.stdout is not None
        self._python.stdin.write(f"{file}\n")
        self._python.stdin.flush()
        if not select.select([self._python.stdout], [], [], LIMIT_S)[0]:
            return None
        return int(self._python.stdout.readline() or 1)

    def _start(self, *command: str, talks: bool = False) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            cwd=self._folder,
            env=self._environment(),
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
            stdout=subprocess.PIPE if talks else self._log,
            stderr=self._log,
            start_new_session=True,
            text=True,
        )
        self._started.append(process)
        return process

    def _environment(self) -> dict[str, str]:
        """That of this process without what concerns Ray and this package, as of someone who has just installed it."""
        given = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "ICH_RAY_", "PYTEST_"))}
        return given | {
            "PATH": f"{sys.prefix}/bin:{given.get('PATH', '/usr/bin:/bin')}",
            "HOME": str(self._home),
            "ICH_RAY_KEY_FILE": str(self._home / "key"),
            "ICH_RAY_CACHE": str(self._home / "cache"),
            "ICH_RAY_METADATA_SERVICE": "off",
        }


def exit_code_of(process: subprocess.Popen[str]) -> int | None:
    """The exit code of a process; None if it takes too long.

    Nobody collects it before the reader leaves: whoever got its number by then would be ended in its place.
    """
    watched = os.pidfd_open(process.pid)
    try:
        if not select.select([watched], [], [], LIMIT_S)[0]:
            return None
    finally:
        os.close(watched)
    found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert found is not None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def checked(text: str) -> str:
    """Bash that ends at the first command whose exit code is not 0, or not what the comment behind it says."""
    lines = text.split("\n")
    for index, line in enumerate(lines):
        if found := _EXIT_CODE.match(line):
            command, code = found.groups()
            lines[index] = (
                f"{command} && _code=0 || _code=$?; "
                f'[ $_code = {code} ] || {{ echo "line $LINENO: exit code $_code, and not {code}" >&2; exit 97; }}'
            )
    return "\n".join(lines)


def first_missing(shown: str, printed: str) -> str | None:
    """The first line of an output on a page that is not among those printed, in order; None if all are.

    Numbers and the width of spaces may differ. "..." stands for a part of a line, and alone for any lines.
    """
    lines = iter([_alike(line) for line in printed.splitlines()])
    for line in shown.splitlines():
        parts = [_alike(part) for part in line.split("...")]
        wanted = re.compile(".*".join(map(re.escape, parts)))
        if any(parts) and not any(wanted.fullmatch(said) for said in lines):
            return line
    return None


def _alike(line: str) -> str:
    return " ".join(re.sub(r"\d[\d.,]*", "#", line).split())
