"""Contestants side by side: who is there, rounds in turns, one table. Measures nothing by itself and prints nothing.

Each round gives every contestant its turn, in an order that shifts by one, and a ratio is taken within a round: what
else the machine does falls on all of them. Told are the median of the rounds and their range. Each contestant has a
process of its own: the usual decoding code is twice as fast where another library has made malloc keep its pages.
"""

from __future__ import annotations

import os
import platform
import statistics
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from importlib.util import find_spec
from multiprocessing import get_context
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

T = TypeVar("T")


class Peer(NamedTuple):
    """A contestant that needs a package of its own: what it imports, and what pip calls it."""

    name: str
    module: str
    package: str

    @property
    def there(self) -> bool:
        return find_spec(self.module) is not None


def absent(peers: Iterable[Peer]) -> list[str]:
    """A line for each peer that cannot take part."""
    return [f"{peer.name}: not installed: pip install {peer.package}" for peer in peers if not peer.there]


def in_turns(contestants: dict[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each call gave in each round, in a process that stays its own, after a round that is not counted."""
    names = list(contestants)
    found: dict[str, list[T]] = {name: [] for name in names}
    with ExitStack() as stack:
        spawn = get_context("spawn")
        own = {name: stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for name in names}
        for number in range(rounds + 1):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                value = own[name].submit(contestants[name]).result()
                if number:
                    found[name].append(value)
    return found


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median and range, such as `16.2 (15.0 to 17.9)`; of one value no range."""
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def ratios(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(one, other, strict=True)]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """As Markdown, aligned."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    told = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([told[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *told[1:]])


def machine() -> str:
    """What the figures depend on; the load says what else was running."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    return f"{cores} CPU cores, {platform.machine()}, Python {platform.python_version()}, load {load:.1f} at the end"
