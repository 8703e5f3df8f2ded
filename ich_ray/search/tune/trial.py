"""One trial as a Tune function, resumable after every report.

The training itself is in training/loop.py. Runs in a worker process that serves many trials one after another: the
dataset stays mapped, accelerator memory is released at each end. Raises through Tune only when its own workers are
lost: a trial that fails reports so, because to Tune a raised error is a lost worker. Decides nothing: the driver stops
it by not coming back from a report.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ray import tune

from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.folds import HeldOut
from ich_ray.errors import IchRayError, IntegrityError, TrialFailure
from ich_ray.registry import registered_here, repeat
from ich_ray.search.best_states import BestStates
from ich_ray.search.chances import BestLogits
from ich_ray.search.out_of_fold import OutOfFold
from ich_ray.search.space.parameter_sets import PARAMETER_SETS
from ich_ray.search.tune.folded_training import FoldedTraining, FoldProgress
from ich_ray.search.tune.lost_attempts import admitted, devices_held, leave_if_draining, lose, node_id
from ich_ray.search.tune.preemption import heard
from ich_ray.search.tune.train_workers import FaultOfWorker, WorkersLost
from ich_ray.search.tune.trial_files import TrialFiles, UnwrittenError, reference_to
from ich_ray.search.tune.trial_log import TrialLog
from ich_ray.storage import SearchFiles, exists, locate, without_credentials
from ich_ray.training.checkpoint_store import CheckpointStore
from ich_ray.training.machine_faults import machine_fault
from ich_ray.training.memory import out_of_memory
from ich_ray.trial_records import OUT_OF_MEMORY, Objective, Report, finite

if TYPE_CHECKING:
    from upath import UPath

    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.search.space.parameter_sets import Searched
    from ich_ray.training.checkpoint_store import SavedState
    from ich_ray.training.data_parallel import Shard
    from ich_ray.training.loop import Progress
    from ich_ray.trial_records import ExecutionInfo
    from ich_ray.usage import ReportUsage
    from ich_ray.vocabulary import Placement, Precision

__all__ = ["Trainer", "TrialSettings", "as_failure", "checkpoints_of", "opened", "train_model", "trial_function"]

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
        placement: where the images lie, see `data.image_store.place`.
        precision: of the search, on accelerators; None where its record names none.
        objective: of the search; with folds, `images` are those of each network.
        seed: of the search, which divides its patients into folds.
        searches: what its parameters are of.
        keep_weights: whether the state of each trial's best report stays when it has ended.
        declined_s: how long a trial waits on a machine that is in quarantine before it goes back to the queue.
        memory_bytes: of an accelerator that its tensors may take; 0 for all there is.
        compares: whether what its networks say of the validation slices is kept, to compare trials by; with folds it
            is anyway.
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
    objective: Objective = field(default_factory=Objective)
    seed: int = 0
    searches: Searched = "network"
    keep_weights: bool = False
    declined_s: float = 5.0
    compares: bool = False
    memory_bytes: int = 0

    def images_of(self, parameters: Hyperparameters) -> int:
        """Images at which a network has ended."""
        return parameters.images_within(self.images)

    @property
    def neighbors(self) -> int:
        """Trials on one accelerator, this one counted."""
        return int(1 / self.gpus + 1e-9) if 0 < self.gpus < 1 else 1


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
    def state(self) -> SavedState: ...


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
    if settings.gpus and device.type == "cpu":
        raise RuntimeError("the trial was promised an accelerator and sees none")
    try:
        if settings.memory_bytes:  # so that it runs out of memory itself, and not its neighbors
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, settings.memory_bytes / total), device)
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
        began = admitted(settings.search, settings.declined_s)
        with TrialLog(settings.search, config["number"]) as log:
            try:
                repeat(registered)
                _run(settings, trainer, config, began, log)
            except Exception as error:
                failure = as_failure(error)
                loss = _loss(error, failure, may_grow=config.get("may_grow", False))
                if loss is None:
                    log.failed(error)
                    tune.report({"failure": failure.reason, "detail": failure.detail})
                    return
                log.lost(error)
                if loss:
                    lose(*loss, full=isinstance(error, UnwrittenError) and error.is_full)
                raise  # to Tune a lost worker, and another process takes the trial

    return trial


def _loss(error: Exception, failure: TrialFailure, *, may_grow: bool) -> tuple[str, str] | tuple[()] | None:
    """Cause and detail of an attempt that ends by no fault of its trial's.

    None if the trial has failed, and nothing in particular where the driver sees by itself that workers are lost.
    """
    if isinstance(error, FaultOfWorker):
        return error.fault, error.detail
    if isinstance(error, WorkersLost):
        return ()
    if isinstance(error, UnwrittenError):
        return "storage", str(error)
    if fault := machine_fault(error):
        return fault, failure.detail
    if failure.reason == OUT_OF_MEMORY and may_grow:
        return failure.reason, failure.detail  # it goes on with a larger share of an accelerator
    return None


def _shared(settings: TrialSettings, fold: int | None) -> tuple[SearchFiles, PreparedDataset]:
    """The folders that every trial needs.

    Raises:
        FaultOfWorker: this machine does not see one of them, which says nothing of the trial.
    """
    try:
        files = SearchFiles(locate(settings.search))
        if not exists(files.search):  # where it is not mounted a folder would be made, and its states lost
            raise IntegrityError(f"{files.root}: every machine must see the search folder, got none")
        return files, opened(settings, fold)
    except (OSError, IchRayError) as error:
        raise FaultOfWorker("storage", without_credentials(str(error))[:500]) from error


def as_failure(error: Exception) -> TrialFailure:
    """What ended a trial, as the ledger will have it; torch need not be there for that."""
    if isinstance(error, TrialFailure):
        return error
    reason = "error" if out_of_memory(error) is None else OUT_OF_MEMORY
    return TrialFailure(reason, without_credentials(f"{type(error).__name__}: {error}")[:500])


def _run(settings: TrialSettings, trainer: Trainer, config: dict[str, Any], began: float, log: TrialLog) -> None:
    files, dataset = _shared(settings, config["fold"])
    checkpoints = checkpoints_of(files, config["number"])
    kept = checkpoints.newest()
    folds, damage = None, ""
    if settings.objective.networks > 1:
        folds = FoldedTraining(
            trainer, _out_of_fold(settings), settings.objective.metric, settings.images, config["number"]
        )
        if kept and (damage := folds.resume(kept.reports)):
            kept = None
    history = list(kept.reports) if kept else []
    wanted = settings.compares and folds is None
    best = BestLogits(files, config["number"], settings.objective, history, wanted=wanted)
    # A lost attempt may have kept reports to itself; the driver ignores those that it has. Of the newest that it has it
    # may know the state before alone, which goes as soon as there is a newer one.
    for report in history:
        if kept and report["images_seen"] >= config["reported"]:
            tune.report({**report, "checkpoint": reference_to(kept).model_dump()})
    seen = kept.images_seen if kept else 0
    checkpoints.note = _fallen_back(checkpoints.note, damage, seen, config["reported"], settings.report_every)
    parameters = PARAMETER_SETS[settings.searches].made(config["parameters"])
    images = settings.images_of(parameters) * settings.objective.networks
    train = folds or trainer
    resume = kept.file if kept else None
    states = BestStates(files.weights_of(config["seed"]), settings.objective, seen) if settings.keep_weights else None
    own = _with_share(settings, config)
    with (
        TrialFiles(checkpoints, kept, best, states) as written,
        closing(train(parameters, dataset, own, config["seed"], resume)) as steps,
    ):
        for progress in steps:
            report = _measured(progress)
            if output := getattr(progress, "output", None):  # of processes beside this one
                log.also(output)
            last = progress.images_seen >= images
            if folds and isinstance(progress, FoldProgress):
                with written.waiting():
                    report["fold"] = folds.note(progress).model_dump()
            history.append(report)
            tune.report(
                {
                    **report,
                    **written.before_report(progress, history, last=last),
                    "node": node_id(),
                    "devices": devices_held(),
                    "admitted": began,
                    "note": checkpoints.note,
                    "heard": heard(),
                    "setup": progress.setup.model_dump() if progress.setup else None,
                }
            )
            if not last:
                written.after_report(progress, history)
                leave_if_draining(written.finish)
    seen = history[-1]["images_seen"] if history else 0
    raise TrialFailure("error", f"training ended at {seen} of {images} images")


def _with_share(settings: TrialSettings, config: dict[str, Any]) -> TrialSettings:
    """The settings with what a trial has a share of, where it has one of its own."""
    if "gpus" not in config:
        return settings
    host = settings.placement == "auto" and not config.get("images_fit", True)
    placement: Placement = "host" if host else settings.placement
    return replace(settings, gpus=config["gpus"], memory_bytes=config.get("memory_bytes", 0), placement=placement)


def _measured(progress: _Progress) -> dict[str, Any]:
    """A report as the ledger and the checkpoints after it will have it."""
    report = {
        "images_seen": progress.images_seen,
        "metrics": finite(progress.metrics),
        "elapsed_s": progress.elapsed_s,
    }
    usage: ReportUsage | None = getattr(progress, "usage", None)  # a trainer from outside need not measure
    return {**report, "usage": usage.model_dump()} if usage else report


def _fallen_back(note: str, damage: str, seen: int, reported: int, report_every: int) -> str:
    """What people are told of a trial that goes on from less than it has reported.

    Of the newest report no state need be there: it is written beside the training, and its attempt may have ended
    meanwhile. So one report less is told only where a file was found to be damaged.
    """
    if seen >= reported or not (note or damage or reported - seen > report_every):
        return note
    if not seen:
        return f"{damage or 'no good checkpoint'} after {reported} images: started again"
    return f"{note or 'the newest checkpoint was missing'}: went back from {reported} to {seen} images"


def opened(settings: TrialSettings, fold: int | None) -> PreparedDataset:
    """The dataset of the search, with one fold held out if given."""
    dataset = _whole(settings.dataset, settings.fingerprint)
    return dataset if fold is None else HeldOut(dataset, fold)


@lru_cache(maxsize=1)
def _whole(where: str, fingerprint: str) -> PreparedDataset:
    """Opened once a process: its pages are shared, its slice table is not."""
    return PreparedDataset.open(where, fingerprint=fingerprint)


@lru_cache(maxsize=1)
def _out_of_fold(settings: TrialSettings) -> OutOfFold:
    """Divided once a process."""
    whole = _whole(settings.dataset, settings.fingerprint)
    return OutOfFold(SearchFiles(locate(settings.search)), whole, settings.objective, settings.seed)


def checkpoints_of(files: SearchFiles, number: int) -> CheckpointStore:
    """The checkpoints of a trial, the newest of which an attempt at it resumes."""
    return CheckpointStore(files.checkpoint(number), "newest", _is_report)


def _is_report(report: Any) -> bool:
    """Whether the ledger would take what a checkpoint says was reported; it may come from anyone."""
    try:
        Report(**report, time=0.0)
    except (TypeError, ValueError):
        return False
    return True
