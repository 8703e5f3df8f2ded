"""Drivers of searches in processes of their own, which may be killed.

Each is forked from a server that has imported everything, so that a start costs a second instead of many, and runs the
command line itself with a trainer that costs nothing.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from ich_ray.results import SearchResult, open_search
from tests.search.fakes import FakeTrainer

_PRELOADED = ["ray.tune", "optuna", "ich_ray.cli", "ich_ray.search.run", "ich_ray.search.preflight",
              "ich_ray.search.tune.sampler", "ich_ray.search.tune.ledger_callback", "tests.search.drivers"]  # fmt: skip

# Ray gives its own processes 30 s, which a machine with 30 others at work may not do.
_NO_RAY = "The current node timed out during startup"
_STUCK_S = 200


class Driver:
    """A running `ich-ray search ARGUMENTS --out OUT`.

    Attributes:
        said: the file that its output and messages go to.
    """

    def __init__(self, arguments: list[str], out: Path, trainer: FakeTrainer) -> None:
        self.out = out
        self.said = out.parent.parent / f"said-{time.time_ns()}.txt"  # not where a test fills the disk
        self._arguments, self._trainer = ["search", *arguments, "--out", str(out)], trainer
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        self.said.write_text("")
        self.process = context.Process(target=_drive, args=(self._arguments, self.said, self._trainer))
        self.process.start()

    def _ended(self) -> bool:
        """Whether it has ended; on a machine with too much to do for Ray to start, it is started again."""
        if self.process.exitcode == 1 and _NO_RAY in self.said.read_text():
            self._start()
        return self.process.exitcode is not None

    def kill(self) -> None:
        assert self.process.pid
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(60)

    def wait(self, seconds: float) -> int | None:
        """Its exit code, None if it still runs after `seconds`."""
        deadline = time.monotonic() + seconds
        while not self._ended() and time.monotonic() < deadline:
            self.process.join(0.1)
        return self.process.exitcode

    def until(self, holds: Callable[[SearchResult], bool], seconds: float = 240) -> SearchResult:
        """The search as it was when `holds` became true."""
        deadline = time.monotonic() + seconds
        while not self._ended() and time.monotonic() < deadline:
            if (self.out / "search.json").exists() and holds(found := open_search(self.out)):
                return found
            time.sleep(0.01)
        raise AssertionError(f"ended with {self.process.exitcode} or not there in {seconds} s: {self.said.read_text()}")


def reported(found: SearchResult) -> int:
    return sum(len(trial.reports) for trial in found.trials)


def family(driver: Driver) -> list[psutil.Process]:
    """The processes of a driver: itself, Ray's and the trials'."""
    try:
        parent = psutil.Process(driver.process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _drive(arguments: list[str], said: Path, trainer: FakeTrainer) -> None:
    from ich_ray import cli, progress
    from ich_ray.search.tune import trial

    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    faulthandler.dump_traceback_later(_STUCK_S, file=file)  # what it waits for, where a test waits for it in vain
    trial.train_model = trainer  # type: ignore[assignment]
    progress.show()
    sys.exit(cli.call(arguments))
