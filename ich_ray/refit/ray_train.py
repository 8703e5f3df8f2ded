"""One network trained by several workers of Ray Train, until its budget or its patience is over.

Each worker runs `training.loop`; rank 0 keeps reports and states (training/checkpoint_store.py), written beside the
training. A worker or driver that dies is followed by one that goes on from the newest state: at most two reports are
done twice, or one where the last state was whole. Ray Train keeps nothing of ours: its own storage is removed
afterwards. Knows nothing of searches and bundles.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.folds import trained_and_validated
from ich_ray.errors import ConfigError, IchRayError, IntegrityError, TrialFailure
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.schedule import SCHEDULES
from ich_ray.progress import say
from ich_ray.results import ExecutionInfo, Objective, Report, TrialResult
from ich_ray.storage import first_problem, locate, remove
from ich_ray.training.async_checkpointing import AsyncCheckpointer
from ich_ray.training.checkpoint_store import CheckpointStore

if TYPE_CHECKING:
    from upath import UPath

    from ich_ray.search.cluster_resources import Machine
    from ich_ray.training.loop import Progress
    from ich_ray.vocabulary import Patients, Placement, Precision

__all__ = ["RetrainPlan", "best_report", "checkpoints_in", "fit", "patience_over", "read_reports"]

_REPORTS = TypeAdapter(tuple[Report, ...])

_MAX_FAILURES = 2


@dataclass(frozen=True)
class RetrainPlan:
    """What every worker is told; plain values, as it travels through Ray."""

    folder: str
    dataset: str
    fingerprint: str
    parameters: dict[str, Any]
    objective: dict[str, Any]
    images: int
    report_every: int
    seed: int
    patients: Patients = "train"
    placement: Placement = "auto"
    precision: Precision | None = None


def fit(plan: RetrainPlan, workers: int, gpus_per_worker: float | None) -> tuple[str, ExecutionInfo | None]:
    """Run Ray Train to its end; the device of rank 0, and how it computed.

    How it computed is None if there was nothing left to do.

    Raises:
        ConfigError: more workers or accelerators than there are.
        TrialFailure: the training failed, as it would again.
        IchRayError: workers died too often.
    """
    from ich_ray.search.cluster_resources import ClusterResources
    from ich_ray.search.tune.train_workers import WorkersLost, run_workers

    resources = _resources(ClusterResources().machines(), workers, gpus_per_worker)
    # Ray checks that every worker sees its storage, so it lies in the search, which they all see.
    storage = locate(plan.folder) / "ray_train"
    try:
        outcome: dict[str, Any] = run_workers(
            _worker,
            {"plan": plan},
            workers=workers,
            resources=resources,
            nccl=resources["GPU"] >= 1,
            storage=storage,
            max_failures=_MAX_FAILURES,
        )
    except WorkersLost as error:
        raise IchRayError(
            f"retrain: the workers must finish within {_MAX_FAILURES} failures, got: {error}; retrain again to go on "
            "from the newest state"
        ) from error
    finally:
        remove(storage)
    if "failure" in outcome:
        raise TrialFailure(*outcome["failure"])
    return str(outcome["device"]), outcome["setup"]


def _resources(found: list[Machine], workers: int, gpus_per_worker: float | None) -> dict[str, float]:
    """What each worker holds: an accelerator where there are any, else an equal share of the CPUs.

    Raises:
        ConfigError: the machines, with those that can still be started, do not hold so many workers.
    """
    gpus = float(any(machine.gpus for machine in found)) if gpus_per_worker is None else gpus_per_worker
    largest = int(max((machine.cpus or 1 for machine in found), default=0))
    for cpus in [1] if gpus else range(largest, 0, -1):
        if 0 < workers <= sum(machine.count * _holds(machine, cpus, gpus, workers) for machine in found):
            return {"CPU": cpus, "GPU": gpus}
    there = ", ".join(machine.describe() for machine in found) or "none"
    raise ConfigError(
        f"--workers: each of 1 or more workers needs a CPU and {gpus:g} GPU of one machine, got {workers} workers and "
        f"{there}; ask for fewer workers"
    )


def _holds(machine: Machine, cpus: float, gpus: float, workers: int) -> int:
    """Workers on one machine; all of them where nobody knows."""
    return workers if machine.is_unknown else min(machine.fits(cpus, gpus), workers)


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """What each worker runs. A failed training is an answer and not an exception: another attempt would fail too."""
    from ray.train import get_context
    from ray.train.torch import get_device

    from ich_ray.training.data_parallel import Shard

    context = get_context()
    device = get_device()
    try:
        setup = _train(config["plan"], Shard(context.get_world_rank(), context.get_world_size()), device)
    except TrialFailure as failure:
        if failure.reason == "out_of_memory" and context.get_world_size() > 1:
            raise  # of this worker alone perhaps: the others wait for it until Ray Train ends them
        return {"failure": (failure.reason, failure.detail)}
    return {"device": str(device), "setup": setup}


def _train(plan: RetrainPlan, shard: Any, device: Any) -> ExecutionInfo | None:
    from ich_ray.training.loop import TrainingBudget, TrainingState, train

    dataset, folder = PreparedDataset.open(plan.dataset, fingerprint=plan.fingerprint), locate(plan.folder)
    objective = Objective.model_validate(plan.objective)
    training, validation = trained_and_validated(dataset, plan.patients)
    checkpoints = checkpoints_in(folder)
    kept = checkpoints.newest()
    reports = _checked(kept.reports, folder) if kept else []
    if checkpoints.note and shard.rank == 0:
        say(f"  {checkpoints.note}")
    parameters = Hyperparameters.model_validate(plan.parameters)
    patience = None if validation is None else SCHEDULES[parameters.schedule].patience
    if patience_over(reports, objective, patience):
        return None
    setup = None
    stream = train(
        parameters,
        training,
        validation,
        budget=TrainingBudget(plan.images, plan.report_every),
        seed=plan.seed,
        device=device,
        resume=TrainingState.load(kept.file) if kept else None,
        shard=shard,
        placement=plan.placement,
        precision=plan.precision,
    )
    with AsyncCheckpointer() as saving:
        for progress in stream:
            setup = progress.setup
            reports.append(_report(progress))
            if shard.rank == 0:
                saving.finish()  # before its copy is made there is none of another state
                best = best_report(reports, objective)
                told = [report.model_dump(mode="json") for report in reports]
                arguments = progress.images_seen, progress.state(), told, best.images_seen if best else None
                saving.start(partial(checkpoints.save, *arguments))
            if patience_over(reports, objective, patience):
                break
    return setup


def checkpoints_in(folder: UPath) -> CheckpointStore:
    """Checkpoints of one seed, the best for the bundle; rank 0 writes, everybody may read."""
    return CheckpointStore(folder, "newest and best")


def read_reports(folder: UPath) -> list[Report]:
    """All reports of a seed so far, none before the first.

    Raises:
        IntegrityError: they are damaged.
    """
    return _checked(checkpoints_in(folder).reports(), folder)


def _checked(reports: tuple[Any, ...], folder: UPath) -> list[Report]:
    try:
        return list(_REPORTS.validate_python(reports))
    except ValidationError as error:
        raise IntegrityError(
            f"{folder}: checkpoints must hold a list of reports, got {first_problem(error)}; remove it and retrain"
        ) from None


def best_report(reports: list[Report], objective: Objective) -> Report | None:
    """The report with the best finite objective, the earliest of equals; None without any."""
    return TrialResult(number=0, objective=objective, parameters={}, reports=tuple(reports)).best_report


def _report(progress: Progress) -> Report:
    metrics: dict[str, float | None] = {**progress.metrics}
    return Report(images_seen=progress.images_seen, metrics=metrics, elapsed_s=progress.elapsed_s, time=time.time())


def patience_over(reports: list[Report], objective: Objective, patience: int | None) -> bool:
    """Whether so many reports have come since the best that training ends; never without a patience."""
    if patience is None:
        return False
    best = best_report(reports, objective)
    after = [report for report in reports if best is None or report.images_seen > best.images_seen]
    return len(after) >= patience
