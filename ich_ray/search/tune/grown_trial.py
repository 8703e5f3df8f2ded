"""A trial that goes on with more processes when slots are lent to it, and then with fewer again.

In the trial's own process, which stays the only one that Tune knows: nothing is paused or queued for a change. After a
report it looks for the keepers of its slots (`lent_slots`) and goes on from the state of that moment with processes on
all that they hold. Where these fail, the trial goes on as it was. Decides nothing: growing.py does, in the driver.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ich_ray.errors import TrialFailure
from ich_ray.progress import say
from ich_ray.search.tune.lent_slots import NOTHING_LENT, Lent, LentSlots
from ich_ray.search.tune.lost_attempts import borrow
from ich_ray.search.tune.multi_worker_trial import MultiWorkerTrainer, WorkerGroup, own_devices
from ich_ray.search.tune.train_workers import FaultOfWorker, WorkersLost
from ich_ray.storage import locate

if TYPE_CHECKING:
    from collections.abc import Generator

    from upath import UPath

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.search.tune.trial import Trainer, TrialSettings

__all__ = ["GrowingTrainer"]


@dataclass(frozen=True)
class GrowingTrainer:
    """The trainer of a search whose trials may grow.

    Attributes:
        trainer: what each process runs.
    """

    trainer: Trainer

    def __call__(
        self,
        parameters: Hyperparameters,
        dataset: PreparedDataset,
        settings: TrialSettings,
        seed: int,
        resume: UPath | None,
    ) -> Generator[Any, None, None]:
        trial = _Trial(self.trainer, (parameters, dataset), settings, seed)
        try:
            yield from trial.reports(resume)
        finally:
            trial.end()


class _Report:
    """A report of whoever trains, which lets go of them when others take over: the device must be empty then."""

    def __init__(self, of: Any) -> None:
        self._of = of

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)

    def release(self) -> None:
        self._of = None


class _Trial:
    """One trial, with the processes that train it now."""

    def __init__(self, trainer: Trainer, given: tuple[Any, Any], settings: TrialSettings, seed: int) -> None:
        self._trainer, self._given, self._settings, self._seed = trainer, given, settings, seed
        self._slots = LentSlots(settings.search, seed)
        self._lent: Lent = NOTHING_LENT
        self._group: WorkerGroup | None = None
        self._steps: Any = None
        self._may_grow = True
        self._folder: tempfile.TemporaryDirectory[str] | None = None  # made by trials that grow

    def reports(self, resume: UPath | None) -> Generator[_Report, None, None]:
        self._begin(NOTHING_LENT, None, resume)
        last: _Report | None = None  # of processes that may fail, since they took over
        while True:
            try:
                step = next(self._steps, None)
            except (WorkersLost, TrialFailure) as error:
                if not self._is_of_growth(error):
                    raise
                say(f"a trial that had grown goes on as before: {error}")
                self._may_grow = False
                self._switch(NOTHING_LENT, None, self._saved(last))
                last = None
                continue
            if step is None:
                return
            report = _Report(step)
            del step
            yield report
            if (self._may_grow or self._lent.slots) and self._look(report):
                last = None
            elif self._lent.slots:
                last = report

    def _is_of_growth(self, error: Exception) -> bool:
        """Whether the trial might not have met an error without the slots that were lent to it."""
        of_all = isinstance(error, FaultOfWorker) or (isinstance(error, TrialFailure) and error.reason == "diverged")
        return self._lent.slots > 0 and not of_all

    def _look(self, report: _Report) -> bool:
        """After a report: go on with as many processes as slots are lent now; whether that is a change."""
        found = self._slots.now()
        is_more = found.slots > self._lent.slots
        if found == self._lent or (is_more and not self._may_grow):
            return False
        try:
            state = self._saved(report)
        except OSError as error:
            if not is_more:
                raise  # others wait for the slots
            say(f"a trial goes on without the slots that it was lent, as its state cannot be written: {error}")
            self._may_grow = False
            return False
        workers = self._settings.workers * (1 + found.slots)
        group = WorkerGroup(workers, [*own_devices(), *found.devices]) if found.slots else None
        self._switch(found, group, state)
        return True

    def _saved(self, report: _Report | None) -> UPath:
        """The file of a report's state, whose device is empty after that, or else of the one that was saved last."""
        self._folder = self._folder or tempfile.TemporaryDirectory()
        state = locate(Path(self._folder.name) / "state.safetensors")
        if report is not None:
            report.state().save(state)
            report.release()
        return state

    def _switch(self, lent: Lent, group: WorkerGroup | None, state: UPath) -> None:
        """Go on with other processes from a state."""
        self._close()
        self._begin(lent, group, state)

    def _begin(self, lent: Lent, group: WorkerGroup | None, resume: UPath | None) -> None:
        settings, times = self._settings, 1 + lent.slots
        if lent.slots:
            settings = replace(
                settings, workers=settings.workers * times, cpus=settings.cpus * times, gpus=settings.gpus * times
            )
        self._lent, self._group = lent, group
        borrow(lent.devices)
        trainer = MultiWorkerTrainer(self._trainer, group) if settings.workers > 1 else self._trainer
        self._steps = trainer(*self._given, settings, self._seed, resume)

    def _close(self) -> None:
        if self._steps is not None:
            self._steps.close()
        if self._group is not None:
            self._group.end()
        self._group = None

    def end(self) -> None:
        """Leave nothing behind but the processes that serve the next trial, too.

        And what is known of the devices: a fault that ends the trial is told of all that it had.
        """
        self._close()
        if self._folder is not None:
            self._folder.cleanup()
