"""A trial that goes on with more processes when slots are lent to it, and with fewer when they are taken back.

In the trial's own process, which stays the only one that Tune knows: nothing is paused or queued for a change. After a
report it looks for the keepers of its slots (`lent_slots`), starts processes on what they hold beside the training
that still runs, and lets these take over at the report after, from the state of that moment. Where they fail, the trial
goes on as it was. Decides nothing: growing.py does, in the driver.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ich_ray.errors import TrialFailure
from ich_ray.progress import say
from ich_ray.search.tune.lent_slots import NOTHING_LENT, Lent, lent_to
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


class _Trial:
    """One trial, with the processes that train it now, and those that are to take over."""

    def __init__(self, trainer: Trainer, given: tuple[Any, Any], settings: TrialSettings, seed: int) -> None:
        self._trainer, self._given, self._settings, self._seed = trainer, given, settings, seed
        self._lent: Lent = NOTHING_LENT
        self._group: WorkerGroup | None = None
        self._steps: Any = None
        self._coming: tuple[Lent, WorkerGroup] | None = None
        self._may_grow = True
        self._folder = tempfile.TemporaryDirectory()

    def reports(self, resume: UPath | None) -> Generator[Any, None, None]:
        self._begin(NOTHING_LENT, None, resume)
        last: Any = None
        while True:
            try:
                progress = next(self._steps, None)
            except (WorkersLost, TrialFailure) as error:
                if last is None or not self._is_of_growth(error):
                    raise
                say(f"a trial that had grown goes on as before: {error}")
                self._may_grow = False
                self._switch(NOTHING_LENT, None, last)
                continue
            if progress is None:
                return
            yield progress
            if self._lent.slots:
                last = progress
            if self._may_grow:
                last = self._look(progress) or last

    def _is_of_growth(self, error: Exception) -> bool:
        """Whether the trial might not have met an error without the slots that were lent to it."""
        of_all = isinstance(error, FaultOfWorker) or (isinstance(error, TrialFailure) and error.reason == "diverged")
        return self._lent.slots > 0 and not of_all

    def _look(self, progress: Any) -> Any:
        """After a report: let those take over who are ready, or make others ready; the report if it was the former."""
        found = lent_to(self._settings.search, self._seed)
        if self._coming and self._coming[0] == found:
            group, self._coming = self._coming[1], None
            self._switch(found, group, progress)
            return progress
        self._drop_coming()
        if found == self._lent:
            return None
        if not found.slots:
            self._switch(NOTHING_LENT, None, progress)
            return progress
        workers = self._settings.workers * (1 + found.slots)
        self._coming = found, WorkerGroup(workers, [*own_devices(), *found.devices])
        return None

    def _switch(self, lent: Lent, group: WorkerGroup | None, progress: Any) -> None:
        """Go on with other processes from the state of a report."""
        state = locate(Path(self._folder.name) / "state.safetensors")
        progress.state().save(state)
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
        borrow(())

    def _drop_coming(self) -> None:
        if self._coming:
            self._coming[1].end()
        self._coming = None

    def end(self) -> None:
        """Leave nothing behind but the processes that serve the next trial, too."""
        self._drop_coming()
        self._close()
        self._folder.cleanup()
