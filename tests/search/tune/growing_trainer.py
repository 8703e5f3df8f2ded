"""Trainers that wait where a test of growing trials needs them to, with real training between."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ich_ray.data.dataset import PreparedDataset
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.search.tune.lent_slots import LentSlots
from ich_ray.search.tune.trial import TrialSettings, train_model
from ich_ray.training.data_parallel import Shard

_WAIT_S = 300.0


@dataclass(frozen=True)
class PatientTrainer:
    """Trains as every search does; a process alone waits after its second report until its trial is lent slots.

    Attributes:
        seed: of the trial that waits.
        log: a file that gets a line for each report: how many workers trained it.
    """

    seed: int
    log: str

    def __call__(
        self,
        parameters: Hyperparameters,
        dataset: PreparedDataset,
        settings: TrialSettings,
        seed: int,
        resume: Any,
        shard: Shard | None = None,
    ) -> Generator[Any, None, None]:
        for progress in train_model(parameters, dataset, settings, seed, resume, shard):
            if seed == self.seed and (shard is None or shard.rank == 0):
                with Path(self.log).open("a") as log:
                    log.write(f"{progress.images_seen} {shard.world_size if shard else 1}\n")
            yield progress
            deadline = time.monotonic() + _WAIT_S
            waits = seed == self.seed and shard is None and progress.images_seen == 2 * settings.report_every
            slots = LentSlots(settings.search, seed)
            while waits and not slots.now().slots and time.monotonic() < deadline:
                time.sleep(0.2)
