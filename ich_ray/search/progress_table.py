"""What people see of a search while it runs: one line, or a table that fits their terminal.

Draws what the ledger callback counted. Counts nothing itself, reads no files and knows nothing of Ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from typing import TYPE_CHECKING

from ich_ray.terminal import aligned, one_line, printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

    from ich_ray.trial_records import Parameter, TrialResult

__all__ = ["RungCount", "SearchStatus", "format_best", "format_failure", "format_parameters", "format_states"]

# What a reader looks for first; others follow in the order of the space.
_FIRST = ("architecture", "learning_rate", "batch_size", "optimizer", "dropout")
_STATES = ("completed", "pruned", "failed")
# Most errors say in so much what is wrong; the ledger has the rest.
_DETAIL_CHARACTERS = 160
_GAP = 2  # between two columns


@dataclass(frozen=True)
class RungCount:
    """How many trials reached a rung, and how many of them it stopped."""

    images_seen: int
    reached: int
    stopped: int


@dataclass(frozen=True)
class SearchStatus:
    """Where a running search stands.

    Attributes:
        wanted: trials in all.
        budget: images of a trial that is never stopped; with folds, of each of its `networks`.
        ended: trials by final state.
        waiting: trials of a former run that have no slot yet.
        running: those that have one, by number.
        best: the best completed trial, None before one has completed.
        images: training images shown in this run, in `elapsed_s`.
        left_s: seconds until the last trial has ended, None while nothing is known.
        searched: names of the parameters that are not fixed, in the order of the space.
        leading: the trial with the best report of any that has not failed, if its value is better than that of `best`;
            None with folds, where fewer of them are no match for all.
        ended_before: trials that had ended before this run.
        gpu_hours: of all trials so far, running ones included; None where trials hold no accelerators.
        gpus: accelerators of all running trials together.
        rested_s: of `elapsed_s`, in which nothing ran and nothing was to start, as in a pause: no part of any pace.
    """

    name: str
    metric: str
    wanted: int
    budget: int
    ended: Mapping[str, int]
    waiting: int
    running: Sequence[TrialResult]
    best: TrialResult | None
    rungs: Sequence[RungCount]
    images: int
    images_per_s: float
    elapsed_s: float
    left_s: float | None
    searched: Sequence[str]
    networks: int = 1
    leading: TrialResult | None = None
    ended_before: int = 0
    gpu_hours: float | None = None
    gpus: float = 0.0
    rested_s: float = 0.0

    def line(self) -> str:
        """All of it that fits a line of a log."""
        counts = f"{self._ended()}/{self.wanted} trials ended{self._pace()}, {self._under_way()}"
        images = f"{self.images:,} images ({self.images_per_s:,.0f}/s)"
        cost = "" if self.gpu_hours is None else f", {self._cost()}"
        leading = f", so far {self._leads(self.leading)}" if self.leading else ""
        return f"  {counts}, {images}{cost}, {self._left()}; {format_best(self.best)}{leading}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The head, then as many running trials as the terminal has lines for."""
        head = [
            f"search {self.name}: {self._ended()} of {self.wanted} trials ended, {self._under_way()}",
            f"ended     {format_states(self.ended)}{self._pace()}",
            f"images    {self.images:,} ({self.images_per_s:,.0f}/s) in {_clock(self.elapsed_s)}, {self._left()}",
            *([] if self.gpu_hours is None else [f"cost      {self._cost()}"]),
            *self._best_lines(),
        ]
        # One line for the titles, one for what is left out, one for the cursor.
        room = max(1, options.size.height - len(head) - (3 if self.rungs else 0) - 4)
        yield from map(one_line, head)
        if self.rungs:
            yield self._rung_table(options.max_width)
        yield one_line("")
        yield self._running_table(room)
        if len(self.running) > room:
            yield one_line(f"and {len(self.running) - room} more")

    def _ended(self) -> int:
        return sum(self.ended.values())

    def _pace(self) -> str:
        """Trials an hour of this run, empty before one has ended in it."""
        ended, worked_s = self._ended() - self.ended_before, self.elapsed_s - self.rested_s
        if not ended or worked_s <= 0:
            return ""
        pace = 3600 * ended / worked_s
        return f" ({pace:,.0f} an hour)" if pace >= 10 else f" ({pace:.2g} an hour)"

    def _cost(self) -> str:
        spent = self.gpu_hours or 0.0
        whole = "" if self.left_s is None else f", about {_hours(spent + self.gpus * self.left_s / 3600)} in all"
        return f"{_hours(spent)} GPU hours{whole}"

    def _leads(self, trial: TrialResult) -> str:
        return f"{trial.value:.4f} (trial {trial.number}, {trial.state} at {trial.images_seen:,} images)"

    def _under_way(self) -> str:
        running = f"{len(self.running)} running"
        return f"{running}, {self.waiting} waiting for a free slot" if self.waiting else running

    def _left(self) -> str:
        return "time left unknown" if self.left_s is None else f"about {_clock(self.left_s)} left"

    def _best_lines(self) -> list[str]:
        leading = [f"so far    {self.metric} {self._leads(self.leading)}"] if self.leading else []
        if self.best is None:
            return ["best      none completed yet", *leading]
        found = f"best      {self.metric} {self.best.value:.4f}, trial {self.best.number}"
        return [found, f"          {format_parameters(self.best.parameters, self.searched)}", *leading]

    def _rung_table(self, width: int) -> Table:
        """Rungs side by side; the last ones are left out where the terminal is too narrow."""
        columns = [(f"{rung.images_seen:,}", f"{rung.reached:,}", f"{rung.stopped:,}") for rung in self.rungs]
        ends = accumulate(max(map(len, column)) + _GAP for column in columns)
        shown = columns[: sum(len("reached") + end <= width for end in ends)]
        titles, *rows = zip(("rung", "reached", "stopped"), *shown, strict=True)
        return aligned(titles, rows, left=["rung"])

    def _running_table(self, room: int) -> Table:
        rows = [self._row(trial) for trial in self.running[:room]]
        return aligned(["trial", "images", self.metric, "parameters"], rows, cut="parameters")

    def _row(self, trial: TrialResult) -> tuple[str, ...]:
        value = trial.reports[-1].metrics.get(self.metric) if trial.reports else None
        return (
            str(trial.number),
            f"{trial.images_seen:,} / {self.budget * self.networks:,}{self._fold(trial)}",
            "-" if value is None else f"{value:.4f}",
            format_parameters(trial.parameters, self.searched),
        )

    def _fold(self, trial: TrialResult) -> str:
        """Which fold it trains, empty without any."""
        if self.networks == 1:
            return ""
        return f", fold {min(trial.images_seen // self.budget + 1, self.networks)}/{self.networks}"


def format_states(ended: Mapping[str, int]) -> str:
    """How many trials ended in which state."""
    return ", ".join(f"{ended.get(state, 0)} {state}" for state in _STATES)


def format_best(best: TrialResult | None) -> str:
    """The best completed trial in a few words."""
    return f"best {best.value:.4f} (trial {best.number})" if best else "none completed yet"


def format_failure(trial: TrialResult) -> str:
    """Why a trial failed, as `error: ValueError: ...`, on one line of printable text.

    It is shortened to fit a terminal.
    """
    line = printable(" ".join(trial.detail.split()))
    if len(line) > _DETAIL_CHARACTERS:
        line = f"{line[: _DETAIL_CHARACTERS - 1]}…"
    return f"{trial.reason}: {line}" if line else trial.reason


def format_parameters(parameters: Mapping[str, Parameter], searched: Sequence[str] | None = None) -> str:
    """`ARCHITECTURE learning_rate=0.001 ...`, what is looked for first in front.

    Momentum is of SGD; a trial of a list has it beside another optimizer where other trials of that list name it.

    Args:
        parameters: of a trial.
        searched: names to keep; all if not given.
    """
    names = [name for name in (parameters if searched is None else searched) if name in parameters]
    if parameters.get("optimizer", "sgd") != "sgd":
        names = [name for name in names if name != "momentum"]
    ordered = [name for name in _FIRST if name in names] + [name for name in names if name not in _FIRST]
    return " ".join(_said(name, parameters[name]) for name in ordered)


def _said(name: str, value: Parameter) -> str:
    if name == "architecture":
        return str(value)
    return f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
