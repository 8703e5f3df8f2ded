"""The last lines that the processes of a trial write, kept in a file of its search, and read again.

Bounded, and filtered like whatever people are shown, when they are written and when they are read. Knows no Ray:
tune/trial_log.py knows where a process writes, and when to keep it.
"""

from __future__ import annotations

import os
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ich_ray.storage import SearchFiles, check_regular, exists, is_local, locate, read_bytes, writing
from ich_ray.terminal import printable_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upath import UPath

__all__ = ["Output", "kept_output", "read_output", "write_output"]

# Of what a process writes on stdout and stderr together, where it writes on both so many on stdout; and of a traceback.
_MOST_LINES, _MOST_OF_STDOUT, _MOST_OF_TRACEBACK = 40, 15, 80
# Of a line as it is shown; and as it is filtered, so that no password is cut from the sign that it ends with.
_LONGEST_LINE, _LONGEST_FILTERED = 400, 4000
# Of a file of a process, from its end; of a file of ours, which somebody else may have written.
_TAIL_BYTES, _READ_BYTES = 32 << 10, 128 << 10
_READ_LINES = 200
# What Ray writes there for itself.
_OF_RAY = (":job_id:", ":actor_name:", ":task_name:")
_REMEDY = "remove the file"


@dataclass(frozen=True)
class Output:
    """What a process writes from a moment on.

    Attributes:
        process: its machine and number, for people.
        files: where its stdout and its stderr go on this machine; none where that is no file.
        begin: their sizes at that moment.
    """

    process: str
    files: tuple[str, ...]
    begin: tuple[int, ...]

    @classmethod
    def from_now(cls, process: str, files: Sequence[str]) -> Output:
        return cls(process, tuple(files), tuple(map(_size, files)))

    def sizes(self) -> tuple[int, ...]:
        return tuple(map(_size, self.files))

    def lines(self) -> list[str]:
        """The last ones."""
        tails = [_tail(Path(file), at) for file, at in zip(self.files, self.begin, strict=True)]
        err = tails.pop() if tails else []
        out = tails.pop() if tails else []
        kept = out[-max(_MOST_OF_STDOUT, _MOST_LINES - len(err)) :]
        return [*kept, *err[len(kept) - _MOST_LINES :]]


def _size(file: str) -> int:
    with suppress(OSError):
        return os.stat(file).st_size  # noqa: PTH116  (twice a look)
    return 0


def _tail(file: Path, begin: int) -> list[str]:
    try:
        size = file.stat().st_size
        begin = begin if begin <= size else 0  # Ray has begun the file anew
        with file.open("rb") as read:
            read.seek(max(begin, size - _TAIL_BYTES))
            data = read.read(_TAIL_BYTES)
    except OSError:
        return []
    first_is_whole = size - begin <= _TAIL_BYTES
    lines = data.decode("utf-8", "replace").split("\n")[0 if first_is_whole else 1 :]
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in lines if not line.startswith(_OF_RAY)]  # of bars the end
    return _filtered("\n".join(shown))


def _filtered(text: str) -> list[str]:
    """Lines as people are shown them, the folder of the user as ~, without empty ones at the end."""
    home = os.path.expanduser("~")  # noqa: PTH111  (there may be no home)
    lines = printable_lines("\n".join(line[:_LONGEST_FILTERED] for line in text.split("\n")))
    shown = [line.replace(home, "~") if len(home) > 1 else line for line in lines if line.strip()]
    return [line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}…" for line in shown]


def kept_output(outputs: Sequence[Output], error: BaseException | None = None) -> str:
    """What is kept of processes, and where an error of the first of them came from.

    Empty if they have written nothing, and there is no error.
    """
    parts = [(f"# {one.process}, its last lines", lines) for one in outputs if (lines := one.lines())]
    if error is not None:
        traced = _filtered("".join(traceback.format_exception(error)))
        parts.append((f"# {outputs[0].process}, where the error came from", traced[-_MOST_OF_TRACEBACK:]))
    return "".join(f"{line}\n" for title, lines in parts for line in (title, *lines))


def write_output(search: str, number: int, text: str, *, lost: bool = False) -> None:
    """Put kept output of a trial, or of an attempt at it that was lost, into the folder of its search.

    It is nothing that a trial may fail for: where it cannot be written it is not, and no folder is made where that of
    the search should be.
    """
    with suppress(Exception):  # storages have errors of their own
        files = SearchFiles(locate(search))
        if exists(files.search):
            said = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
            with writing(files.lost_log(number) if lost else files.log(number)) as file:  # not counted as a state is
                file.write(f"# {said}\n{text}".encode())


def read_output(path: UPath) -> list[str]:
    """The lines of such a file, as people may see them, or why it cannot be read.

    None where there is no file.
    """
    try:
        if is_local(path) and (path.is_symlink() or path.parent.is_symlink()):
            return ["(a link: not read)"]
        check_regular(path, _REMEDY)
        data = read_bytes(path, _READ_BYTES)
    except FileNotFoundError:
        return []
    except Exception as error:  # noqa: BLE001  (each storage has errors of its own)
        return printable_lines(f"(cannot be read: {type(error).__name__})")
    return _filtered(data.decode("utf-8", "replace"))[-_READ_LINES:]
