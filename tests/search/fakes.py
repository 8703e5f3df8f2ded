"""A trainer that costs nothing: an analytic learning curve in place of a network."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import TrialFailure
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.search.tune.trial import TrialSettings
from ich_ray.statistics.metrics import average_precision
from ich_ray.storage import Location, locate, sha256, write_bytes
from ich_ray.training.data_parallel import Shard
from ich_ray.trial_records import ExecutionInfo

SPACE = """
name: tiny
budget: {images: 900, report_every: 100, first_rung: 100, reduction: 3, min_peers: 2}
parameters:
  architecture: {choice: [plain_cnn, resnet18]}
  blocks: {int: [1, 4], when: {architecture: plain_cnn}}
  learning_rate: {loguniform: [1.0e-5, 1.0e-1]}
  dropout: {uniform: [0.0, 0.6]}
  optimizer: {choice: [sgd, adam]}
  momentum: {fixed: 0.9, when: {optimizer: sgd}}
"""


def die_once(file: str) -> None:
    """Remove a file and kill this process, unless the file has been removed before."""
    with suppress(FileNotFoundError):
        Path(file).unlink()
        os.write(2, b"its last words\n")
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class FakeState:
    images_seen: int
    disk_is_full: bool = False
    kill_saving: str = ""

    def packed(self) -> bytes:
        return json.dumps({"images_seen": self.images_seen}).encode()

    def save(self, path: Location) -> str:
        if self.disk_is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if self.kill_saving and self.images_seen >= 300:
            die_once(self.kill_saving)
        data = self.packed()
        write_bytes(locate(path), data)
        return sha256(data)


@dataclass(frozen=True)
class FakeProgress:
    images_seen: int
    metrics: dict[str, float]
    elapsed_s: float
    disk_is_full: bool = False
    setup: ExecutionInfo | None = None
    logits: NDArray[np.float32] | None = None
    kill_saving: str = ""

    def state(self) -> FakeState:
        return FakeState(self.images_seen, self.disk_is_full, self.kill_saving)


def curve(parameters: Hyperparameters, images_seen: int) -> float:
    """Best at a learning rate of 1e-3 and dropout of 0.3, rising with the images."""
    miss = (math.log10(parameters.learning_rate) + 3) ** 2 + 10 * (parameters.dropout - 0.3) ** 2
    return 0.15 + 0.75 * math.exp(-0.5 * miss) * (1 - math.exp(-images_seen / 300))


def meet(folder: Path) -> None:
    """Leave this process's number in `folder` and wait until two processes have."""
    (folder / str(os.getpid())).touch()
    deadline = time.monotonic() + 120
    while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)


@dataclass(frozen=True)
class FakeTrainer:
    """Reports `curve`, and fails as told.

    Attributes:
        wait_s: for each report.
        diverge_above: learning rate above which its first report is a TrialFailure; so with NaN and ValueError below.
        full_above: the same for memory.
        full_from: images_seen of the first report whose state the disk has no room for.
        log: a file that gets a line `seed images_seen` for each report that was trained.
        hold: a file; while it is there, no trial goes beyond 300 images.
        meet: a folder in which each process leaves its number; none goes on before there are two of them.
        kill_above: learning rate above which it kills its process at its first report.
        kill_once: a file; when it is there, the first process to find it removes it and kills itself after a report.
        kill_saving: the same, while it writes the state of 300 images or more.
    """

    wait_s: float = 0.0
    diverge_above: float = math.inf
    nan_above: float = math.inf
    raise_above: float = math.inf
    full_above: float = math.inf
    full_from: float = math.inf
    kill_above: float = math.inf
    kill_once: str = ""
    kill_saving: str = ""
    hold: str = ""
    log: str = ""
    meet: str = ""

    def __call__(
        self,
        parameters: Hyperparameters,
        dataset: PreparedDataset,
        settings: TrialSettings,
        seed: int,
        resume: UPath | None,
    ) -> Generator[FakeProgress, None, None]:
        assert dataset.manifest.fingerprint == settings.fingerprint
        seen = json.loads(resume.read_text())["images_seen"] if resume else 0
        if self.meet:
            meet(Path(self.meet))
        while seen < settings.images:
            time.sleep(self.wait_s)
            while self.hold and seen >= 300 and Path(self.hold).exists():
                time.sleep(0.05)
            seen += settings.report_every
            if parameters.learning_rate > self.full_above:
                import torch

                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            if parameters.learning_rate > self.kill_above:
                os.kill(os.getpid(), signal.SIGKILL)
            if parameters.learning_rate > self.raise_above:
                raise ValueError("planted")
            if parameters.learning_rate > self.diverge_above:
                raise TrialFailure("diverged", f"loss is nan at {seen} images")
            value = math.nan if parameters.learning_rate > self.nan_above else curve(parameters, seen)
            if self.kill_once and seen >= 300:
                die_once(self.kill_once)
            if self.log:
                with Path(self.log).open("a") as log:
                    log.write(f"{seed} {seen}\n")
            metrics, full = {"average_precision": value, "train_loss": 1 - value}, seen >= self.full_from
            yield FakeProgress(seen, metrics, seen / 1000, full, kill_saving=self.kill_saving)


@dataclass(frozen=True)
class FakeWorker:
    """What each worker of a trial runs: `curve`, in step with its peers, where rank 1 fails as told.

    Attributes:
        wait_s, kill_once: as of FakeTrainer.
        fault_once: the same, where rank 1 meets a CUDA error after 500 images.
        raise_at: an exception and the images after which rank 1 raises it while the others wait for it.
        pids: a folder in which each worker leaves its number.
    """

    wait_s: float = 0.0
    kill_once: str = ""
    fault_once: str = ""
    raise_at: tuple[Exception, int] | None = None
    pids: str = ""

    def __call__(
        self,
        parameters: Hyperparameters,
        dataset: PreparedDataset,
        settings: TrialSettings,
        seed: int,
        resume: UPath | None,
        shard: Shard,
    ) -> Generator[FakeProgress, None, None]:
        import torch

        if self.pids:
            (Path(self.pids) / str(os.getpid())).touch()
        seen = json.loads(resume.read_text())["images_seen"] if resume else 0
        while seen < settings.images:
            seen += settings.report_every
            time.sleep(self.wait_s)
            if shard.rank == 1 and seen >= 300 and self.kill_once:
                die_once(self.kill_once)
            if shard.rank == 1 and seen > 500 and self.fault_once and Path(self.fault_once).exists():
                Path(self.fault_once).unlink()
                raise torch.AcceleratorError("CUDA error: unspecified launch failure")
            if shard.rank == 1 and self.raise_at and seen >= self.raise_at[1]:
                raise self.raise_at[0]
            together = int(shard.total(torch.ones(1)))
            yield FakeProgress(seen, {"average_precision": curve(parameters, seen), "workers": together}, seen / 1000)


@dataclass(frozen=True)
class FoldTrainer:
    """Reports logits whose average precision on any patients rises with `curve`: labels, and noise of its own.

    Attributes:
        log: a file that gets a line `seed images_seen` for each report that was trained.
        kill_once: a file; when it is there, the report that would be the one after `reports` of the log removes it and
            kills the process.
        full_once: the same, where the disk then has no room for the state.
        reports: see there.
    """

    log: str = ""
    kill_once: str = ""
    full_once: str = ""
    reports: int = 0

    def __call__(
        self, parameters: Hyperparameters, dataset: PreparedDataset, *others: Any
    ) -> Generator[FakeProgress, None, None]:
        held_out, (_, seed, _) = dataset.role("validation"), others
        for step in FakeTrainer(log=self.log)(parameters, dataset, *others):
            noise = np.random.default_rng([seed, step.images_seen]).normal(size=len(held_out))
            logits = (6 * curve(parameters, step.images_seen) * held_out.labels + noise).astype(np.float32)[:, None]
            full = False
            if self.log and len(Path(self.log).read_text().splitlines()) > self.reports:
                if self.kill_once:
                    die_once(self.kill_once)
                if full := bool(self.full_once) and Path(self.full_once).exists():
                    Path(self.full_once).unlink()
            metrics = {"average_precision": average_precision(held_out.labels, logits[:, 0]), "train_loss": 1.0}
            yield replace(step, metrics=metrics, disk_is_full=full, logits=logits)
