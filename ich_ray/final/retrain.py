"""The chosen hyperparameters once more, longer and on any number of workers, through Ray Train.

Each worker runs `training.train`; rank 0 writes into `SEARCH/final/retraining-<identity>/`, where the identity is a
hash of the draw, the data and the budget: reports.json and two states, the newest and the best. A worker or driver that
dies is followed by one that goes on from the newest, so at most one report is done twice. When all is done the best
weights become the bundle and the folder is removed.

Ray Train keeps nothing of ours: its own storage is removed afterwards, and nothing is unpickled from the search.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError, IchRayError, IntegrityError, TrialFailure
from ich_ray.final.card import Card, DatasetNote, SearchNote, WeightsNote, read_card
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.progress import say
from ich_ray.results import Objective, Report, SearchResult, TrialResult, open_search
from ich_ray.runtime import connected
from ich_ray.storage import Location, Record, locate, read_json, remove, sha256, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upath import UPath

    from ich_ray.final.bundle import Bundle
    from ich_ray.model.training import Progress, TrainingState
    from ich_ray.search.preflight import Machine

__all__ = ["PATIENCE", "Retraining", "chosen_trial", "retrain"]

# Reports without a better objective before it stops (report B's patience).
PATIENCE = 5
# Times the budget of a search. The rate decays with epochs and not towards an end, so a winner's curve simply goes on;
# a search stops it where ranking was cheap. Twice is room for that, and patience ends it sooner when nothing improves.
BUDGET_FACTOR = 2
_MAX_FAILURES = 2
_POLL_S = 0.5


class Retraining(Record):
    """retraining.json."""

    format: Literal[1] = 1
    trial: int
    parameters: dict[str, Any]
    workers: int
    reports: tuple[Report, ...]
    best_images_seen: int
    stopped_early: bool
    seconds: float
    device: str


@dataclass(frozen=True)
class _Plan:
    """What every worker is told; plain values, as it travels through Ray."""

    folder: str
    dataset: str
    fingerprint: str
    parameters: dict[str, Any]
    objective: dict[str, Any]
    images: int
    report_every: int
    seed: int


def chosen_trial(found: SearchResult) -> TrialResult:
    """The trial that confirmation chose, else the best of the search."""
    if not found.files.confirmation.exists():
        return found.best()
    number = read_json(found.files.confirmation).get("chosen")
    for trial in found.trials:
        if trial.number == number:
            return trial
    raise IntegrityError(
        f"{found.files.confirmation}: 'chosen' must be the number of a trial of this search, got {number!r}; "
        "confirm again"
    )


def retrain(
    search: Location, *, workers: int = 1, gpus_per_worker: float | None = None, address: str | None = None
) -> Bundle:
    """Train the chosen trial's hyperparameters again, with early stopping on the validation slices.

    Same seed as the trial, up to twice its budget, and the weights of the best report are kept. The batch size is that
    of all workers together, so their number does not change what is learned. Writes retraining.json and the bundle,
    which is not calibrated yet.

    Args:
        search: the search folder, on storage that every worker can reach.
        workers: processes that train one network together.
        gpus_per_worker: one if the cluster has any and this is not given, else as given; 0 trains on CPUs.
        address: of a Ray cluster.

    Raises:
        ConfigError: no search, too many workers or accelerators asked for.
        IchRayError: no completed trial, or the training failed.
    """
    found = open_search(search)
    trial = chosen_trial(found)
    dataset = PreparedDataset.open(found.record.dataset, fingerprint=found.record.fingerprint)
    parameters = Hyperparameters.model_validate(trial.parameters)
    plan = _plan(found, trial, parameters)
    folder = locate(plan.folder)
    say(f"  retraining trial {trial.number} for at most {plan.images:,} images, {workers} worker(s)")
    started = time.monotonic()
    with connected(address), _told(folder, found.objective.metric):
        device = _fit(plan, workers, gpus_per_worker)
    reports = _read_reports(folder)
    best = _best(reports, found.objective)
    if best is None:
        raise IchRayError(
            f"{folder}: {found.objective.metric} must be finite in one report at least, got none; are there "
            "positive validation slices?"
        )
    retraining = Retraining(
        trial=trial.number,
        parameters=parameters.model_dump(),
        workers=workers,
        reports=tuple(reports),
        best_images_seen=best.images_seen,
        stopped_early=reports[-1].images_seen < plan.images,
        seconds=time.monotonic() - started,
        device=device,
    )
    bundle = _bundle(found, trial, parameters, dataset.image_shape, _state_file(folder, best.images_seen))
    write_json(found.files.retraining, retraining.model_dump(mode="json"))
    remove(folder)
    return bundle


def _plan(found: SearchResult, trial: TrialResult, parameters: Hyperparameters) -> _Plan:
    budget = found.record.space["budget"]
    told: dict[str, Any] = {
        "dataset": found.record.dataset,
        "fingerprint": found.record.fingerprint,
        "parameters": parameters.model_dump(),
        "objective": found.objective.model_dump(),
        "images": BUDGET_FACTOR * int(budget["images"]),
        "report_every": int(budget["report_every"]),
        "seed": trial.seed,
    }
    identity = sha256(json.dumps(told, sort_keys=True).encode())[:12]
    return _Plan(folder=str(found.files.final / f"retraining-{identity}"), **told)


def _fit(plan: _Plan, workers: int, gpus_per_worker: float | None) -> str:
    """Run Ray Train to its end; the device of rank 0."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    from ich_ray.search.preflight import machines

    resources = _resources(machines(), workers, gpus_per_worker)
    # Ray checks that every worker sees its storage, so it lies in the search, which they all see.
    storage = locate(plan.folder) / "ray_train"
    trainer = TorchTrainer(
        _worker,  # type: ignore[arg-type]  # a value may be returned: Result.return_value
        train_loop_config={"plan": plan},
        torch_config=TorchConfig(backend="nccl" if resources["GPU"] >= 1 else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=resources["GPU"] > 0, resources_per_worker=resources),
        run_config=RunConfig(storage_path=str(storage), failure_config=FailureConfig(max_failures=_MAX_FAILURES)),
    )
    try:
        result: Any = trainer.fit()
    except TrainingFailedError as error:
        raise IchRayError(
            f"retrain: the workers must finish within {_MAX_FAILURES} failures, got: "
            f"{str(error).strip().splitlines()[-1]}; retrain again to go on from the newest state"
        ) from error
    finally:
        remove(storage)
    outcome: dict[str, Any] = result.return_value
    if "failure" in outcome:
        raise TrialFailure(*outcome["failure"])
    return str(outcome["device"])


def _resources(found: list[Machine], workers: int, gpus_per_worker: float | None) -> dict[str, float]:
    """What each worker holds: an accelerator where there are any, else an equal share of the CPUs.

    Raises:
        ConfigError: the machines, with those that can still be started, do not hold so many workers.
    """
    gpus = float(any(machine.gpus for machine in found)) if gpus_per_worker is None else gpus_per_worker
    largest = int(max((machine.cpus or 1 for machine in found), default=0))
    for cpus in [1] if gpus else range(largest, 0, -1):
        if 0 < workers <= sum(machine.count * min(machine.fits(cpus, gpus), workers) for machine in found):
            return {"CPU": cpus, "GPU": gpus}
    there = ", ".join(machine.said() for machine in found) or "none"
    raise ConfigError(
        f"--workers: each of 1 or more workers needs a CPU and {gpus:g} GPU of one machine, got {workers} workers and "
        f"{there}; ask for fewer workers"
    )


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """What each worker runs. A failed training is an answer and not an exception: another attempt would fail too."""
    from ray.train import get_context
    from ray.train.torch import get_device

    from ich_ray.model.parallel import Shard

    context = get_context()
    device = get_device()
    try:
        _train(config["plan"], Shard(context.get_world_rank(), context.get_world_size()), device)
    except TrialFailure as failure:
        return {"failure": (failure.reason, failure.detail)}
    return {"device": str(device)}


def _train(plan: _Plan, shard: Any, device: Any) -> None:
    from ich_ray.model.training import Budget, train

    dataset, folder = PreparedDataset.open(plan.dataset, fingerprint=plan.fingerprint), locate(plan.folder)
    objective = Objective.model_validate(plan.objective)
    resume, reports = _newest(folder)
    if _patience_over(reports, objective):
        return
    stream = train(
        Hyperparameters.model_validate(plan.parameters),
        dataset.role("train"),
        dataset.role("validation"),
        budget=Budget(plan.images, plan.report_every),
        seed=plan.seed,
        device=device,
        resume=resume,
        shard=shard,
    )
    for progress in stream:
        reports.append(_report(progress))
        if shard.rank == 0:
            _keep(folder, progress.state(), reports, objective)
        if _patience_over(reports, objective):
            return


def _report(progress: Progress) -> Report:
    metrics: dict[str, float | None] = {**progress.metrics}
    return Report(images_seen=progress.images_seen, metrics=metrics, elapsed_s=progress.elapsed_s, time=time.time())


def _best(reports: list[Report], objective: Objective) -> Report | None:
    return TrialResult(number=0, objective=objective, parameters={}, reports=tuple(reports)).best_report


def _patience_over(reports: list[Report], objective: Objective) -> bool:
    best = _best(reports, objective)
    after = [report for report in reports if best is None or report.images_seen > best.images_seen]
    return len(after) >= PATIENCE


def _state_file(folder: UPath, images_seen: int) -> UPath:
    return folder / f"state-{images_seen:012d}.safetensors"


def _keep(folder: UPath, state: TrainingState, reports: list[Report], objective: Objective) -> None:
    """Write this report; of the states only the newest and the best stay."""
    state.save(_state_file(folder, state.images_seen))
    write_json(folder / "reports.json", [report.model_dump(mode="json") for report in reports])
    best = _best(reports, objective)
    kept = {_state_file(folder, state.images_seen).name}
    if best is not None:
        kept.add(_state_file(folder, best.images_seen).name)
    for file in [*folder.glob("state-*.safetensors")]:
        if file.name not in kept:
            file.unlink()


def _read_reports(folder: UPath) -> list[Report]:
    file = folder / "reports.json"
    return [Report.model_validate(report) for report in read_json(file)] if file.exists() else []


def _newest(folder: UPath) -> tuple[TrainingState | None, list[Report]]:
    """The newest state that can be read and has its report, with the reports up to it; else a fresh start."""
    from ich_ray.model.training import TrainingState

    reports = _read_reports(folder)
    for last in range(len(reports), 0, -1):
        file = _state_file(folder, reports[last - 1].images_seen)
        if file.exists():
            try:
                return TrainingState.load(file), reports[:last]
            except IntegrityError as error:
                say(f"  {error}")
    return None, []


@contextmanager
def _told(folder: UPath, metric: str) -> Iterator[None]:
    """Say each report of the workers as it reaches the folder."""
    done = threading.Event()
    seen = len(_read_reports(folder))
    if seen:
        say(f"  going on after {seen} reports of an earlier attempt")

    def follow() -> None:
        told, last = seen, False
        while not last:
            last = done.wait(_POLL_S)
            for report in _read_reports(folder)[told:]:
                told += 1
                value = report.metrics.get(metric)
                figure = "undefined" if value is None else f"{value:.4f}"
                say(f"  retrain: {report.images_seen:,} images, {metric} {figure}, {report.elapsed_s:.0f} s")

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _bundle(
    found: SearchResult,
    trial: TrialResult,
    parameters: Hyperparameters,
    image_shape: tuple[int, int, int],
    state: UPath,
) -> Bundle:
    from ich_ray.final.bundle import WEIGHTS_FILE, Bundle
    from ich_ray.model.networks import build_network
    from ich_ray.model.training import TrainingState

    manifest = PreparedDataset.open(found.record.dataset).manifest
    network = build_network(parameters.model_copy(update={"weights": "none"}), image_shape)
    network.load_state_dict(TrainingState.load(state).part("weights"))
    opened = read_card(found.files.bundle).openings if (found.files.bundle / "card.json").exists() else 0
    card = Card(
        name=f"{found.record.name}-{trial.number:05d}",
        created=time.time(),
        architecture=parameters.architecture,
        parameters=parameters,
        image_shape=image_shape,
        size=manifest.size,
        windows=manifest.windows,
        dataset=DatasetNote(fingerprint=manifest.fingerprint, roles={**manifest.roles}),
        search=SearchNote(
            name=found.record.name,
            trial=trial.number,
            trials=len(found.trials),
            objective=found.objective.metric,
            selection_value=trial.value,
        ),
        openings=opened,  # of the same test patients, by the bundle that this one replaces
        weights=WeightsNote(file=WEIGHTS_FILE, sha256=""),
        versions=_versions(),
    )
    bundle = Bundle(network, card)
    bundle.save(found.files.bundle)
    return bundle


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    import ich_ray

    return {
        "ich_ray": ich_ray.__version__,
        **{name: version(name) for name in ("torch", "torchvision", "ray", "numpy")},
    }
