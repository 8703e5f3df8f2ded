"""What people see while they wait: lines and bars on stderr, never on stdout.

Silent until the command line calls `show`, so that a library caller or a Ray worker prints nothing. Where stderr is
not a terminal a bar becomes one line every few seconds, and a board is not there at all.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ich_ray.terminal import console, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType

__all__ = ["Advance", "bar", "board", "say", "show"]

_LINE_EVERY_S = 5.0

_console = console(stderr=True, soft_wrap=True, quiet=True)


class Advance(Protocol):
    """Tells a bar the absolute count done, with a note such as how many were rejected."""

    def __call__(self, done: int, note: str = "") -> None: ...


def show(visible: bool = True) -> None:
    """Turn progress on or off for this process."""
    _console.quiet = not visible


def say(line: str) -> None:
    """One line for people."""
    _console.print(printable(line))


@contextmanager
def bar(what: str, total: int, unit: str) -> Iterator[Advance]:
    """A progress bar; the block is given an `Advance`."""
    started = last_line = time.monotonic()
    if _console.is_terminal and not _console.quiet:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, TimeRemainingColumn(), console=_console, transient=True) as bars:
            task = bars.add_task(printable(what), total=total, note="")
            yield lambda done, note="": bars.update(task, completed=done, note=_rate(done, started, unit, note))
        return

    def lines(done: int, note: str = "") -> None:
        nonlocal last_line
        if time.monotonic() - last_line >= _LINE_EVERY_S:
            last_line = time.monotonic()
            say(f"  {what}: {done}/{total}, {_rate(done, started, unit, note)}")

    yield lines


@contextmanager
def board() -> Iterator[Callable[[RenderableType], None] | None]:
    """Lines at the foot of the terminal that are drawn over and over, below what is said meanwhile.

    The block is given a function that draws them, or None where stderr is not a terminal. They are gone after it.
    """
    if _console.quiet or not _console.is_interactive:
        yield None
        return
    with Live(console=_console, auto_refresh=False, transient=True, redirect_stdout=False) as live:
        yield lambda lines: live.update(lines, refresh=True)


def _rate(done: int, started: float, unit: str, note: str) -> str:
    rate = f"{done / max(time.monotonic() - started, 1e-9):,.0f} {unit}/s"
    return f"{rate}, {printable(note)}" if note else rate
