"""The chosen hyperparameters once more, longer and on any number of workers, through Ray Train.

The training (distributed.py) stands in `SEARCH/final/retraining-<identity>/`, where the identity is a hash of the draw,
the data and the budget, so that the same one goes on. When all is done the best weights become the bundle and the
folder is removed. Nothing is unpickled from the search.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError, IchRayError, IntegrityError
from ich_ray.final.card import LIMITATIONS, Card, DatasetNote, SearchNote, WeightsNote, read_card
from ich_ray.final.checkpoints import best_report, read_reports, state_file
from ich_ray.final.distributed import Plan, fit
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.state import TrainingState
from ich_ray.progress import say
from ich_ray.results import Report, SearchResult, Setup, TrialResult, open_search
from ich_ray.runtime import connected
from ich_ray.storage import Location, Record, locate, read_json, remove, sha256, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upath import UPath

    from ich_ray.data.dataset import Placement
    from ich_ray.final.bundle import Bundle

__all__ = ["Retraining", "chosen_trial", "retrain"]

# Times the budget of a search. The rate decays with epochs and not towards an end, so a winner's curve simply goes on;
# a search stops it where ranking was cheap. Twice is room for that, and patience ends it sooner when nothing improves.
BUDGET_FACTOR = 2
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
    setup: Setup | None = None


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
    search: Location,
    *,
    workers: int = 1,
    slices: int | None = None,
    epochs: int | None = None,
    gpus_per_worker: float | None = None,
    placement: Placement = "auto",
    address: str | None = None,
) -> Bundle:
    """Train the chosen trial's hyperparameters again, with early stopping on the validation slices.

    Same seed as the trial, up to twice its budget, and the weights of the best report are kept. The batch size is that
    of all workers together, so their number does not change what is learned. Writes retraining.json and the bundle,
    which is not calibrated yet.

    Args:
        search: the search folder, on storage that every worker can reach.
        workers: processes that train one network together.
        slices: train on so many, drawn at random with their share of haemorrhage, and measure after each pass.
        epochs: passes at most; given with `slices`.
        gpus_per_worker: one if the cluster has any and this is not given, else as given; 0 trains on CPUs.
        placement: where the images lie while training, see `data.dataset.place`.
        address: of a Ray cluster.

    Raises:
        ConfigError: no search, too many workers, accelerators or slices asked for.
        IchRayError: no completed trial, or the training failed.
    """
    found = open_search(search)
    trial = chosen_trial(found)
    dataset = PreparedDataset.open(found.record.dataset, fingerprint=found.record.fingerprint)
    parameters = _sized(Hyperparameters.model_validate(trial.parameters), dataset, slices, epochs)
    plan = replace(_plan(found, trial, parameters, slices), placement=placement)
    folder = locate(plan.folder)
    say(f"  retraining trial {trial.number} for at most {plan.images:,} images, {workers} worker(s)")
    started = time.monotonic()
    with connected(address), _told(folder, found.objective.metric):
        device, setup = fit(plan, workers, gpus_per_worker)
    reports = read_reports(folder)
    best = best_report(reports, found.objective)
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
        setup=setup,
    )
    bundle = _bundle(found, trial, parameters, dataset, state_file(folder, best.images_seen))
    write_json(found.files.retraining, retraining.model_dump(mode="json"))
    remove(folder)
    return bundle


def _sized(
    parameters: Hyperparameters, dataset: PreparedDataset, slices: int | None, epochs: int | None
) -> Hyperparameters:
    """The parameters with another number of slices to train on, and passes over them."""
    if slices is None and epochs is None:
        return parameters
    if slices is None or epochs is None or slices < 1 or epochs < 1:
        raise ConfigError(
            f"--slices, --epochs: both must be given, at least 1 each, got {slices} and {epochs}; give both or none"
        )
    if slices > (there := dataset.manifest.roles["train"].slices):
        raise ConfigError(f"--slices: at most the {there:,} training slices can be drawn, got {slices:,}; lower it")
    return parameters.model_copy(update={"training_slices": slices, "epochs": epochs})


def _plan(found: SearchResult, trial: TrialResult, parameters: Hyperparameters, slices: int | None) -> Plan:
    budget = found.record.space["budget"]
    images = BUDGET_FACTOR * parameters.images_within(int(budget["images"]))
    told: dict[str, Any] = {
        "dataset": found.record.dataset,
        "fingerprint": found.record.fingerprint,
        "parameters": parameters.model_dump(),
        "objective": found.objective.model_dump(),
        "images": parameters.epochs * parameters.training_slices if slices else images,
        "report_every": slices or int(budget["report_every"]),
        "seed": trial.seed,
    }
    identity = sha256(json.dumps(told, sort_keys=True).encode())[:12]
    return Plan(folder=str(found.files.final / f"retraining-{identity}"), **told)


@contextmanager
def _told(folder: UPath, metric: str) -> Iterator[None]:
    """Say each report of the workers as it reaches the folder."""
    done = threading.Event()
    seen = len(read_reports(folder))
    if seen:
        say(f"  going on after {seen} reports of an earlier attempt")

    def follow() -> None:
        told, last = seen, False
        while not last:
            last = done.wait(_POLL_S)
            for report in read_reports(folder)[told:]:
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
    found: SearchResult, trial: TrialResult, parameters: Hyperparameters, dataset: PreparedDataset, state: UPath
) -> Bundle:
    from ich_ray.final.bundle import WEIGHTS_FILE, Bundle
    from ich_ray.model.networks import build_network

    manifest, image_shape = dataset.manifest, dataset.image_shape
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
        dataset=DatasetNote(fingerprint=manifest.fingerprint, roles={**manifest.roles}, split=manifest.split),
        limitations=(*filter(None, [manifest.leak]), *LIMITATIONS),
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
