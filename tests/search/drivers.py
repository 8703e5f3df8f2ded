"""Drivers of searches in processes of their own, which may be killed.

Each is forked from a server that has imported everything, so that a start costs a second instead of many, and runs the
command line itself with a trainer that costs nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil

from ich_ray.results import SearchResult, open_search
from tests.search.fakes import FakeTrainer

_PRELOADED = ["ray.tune", "optuna", "ich_ray.cli", "ich_ray.search.run", "ich_ray.search.preflight",
              "ich_ray.search.sampler", "ich_ray.search.bookkeeper", "tests.search.drivers"]  # fmt: skip


@dataclass
class Driver:
    """A running `ich-ray search`.

    Attributes:
        said: the file that its output and messages go to.
    """

    process: ForkServerProcess
    out: Path
    said: Path

    def kill(self, with_signal: signal.Signals = signal.SIGKILL) -> None:
        assert self.process.pid
        os.kill(self.process.pid, with_signal)
        self.process.join(60)

    def wait(self, seconds: float) -> int | None:
        """Its exit code, None if it still runs after `seconds`."""
        self.process.join(seconds)
        return self.process.exitcode

    def until(self, holds: Callable[[SearchResult], bool], seconds: float = 120) -> SearchResult:
        """The search as it was when `holds` became true, or when the driver ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ended = self.process.exitcode is not None
            if (self.out / "search.json").exists() and (holds(found := open_search(self.out)) or ended):
                return found
            assert not ended, self.said.read_text()
            time.sleep(0.01)
        raise AssertionError(f"after {seconds} s: {self.said.read_text()}")


def reported(found: SearchResult) -> int:
    return sum(len(trial.reports) for trial in found.trials)


def family(driver: Driver) -> list[psutil.Process]:
    """The processes of a driver: itself, Ray's and the trials'."""
    try:
        parent = psutil.Process(driver.process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def start(arguments: list[str], out: Path, trainer: FakeTrainer | None = None) -> Driver:
    """`ich-ray search ARGUMENTS --out OUT`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    said = out.parent.parent / f"said-{time.time_ns()}.txt"  # not where a test fills the disk
    called = ["search", *arguments, "--out", str(out)]
    process = context.Process(target=_drive, args=(called, said, trainer or FakeTrainer()))
    process.start()
    return Driver(process, out, said)


def _drive(arguments: list[str], said: Path, trainer: FakeTrainer) -> None:
    from ich_ray import cli, progress
    from ich_ray.search import trial

    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    trial.train_model = trainer  # type: ignore[assignment]
    progress.show()
    sys.exit(cli.call(arguments))
