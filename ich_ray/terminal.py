r"""The one door to the terminal: whatever is printed passes `printable`.

So no text can steer who reads it. Names, parameters and messages come from files and machines of other people. A line
break in them would fake a line of ours, ESC and C1 codes move the cursor or set the clipboard, bidirectional controls
show another order than is there. Here they become visible escapes such as ``\x1b``; letters of every script stay.
Libraries quote the addresses that they were given, so passwords and tokens in them are left out. JSON is pure ASCII and
exact.

Results go to stdout, all else to stderr; the bars and boards of progress.py pass the same filter.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import traceback
import warnings
from typing import IO, TYPE_CHECKING, Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ich_ray.storage.addresses import without_credentials

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "aligned",
    "complain",
    "console",
    "guard_libraries",
    "guard_logger",
    "one_line",
    "print_aside",
    "print_json",
    "print_line",
    "print_log",
    "print_table",
    "print_traceback",
    "printable",
    "printable_lines",
]

_COLOR = re.compile(r"\x1b\[[0-9;:]*m")
# What may go on in the next piece of a log; a color of more digits than this is none.
_UNFINISHED = re.compile(r"(\x1b(\[[0-9;:]{0,32})?|\r)\Z")
# A pipe has no width, and rich's 80 columns would cut the parameters of a trial short.
_PIPE_COLUMNS = 200
# Of a complaint; the unknown key that it quotes may be as long as the file.
_LONGEST = 4000


def printable(text: object) -> str:
    """One line of text, with escapes for what cannot be shown, and addresses without credentials.

    Tabs become spaces.
    """
    line = without_credentials(str(text))
    if line.isprintable():
        return line
    return "".join(
        # `isprintable` refuses spaces other than ASCII's too, such as the ideographic one; U+2028 breaks the line.
        one if one.isprintable() or (one.isspace() and one >= "\xa0" and one not in "\u2028\u2029") else _escaped(one)
        for one in line.expandtabs()
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def print_line(text: object) -> None:
    """One line of results."""
    _write(sys.stdout, f"{printable(text)}\n")


def print_json(value: Any) -> None:
    """Print JSON for programs, every character beyond ASCII escaped.

    Nothing needs to be changed in it.
    """
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    _write(sys.stdout, json.dumps(plain, indent=1, ensure_ascii=True) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, left: Iterable[str] = ()) -> None:
    """Rows of results under their columns, numbers to the right.

    Args:
        columns: their names.
        rows: a cell for each column.
        left: columns of text.
    """
    table = aligned(columns, rows, left=left)
    console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS).print(table)


def aligned(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, left: Iterable[str] = (), cut: str | None = None
) -> Table:
    """Rows under their columns, to be drawn by a console or a board; see `print_table`.

    Args:
        columns: their names.
        rows: a cell for each column.
        left: columns of text.
        cut: the column of text that ends in … where there is no room for it; then no other takes two lines.
    """
    table = Table(box=None, pad_edge=False)
    for name in columns:
        if name == cut:
            table.add_column(one_line(name))
        else:
            table.add_column(printable(name), justify="left" if name in left else "right", no_wrap=cut is not None)
    for row in rows:
        cells = zip(columns, row, strict=True)
        table.add_row(*(one_line(cell) if name == cut else printable(cell) for name, cell in cells))
    return table


def one_line(text: object) -> Text:
    """What a console or a board draws on one line, with … where it is too long."""
    return Text(printable(text), no_wrap=True, overflow="ellipsis")


def print_log(pieces: Iterable[str]) -> None:
    """Print a job's log as it comes: lines stay lines, colors are dropped, all else is shown."""
    held = ""
    for piece in pieces:
        text = held + piece
        unfinished = _UNFINISHED.search(text)
        at = unfinished.start() if unfinished else len(text)
        held = text[at:]
        _write(sys.stdout, _log(text[:at]))
        sys.stdout.flush()
    _write(sys.stdout, _log(held))


def _log(text: str) -> str:
    return "\n".join(printable_lines(text))


def printable_lines(text: str) -> list[str]:
    """Text of several lines, each as `printable` shows it, without colors."""
    return list(map(printable, _COLOR.sub("", text).replace("\r\n", "\n").replace("\r", "\n").split("\n")))


def complain(message: object) -> None:
    """One line on stderr that says what is wrong."""
    line = printable(str(message)[: _LONGEST + 1])
    _write(sys.stderr, f"ich-ray: {line if len(line) <= _LONGEST else f'{line[:_LONGEST]}…'}\n")
    sys.stderr.flush()


def print_aside(text: object) -> None:
    """One line on stderr as it is: part of a page, such as the help."""
    _write(sys.stderr, f"{printable(text)}\n")


def console(*, stderr: bool = False, width: int | None = None, soft_wrap: bool = False, quiet: bool = False) -> Console:
    """A rich console that prints text as it is: no markup, and ``:100:`` in a path is no picture."""
    return Console(
        stderr=stderr,
        width=width,
        soft_wrap=soft_wrap,
        quiet=quiet,
        markup=False,
        emoji=False,
        highlight=not stderr,
    )


def guard_libraries() -> None:
    """Filter warnings, log lines and tracebacks of threads: libraries quote in them what they were given."""
    warnings.showwarning = _show_warning
    logging.lastResort = _LastResort(logging.WARNING)
    threading.excepthook = _show_thread_traceback


class _LastResort(logging.Handler):
    """Python's own handler of records that no other one takes, with the filter."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(record.getMessage())


def guard_logger(name: str) -> None:
    """Filter the records of a library that has handlers of its own, such as Ray."""
    for handler in logging.getLogger(name).handlers:
        if not isinstance(handler.formatter, _Lines):
            handler.setFormatter(_Lines(handler.formatter._fmt if handler.formatter else None))


class _Lines(logging.Formatter):
    """A record line by line; a traceback has several."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    file: IO[str] | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    complain(f"{category.__name__}: {message}")


def print_traceback(error: BaseException) -> None:
    """Where an error came from, on stderr."""
    for entry in traceback.format_exception(error):
        for line in entry.rstrip("\n").split("\n"):
            print_aside(line)


def _show_thread_traceback(raised: threading.ExceptHookArgs) -> None:
    if raised.exc_value is not None:
        print_traceback(raised.exc_value)


def _write(stream: IO[str], text: str) -> None:
    """Write; letters that the terminal's encoding lacks become escapes too."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
