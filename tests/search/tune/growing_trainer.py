"""Trainers that wait where a test of growing trials needs them to: one that trains, one whose values are digests."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.folds import HeldOut
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.search.tune.lent_slots import LentSlots
from ich_ray.search.tune.trial import TrialSettings, train_model
from ich_ray.storage import Location, locate, sha256, write_bytes
from ich_ray.training.data_parallel import Shard
from ich_ray.trial_records import ExecutionInfo

_WAIT_S = 300.0


@dataclass(frozen=True)
class PatientTrainer:
    """Trains as every search does; a process alone waits after its second report until its trial is lent slots.

    Attributes:
        seed: of the trial that waits; None where none does.
        log: a file that gets a line for each report of it: how many workers trained it.
        digests: whether nothing is trained, see `Chain`.
    """

    seed: int | None
    log: str
    digests: bool = False

    def __call__(
        self,
        parameters: Hyperparameters,
        dataset: PreparedDataset,
        settings: TrialSettings,
        seed: int,
        resume: Any,
        shard: Shard | None = None,
    ) -> Generator[Any, None, None]:
        train = chained if self.digests else train_model
        for progress in train(parameters, dataset, settings, seed, resume, shard):
            if seed == self.seed and (shard is None or shard.rank == 0):
                with Path(self.log).open("a") as log:
                    log.write(f"{progress.images_seen} {shard.world_size if shard else 1}\n")
            yield progress
            deadline = time.monotonic() + _WAIT_S
            waits = seed == self.seed and shard is None and progress.images_seen == 2 * settings.report_every
            slots = LentSlots(settings.search, seed)
            while waits and not slots.now().slots and time.monotonic() < deadline:
                time.sleep(0.2)


@dataclass(frozen=True)
class Chain:
    """A report, and the state of its training: a digest of all reports before it, of its seed and of its fold."""

    images_seen: int
    digest: str
    setup: ExecutionInfo

    @property
    def metrics(self) -> dict[str, float]:
        return {"average_precision": int(self.digest[:12], 16) / 16**12}

    @property
    def elapsed_s(self) -> float:
        return self.images_seen / 1000

    def state(self) -> Chain:
        return self

    def packed(self) -> bytes:
        return json.dumps({"images_seen": self.images_seen, "digest": self.digest}).encode()

    def save(self, path: Location) -> str:
        write_bytes(locate(path), self.packed())
        return sha256(self.packed())


def chained(
    parameters: Hyperparameters,
    dataset: PreparedDataset,
    settings: TrialSettings,
    seed: int,
    resume: Any,
    shard: Shard | None,
) -> Generator[Chain, None, None]:
    fold = dataset.fold if isinstance(dataset, HeldOut) else None
    setup = ExecutionInfo(device="cpu", workers=shard.world_size if shard else 1, images="host", mode="float32")
    state = json.loads(resume.read_text()) if resume else {"images_seen": 0, "digest": f"{seed} {fold}"}
    report = Chain(**state, setup=setup)
    while report.images_seen < settings.images:
        digest = sha256(f"{report.digest} {parameters.learning_rate} {fold}".encode())
        report = Chain(report.images_seen + settings.report_every, digest, setup)
        yield report
