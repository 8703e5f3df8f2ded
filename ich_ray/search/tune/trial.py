"""One trial as a Tune function, resumable after every report.

The training itself is in training/loop.py. Runs in a worker process that serves many trials one after another: the
dataset stays mapped, accelerator memory is released at each end. Raises through Tune only when its own workers are
lost: a trial that fails reports so, because to Tune a raised error is a lost worker. Decides nothing: the driver stops
it by not coming back from a report.
"""

from __future__ import annotations

import gc
import os
import secrets
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ray import tune

from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.folds import HeldOut
from ich_ray.errors import IntegrityError, TrialFailure
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.registry import registered_here, repeat
from ich_ray.results import CheckpointReference, finite
from ich_ray.search.tune.train_workers import WorkersLost
from ich_ray.storage import Location, SearchFiles, locate, read_json, sha256, without_credentials, write_json
from ich_ray.training.memory import out_of_memory

if TYPE_CHECKING:
    from upath import UPath

    from ich_ray.results import ExecutionInfo
    from ich_ray.training.data_parallel import Shard
    from ich_ray.training.loop import Progress
    from ich_ray.vocabulary import Placement, Precision

__all__ = ["Checkpoints", "Kept", "Trainer", "TrialSettings", "as_failure", "opened", "train_model", "trial_function"]

# A worker is reused only when the thread of its last trial has ended; Tune's 2 s are short for freeing a large model,
# and what takes longer costs the *next* trial. Set in the worker, because a cluster's workers do not inherit the
# driver's environment.
_THREAD_TIMEOUT_S = "120"


@dataclass(frozen=True)
class TrialSettings:
    """What all trials of a search share.

    Attributes:
        dataset: where it lies; `fingerprint` says which one it must be.
        search: the search folder, for checkpoints.
        images: the budget, which a trial of few epochs does not spend (`images_of`); a report comes every
            `report_every`.
        cpus: threads a trial may use.
        gpus: accelerators it has, perhaps a fraction of one.
        workers: processes that train it together, each with its share of the CPUs, and one of the accelerators if any.
        placement: where the images lie, see `data.placement.place`.
        precision: of the search, on accelerators; None where its record names none.
    """

    dataset: str
    fingerprint: str
    search: str
    images: int
    report_every: int
    cpus: float
    gpus: float
    workers: int = 1
    placement: Placement = "auto"
    precision: Precision | None = None

    def images_of(self, parameters: Hyperparameters) -> int:
        """Images at which a trial has ended."""
        return parameters.images_within(self.images)

    @property
    def neighbors(self) -> int:
        """Trials on one accelerator, this one counted."""
        return int(1 / self.gpus + 1e-9) if 0 < self.gpus < 1 else 1


class _State(Protocol):
    def save(self, path: Location) -> str:
        """Write it whole or not at all; the SHA-256 of what was written."""


class _Progress(Protocol):
    """What a trial needs of training.parts.Progress."""

    @property
    def images_seen(self) -> int: ...
    @property
    def metrics(self) -> dict[str, float]: ...
    @property
    def elapsed_s(self) -> float: ...
    @property
    def setup(self) -> ExecutionInfo | None: ...
    def state(self) -> _State: ...


# (parameters, dataset, settings, seed, file of the state to resume) -> one progress per report; where a trial has
# several workers each is called with its shard after these
Trainer: TypeAlias = Callable[..., Generator["_Progress", None, None]]


def train_model(
    parameters: Hyperparameters,
    dataset: PreparedDataset,
    settings: TrialSettings,
    seed: int,
    resume: UPath | None,
    shard: Shard | None = None,
) -> Generator[Progress, None, None]:
    """The trainer of every real search; with a shard, one worker of it."""
    import torch

    from ich_ray.training.data_parallel import ALONE
    from ich_ray.training.loop import TrainingBudget, TrainingState, train

    shard = shard or ALONE
    torch.set_num_threads(max(1, int(settings.cpus) // settings.workers))
    device = torch.device(f"cuda:{shard.rank}" if settings.gpus and torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        yield from train(
            parameters,
            dataset.role("train"),
            dataset.role("validation"),
            budget=TrainingBudget(settings.images_of(parameters), settings.report_every),
            seed=seed,
            device=device,
            resume=TrainingState.load(resume) if resume else None,
            shard=shard,
            placement=settings.placement,
            trials=settings.neighbors,
            precision=settings.precision,
        )
    finally:
        if device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def trial_function(settings: TrialSettings, trainer: Trainer = train_model) -> Callable[[dict[str, Any]], None]:
    """The function that Tune runs; its config is what the sampler suggests."""
    registered = registered_here()

    def trial(config: dict[str, Any]) -> None:
        os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = _THREAD_TIMEOUT_S
        try:
            repeat(registered)
            _run(settings, trainer, config)
        except WorkersLost:
            raise  # to Tune a lost worker, which this is
        except Exception as error:  # noqa: BLE001  (whatever it is, it is this trial's end and not the search's)
            failure = as_failure(error)
            tune.report({"failure": failure.reason, "detail": failure.detail})

    return trial


def as_failure(error: Exception) -> TrialFailure:
    """What ended a trial, as the ledger will have it; torch need not be there for that."""
    if isinstance(error, TrialFailure):
        return error
    reason = "error" if out_of_memory(error) is None else "out_of_memory"
    return TrialFailure(reason, without_credentials(f"{type(error).__name__}: {error}")[:500])


def _run(settings: TrialSettings, trainer: Trainer, config: dict[str, Any]) -> None:
    checkpoints = Checkpoints(SearchFiles(locate(settings.search)), config["number"])
    kept = checkpoints.newest()
    history = list(kept.reports) if kept else []
    # A lost attempt may have kept reports to itself; the driver ignores those that it has.
    for report in history:
        if kept and report["images_seen"] > config["reported"]:
            tune.report({**report, "checkpoint": kept.reference.model_dump()})
    if kept is None and config["reported"]:
        checkpoints.note = f"no good checkpoint after {config['reported']} images: started again"
    elif kept and kept.images_seen < config["reported"]:
        why = checkpoints.note or "the newest checkpoint was missing"
        checkpoints.note = f"{why}: went back from {config['reported']} to {kept.images_seen} images"
    parameters = Hyperparameters(**config["parameters"])
    images = settings.images_of(parameters)
    dataset = opened(settings, config["fold"])
    resume = kept.file if kept else None
    with closing(trainer(parameters, dataset, settings, config["seed"], resume)) as steps:
        for progress in steps:
            report = {
                "images_seen": progress.images_seen,
                "metrics": finite(progress.metrics),
                "elapsed_s": progress.elapsed_s,
            }
            history.append(report)
            # The last report needs no state: the trial is over when it arrives.
            last = progress.images_seen >= images
            try:
                reference = None if last else checkpoints.save(progress, history)
            except OSError as error:  # the search's folder, which every trial needs: no failure of this one
                tune.report({"unwritable": f"{checkpoints.folder}: {error.strerror or error}"})
                return
            tune.report(
                {
                    **report,
                    "checkpoint": reference.model_dump() if reference else None,
                    "note": checkpoints.note,
                    "setup": progress.setup.model_dump() if progress.setup else None,
                }
            )
    seen = history[-1]["images_seen"] if history else 0
    raise TrialFailure("error", f"training ended at {seen} of {images} images")


def opened(settings: TrialSettings, fold: int | None) -> PreparedDataset:
    """The dataset of the search, with one fold held out if given."""
    dataset = _whole(settings.dataset, settings.fingerprint)
    return dataset if fold is None else HeldOut(dataset, fold)


@lru_cache(maxsize=1)
def _whole(where: str, fingerprint: str) -> PreparedDataset:
    """Opened once a process: its pages are shared, its slice table is not."""
    return PreparedDataset.open(where, fingerprint=fingerprint)


@dataclass(frozen=True)
class Kept:
    """A state that can be resumed: its file, and all that the trial had reported by then."""

    file: UPath
    reference: CheckpointReference
    reports: tuple[dict[str, Any], ...]

    @property
    def images_seen(self) -> int:
        return self.reference.images_seen


class Checkpoints:
    """The newest two states of a trial, in two files that take turns.

    A torn one never costs the other. Beside each `a-TOKEN.safetensors` stands `a-TOKEN.json`, written after it, with
    its hash: a state with another hash is none. Every attempt has a token of its own, because one that was taken for
    lost may wake up (a machine that stood still for a minute) and write once more before Ray ends it: it must not touch
    the files of the attempt that took its place.

    Attributes:
        folder: where they lie.
        note: what was found wrong, for the ledger.
    """

    def __init__(self, files: SearchFiles, number: int) -> None:
        self.folder = files.checkpoint(number)
        self.note = ""
        token = secrets.token_hex(4)
        self._names = (f"a-{token}", f"b-{token}")
        self._saved = 0
        self._superseded: list[list[UPath]] = []

    def newest(self) -> Kept | None:
        """The newest state that is whole, else the one before, else None."""
        found = []
        there = list(self.folder.iterdir()) if self.folder.exists() else []
        for index in sorted(path for path in there if path.suffix == ".json"):
            if entry := self._entry(index):
                found.append(entry)
            else:
                self.note = f"checkpoint {index.stem} was damaged"
        newest = max(found, key=lambda entry: entry.images_seen, default=None)
        last = [path for path in there if newest and path.stem == newest.file.stem]
        self._superseded = [[path for path in there if path not in last], last]
        return newest

    def _entry(self, index: UPath) -> Kept | None:
        try:
            entry = read_json(index)
            file = self.folder / f"{index.stem}.safetensors"  # whatever the entry says: it may come from anyone
            if sha256(file) != entry["sha256"]:
                return None
            return Kept(file, self._reference(file, entry["sha256"], entry["images_seen"]), tuple(entry["reports"]))
        except (OSError, KeyError, TypeError, ValueError, IntegrityError):
            return None

    def save(self, progress: _Progress, reports: list[dict[str, Any]]) -> CheckpointReference:
        # The state that was resumed stays until there is a newer one.
        for superseded in self._superseded.pop(0) if self._superseded else ():
            superseded.unlink(missing_ok=True)
        name = self._names[self._saved % 2]
        self._saved += 1
        file = self.folder / f"{name}.safetensors"
        written = progress.state().save(file)
        reference = self._reference(file, written, progress.images_seen)
        entry = {**reference.model_dump(), "file": file.name, "reports": reports}
        write_json(self.folder / f"{name}.json", entry)
        return reference

    def _reference(self, file: UPath, digest: str, images_seen: int) -> CheckpointReference:
        name = f"checkpoints/{self.folder.name}/{file.name}"
        return CheckpointReference(file=name, sha256=digest, images_seen=images_seen)
