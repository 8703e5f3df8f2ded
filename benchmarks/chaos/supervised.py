"""A driver that is started again, with `--resume` and without a person, whenever it has ended before its search."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.chaos.training import ChainTrainer

PRELOADED = [
    *("ray.tune", "optuna", "ich_ray.cli", "ich_ray.search.run", "ich_ray.search.preflight"),
    *("ich_ray.search.tune.sampler", "ich_ray.search.tune.ledger_callback", "benchmarks.chaos.supervised"),
]
# Times of the product, so that minutes of a real cluster are seconds here.
SHORT = {"RELEASED_AFTER_S": 10.0, "DECLINED_S": 1.0, "SILENT_S": 40.0}
AGAIN_AFTER_S = 2.0
# So often in a row without a report in between, a person would have to look.
MOST_ENDS = 8


class Supervised:
    """A running `ich-ray search ARGUMENTS --out OUT`.

    Attributes:
        said: the file that its output and messages go to, those of all its starts.
        ends: exit codes and last lines of those starts that nobody has killed.
        pids: of its starts.
    """

    def __init__(self, arguments: list[str], out: Path, said: Path, trainer: ChainTrainer) -> None:
        self.out, self.said, self._trainer = out, said, trainer
        self._arguments = ["search", *arguments, "--out", str(out)]
        self.ends: list[tuple[int, str]] = []
        self.pids: list[int] = []
        self.over = False
        self._due = 0.0
        self._killed = False
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        again = ["--resume"] if (self.out / "search.json").exists() else []
        self.process = context.Process(target=_drive, args=([*self._arguments, *again], self.said, self._trainer))
        self.process.start()
        self._due, self._killed = 0.0, False
        self.pids.append(int(self.process.pid or 0))

    def kill(self) -> None:
        os.kill(self.pids[-1], signal.SIGKILL)
        self._killed = True

    @property
    def is_up(self) -> bool:
        return self.process.exitcode is None

    def look(self) -> None:
        """Start it again where it has ended; `over` where that was the end of its search."""
        code = self.process.exitcode
        if code is None or self.over:
            return
        if self._due:
            if time.monotonic() >= self._due:
                self._start()
            return
        if code == 0:
            self.over = True
            return
        if not self._killed:
            self.ends.append((code, (self.said.read_text().strip().splitlines() or [""])[-1]))
            print(f"the driver ended with {code}: {self.ends[-1][1]}", flush=True)
            if len(self.ends) > MOST_ENDS:
                raise RuntimeError(f"a person must look: {self.said}")
        self._due = time.monotonic() + AGAIN_AFTER_S


def _drive(arguments: list[str], said: Path, trainer: Any) -> None:
    from ich_ray import cli, progress
    from ich_ray.search.tune import driver, trial

    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    faulthandler.enable(file)
    for name, value in SHORT.items():
        assert isinstance(getattr(driver, name), float)
        setattr(driver, name, value)
    trial.train_model = trainer
    driver.train_model = trainer  # type: ignore[attr-defined]
    progress.show()
    sys.exit(cli.call(arguments))
