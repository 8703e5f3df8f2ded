"""One network trained by several workers of Ray Train, until its budget or its patience is over.

Each worker runs `training.loop`; rank 0 keeps reports and states (training/checkpoint_store.py), written beside the
training. A worker or driver that dies is followed by one that goes on from the newest state: at most two reports are
done twice, or one where the last state was whole; workers leave a machine that will be taken away at their next report,
with its state. Ray Train keeps nothing of ours: its own storage is removed afterwards. Knows nothing of searches and
bundles.
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
from ich_ray.machines import is_gone
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.schedule import SCHEDULES
from ich_ray.progress import say
from ich_ray.storage import first_problem, locate, remove
from ich_ray.training.async_checkpointing import AsyncCheckpointer
from ich_ray.training.checkpoint_store import CheckpointStore
from ich_ray.trial_records import ExecutionInfo, Objective, Report, TrialResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from upath import UPath

    from ich_ray.search.cluster_resources import Machine
    from ich_ray.training.loop import Progress
    from ich_ray.vocabulary import Patients, Placement, Precision

__all__ = ["RetrainPlan", "best_report", "checkpoints_in", "fit", "patience_over", "read_reports"]

_REPORTS = TypeAdapter(tuple[Report, ...])

# Failures in a row of workers whose machines live, with no new state between them, before a training is given up.
_MAX_FAILURES = 2
# Restarts in a row without a new state, whatever was lost: no progress comes of more of them.
_MAX_RESTARTS = 50


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

    resources = _resources(ClusterResources().machines(), workers, gpus_per_worker)
    # Ray checks that every worker sees its storage, so it lies in the search, which they all see.
    storage = locate(plan.folder) / "ray_train"
    try:
        outcome = _run_to_the_end(plan, workers, resources, storage)
    finally:
        remove(storage)
    if "failure" in outcome:
        raise TrialFailure(*outcome["failure"])
    return str(outcome["device"]), outcome["setup"]


def _run_to_the_end(plan: RetrainPlan, workers: int, resources: dict[str, float], storage: UPath) -> dict[str, Any]:
    """Start workers again after each loss while there is progress: machines that go are no failures.

    Of the machines that hold a worker, as nobody knows on which of them they were.

    Raises:
        IchRayError: the workers failed too often without a new state.
    """
    from ich_ray.search.cluster_resources import nodes_that_hold
    from ich_ray.search.tune.train_workers import WorkersLost, run_workers

    failures = restarts = 0
    while True:
        seen, nodes = _images_seen(plan), [*nodes_that_hold(resources["CPU"], resources["GPU"])]
        try:
            return dict(
                run_workers(
                    _worker,
                    {"plan": plan},
                    workers=workers,
                    resources=resources,
                    nccl=resources["GPU"] >= 1,
                    storage=storage,
                )
            )
        except WorkersLost as error:
            now, gone = _images_seen(plan), sum(map(is_gone, nodes))
            failures, restarts = (0, 0) if now > seen else (failures + (not gone), restarts + 1)
            if failures > _MAX_FAILURES or restarts > _MAX_RESTARTS:
                most = f"{_MAX_FAILURES} failures" if failures > _MAX_FAILURES else f"{_MAX_RESTARTS} restarts"
                raise IchRayError(
                    f"retrain: the workers must finish within {most} without a new state, got: {error}; retrain again "
                    "to go on from the newest state"
                ) from error
            why = f"{gone} of its machines went" if gone else f"its workers were lost ({error})"
            say(f"  retrain: {why}, going on from {now:,} images where there are machines for {workers} worker(s)")


def _images_seen(plan: RetrainPlan) -> int:
    reports = read_reports(locate(plan.folder))
    return reports[-1].images_seen if reports else 0


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

    from ich_ray.search.tune.preemption import watch_notices
    from ich_ray.training.data_parallel import Shard

    watch_notices()
    context = get_context()
    device = get_device()
    try:
        shard = Shard(context.get_world_rank(), context.get_world_size())
        setup = _train(config["plan"], shard, device, _leave_if_preempted)
    except TrialFailure as failure:
        if failure.reason == "out_of_memory" and context.get_world_size() > 1:
            raise  # of this worker alone perhaps: the others wait for it until Ray Train ends them
        return {"failure": (failure.reason, failure.detail)}
    return {"device": str(device), "setup": setup}


def _leave_if_preempted() -> None:
    """End this attempt where a machine of these workers will be taken away; all of them ask at the same report.

    Raises:
        IchRayError: it will.
    """
    from ray.train import get_preemption_info

    told = get_preemption_info()
    if told is not None:
        raise IchRayError(f"{len(told.preempted_node_ids)} of the machines will be taken away")


def _train(
    plan: RetrainPlan, shard: Any, device: Any, reported: Callable[[], None] = lambda: None
) -> ExecutionInfo | None:
    """Train until the end, or until `reported` raises, which is called when a report and its state are kept."""
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
            if progress.images_seen < plan.images:
                reported()
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
    return Report(
        images_seen=progress.images_seen,
        metrics=metrics,
        elapsed_s=progress.elapsed_s,
        time=time.time(),
        usage=progress.usage,
    )


def patience_over(reports: list[Report], objective: Objective, patience: int | None) -> bool:
    """Whether so many reports have come since the best that training ends; never without a patience."""
    if patience is None:
        return False
    best = best_report(reports, objective)
    after = [report for report in reports if best is None or report.images_seen > best.images_seen]
    return len(after) >= patience
