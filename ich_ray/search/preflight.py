"""Check resources, dataset and trials before a search starts.

Each check ends in seconds and says what there is and what to change, because Ray would wait for ever instead. Starts
nothing that stays.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ich_ray.cache import lacking_room
from ich_ray.errors import ConfigError
from ich_ray.machines import ask_machines
from ich_ray.model.architectures import architecture_of
from ich_ray.model.input_shape import input_shape
from ich_ray.progress import say
from ich_ray.statistics.metrics import METRICS, POSITIVE_PATIENTS_OF_A_LABEL
from ich_ray.storage import DatasetFiles, is_local, locate, read_json
from ich_ray.vocabulary import SUBTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from upath import UPath

    from ich_ray.data.dataset import PreparedDataset, SliceSet
    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.search.cluster_resources import ClusterResources, Machine
    from ich_ray.search.request import TrialResources
    from ich_ray.trial_records import Objective

__all__ = [
    "Slots",
    "check_machines",
    "check_objective",
    "check_roles",
    "check_trials",
    "check_workers",
    "fitting",
    "is_shareable",
    "plan_slots",
    "room",
]

# It takes the driver 1 ms.
_COUNT_EVERY_S = 5.0


@dataclass(frozen=True)
class Slots:
    """What a trial holds, in how many processes it trains, and how many trials run at a time."""

    cpus: float
    gpus: float
    concurrent: int
    workers: int = 1


def plan_slots(found: list[Machine], wanted: TrialResources) -> Slots:
    """Plan resources of a trial and how many fit; by default a CPU and a GPU a worker.

    It has no GPU where there are none. Asked for `auto` it is as by default; device_kinds.py plans shares of that.

    Raises:
        ConfigError: no machine holds one trial, or its workers do not fit its resources.
    """
    cpus_per_trial, workers_per_trial, concurrent = wanted.cpus_per_trial, wanted.workers_per_trial, wanted.concurrent
    has_gpus = any(machine.gpus for machine in found)
    asked = None if wanted.gpus_per_trial == "auto" else wanted.gpus_per_trial
    gpus = float(max(1, workers_per_trial or 1) * has_gpus if asked is None else asked)
    there = ", ".join(machine.describe() for machine in found) or "none"
    for flag, value in (("--cpus-per-trial", cpus_per_trial or 0), ("--gpus-per-trial", gpus)):
        if value < 0 or not (value <= 1 or float(value).is_integer()):  # so that NaN and infinity are none
            raise ConfigError(f"{flag}: must be 0 or more, a fraction up to 1 or else whole, got {value:g}; correct it")
    workers = _workers(gpus, cpus_per_trial, workers_per_trial)
    cpus_flag = "--workers-per-trial" if cpus_per_trial is None and workers > 1 else "--cpus-per-trial"
    cpus_per_trial = workers if cpus_per_trial is None else cpus_per_trial
    largest = {
        "--gpus-per-trial": (gpus, max((gpus if m.gpus is None else m.gpus for m in found), default=0.0)),
        cpus_flag: (
            cpus_per_trial,
            max((cpus_per_trial if m.cpus is None else m.cpus for m in found), default=0.0),
        ),
    }
    for flag, (asked, most) in largest.items():
        if asked > most:
            raise ConfigError(
                f"{flag}: a trial must fit on one machine, got {asked:g} where the largest has {most:g} ({there}); "
                f"ask for at most {most:g}, or use a cluster that has more"
            )
    if concurrent is not None and concurrent < 1:
        raise ConfigError(f"--concurrent: must be at least 1, got {concurrent}; leave it out for what fits")
    at_a_time = fitting(found, cpus_per_trial, gpus, concurrent)
    if not at_a_time:
        raise ConfigError(
            f"--gpus-per-trial {gpus:g} with --cpus-per-trial {cpus_per_trial:g}: both must fit on one machine, "
            f"got {there}; lower one of them"
        )
    return Slots(cpus_per_trial, gpus, at_a_time, workers)


def fitting(found: list[Machine], cpus: float, gpus: float, most: int | None) -> int:
    """Trials that fit at a time; `most` if that is less, or where nobody knows how many do."""
    count = sum(machine.count * machine.fits(cpus, gpus) for machine in found)
    unknown = any(machine.is_unknown for machine in found)
    return count if most is None else most if unknown else min(most, count)


def room(fleet: ClusterResources, slots: Slots, most: int | None) -> Callable[[int | None], int]:
    """How many trials fit now, at most so many; counted again every few seconds, those that began stay."""
    counted, at_a_time, before = time.monotonic(), slots.concurrent, most
    if most is None and any(machine.is_unknown for machine in fleet.machines()):
        say(
            f"the autoscaler's machines are not known before they come: {at_a_time} trials at a time, each on "
            f"{slots.gpus:g} GPU, and more as they come; --concurrent and --gpus-per-trial say otherwise"
        )

    def now(most: int | None) -> int:
        nonlocal counted, at_a_time, before
        if time.monotonic() - counted >= _COUNT_EVERY_S or most != before:
            counted, before = time.monotonic(), most
            at_a_time = max(1, fitting(fleet.machines(), slots.cpus, slots.gpus, most))
        return at_a_time

    return now


def _workers(gpus: float, cpus: float | None, asked: int | None) -> int:
    """Processes of a trial: one an accelerator, or as many as asked on CPUs."""
    workers = max(1, int(gpus)) if asked is None else asked
    if workers < 1:
        raise ConfigError(f"--workers-per-trial: must be at least 1, got {workers}; leave it out for one a GPU")
    if gpus > 0 and workers != max(1, gpus):
        raise ConfigError(
            f"--workers-per-trial: each worker of a trial must have a GPU of its own, got {workers} with "
            f"--gpus-per-trial {gpus:g}; leave one of them out, or give --gpus-per-trial 0"
        )
    if cpus is not None and (cpus <= 0 or cpus < workers > 1):
        raise ConfigError(
            f"--cpus-per-trial: must be above 0 and at least 1 a worker, got {cpus:g} for {workers}; leave it out"
        )
    return workers


def check_machines(dataset: PreparedDataset, search: UPath | None, witness: str = ".lock") -> None:
    """Every machine that is up must read the dataset and see the search folder, known by a file in it.

    Where the dataset is fetched, there must be room for its copies.

    Args:
        dataset: of the search.
        search: its folder; None where there is none yet.
        witness: the file.

    Raises:
        ConfigError: one does not, named.
    """
    seen = str(search / witness) if search is not None and is_local(search) else None
    ask_machines(_look, str(dataset.files.root), dataset.manifest.fingerprint, seen, dataset.images_bytes)


def _look(dataset: str, fingerprint: str, witness: str | None, images_bytes: int) -> str:
    """What is wrong with this machine's view, empty if nothing."""
    try:
        manifest = DatasetFiles(locate(dataset)).manifest
        found = read_json(manifest)["fingerprint"] if manifest.exists() else "no dataset.json"
    except Exception as error:  # noqa: BLE001  (credentials, mounts, permissions: all mean the same here)
        found = f"{type(error).__name__}"
    if found != fingerprint:
        return f"{dataset}: every machine must read this dataset ({fingerprint}), got {found}"
    if witness and not os.path.exists(witness):  # noqa: PTH110  (a plain string from another machine)
        return f"{os.path.dirname(witness)}: every machine must see the search folder, got none"  # noqa: PTH120
    return "" if is_local(locate(dataset)) else lacking_room(locate(dataset), fingerprint, images_bytes)


def check_roles(dataset: PreparedDataset) -> None:
    """Trials are trained and ranked, so both roles need positive and negative slices.

    Raises:
        ConfigError: one of them has none.
    """
    dataset.check_level()
    for role in ("train", "validation"):
        counts = dataset.manifest.roles.get(role)
        slices, positives = (counts.slices, counts.positives) if counts else (0, 0)
        if not 0 < positives < slices:
            raise ConfigError(
                f"{dataset.files.root}: {role} must have positive and negative slices, got {positives} positive of "
                f"{slices}; prepare a dataset with more patients"
            )


def check_objective(validation: SliceSet, objective: Objective) -> None:
    """Check that validation patients can measure what trials are ranked by.

    Raises:
        ConfigError: it is of a subtype that too few of them have.
    """
    label = METRICS[objective.metric].label
    if not label:
        return
    found = {name: validation.positive_patients(name) for name in (SUBTYPES if label == "all" else (label,))}
    most, where = max(found, key=lambda name: found[name]), validation.dataset.files.root
    if found[most] < POSITIVE_PATIENTS_OF_A_LABEL:
        raise ConfigError(
            f"objective: {objective.metric} needs {POSITIVE_PATIENTS_OF_A_LABEL} validation patients with "
            f"{'a subtype' if label == 'all' else label}, got {found[most]} with {most} in {where}; "
            "choose a metric of `any`, or prepare more patients"
        )


def check_trials(
    dataset: PreparedDataset, trials: Iterable[Hyperparameters], *, fetch: bool = True, folds: bool = False
) -> None:
    """Check what trials need beyond a space: weights, enough slices, neighbors, heads, large images.

    Args:
        dataset: of the search.
        trials: of its space, see `sampled`.
        fetch: weights of the architectures' own sources, if they are not there.
        folds: whether networks are trained outside folds, of which `check_folds_of_search` says how many slices they
            have, instead of on the training patients.

    Raises:
        ConfigError: one of them is missing, or a network or its resolution does not fit the images; named.
        IntegrityError: a file of weights is damaged.
    """
    from ich_ray.model.pretrained_weights import check_weights
    from ich_ray.training.targets import known_targets

    found = list(trials)
    slices = dataset.manifest.roles["train"].slices
    most = max((parameters.training_slices for parameters in found), default=0)
    if most > slices and not folds:
        raise ConfigError(
            f"training_slices: at most the {slices:,} training slices of {dataset.files.root} can be drawn, got "
            f"{most:,}; lower it, or prepare more patients"
        )
    if seeing := [trial for trial in found if trial.neighbors]:
        _check_neighbors(seeing[0], dataset)
    _check_views(found, dataset)
    if of_subtypes := [trial for trial in found if trial.labels == "all"]:
        known_targets(of_subtypes[0], dataset.role("train"))
    for parameters in sorted(found, key=lambda trial: -trial.resolution)[:1]:  # before any weights are fetched
        input_shape(parameters, dataset.image_shape)
    named = [parameters for parameters in found if fetch or _reads_file(parameters)]
    for architecture, weights in sorted({(parameters.architecture, parameters.weights) for parameters in named}):
        check_weights(architecture, weights)
    for parameters in _distinct(found, weights="none"):
        architecture_of(parameters).check(parameters, input_shape(parameters, dataset.image_shape))
    for parameters in _distinct(trial for trial in found if _reads_file(trial)):
        _load_file(parameters, dataset.image_shape)


def check_workers(dataset: PreparedDataset, trials: Iterable[Hyperparameters], workers: int) -> None:
    """Check that several workers can train the network of each trial as one would.

    Raises:
        ConfigError: they cannot; named.
    """
    if workers == 1:
        return
    from ich_ray.model.outline import outline
    from ich_ray.training.data_parallel import check_shareable

    for parameters in _distinct(trials, weights="none"):
        check_shareable(outline(parameters, dataset.image_shape))


@lru_cache(maxsize=1024)
def is_shareable(parameters: Hyperparameters, image_shape: tuple[int, int, int]) -> bool:
    """Whether several workers can train the network as one would."""
    from ich_ray.model.outline import outline
    from ich_ray.training.data_parallel import check_shareable

    try:
        check_shareable(outline(parameters, image_shape))
    except ConfigError:
        return False
    return True


def _check_neighbors(parameters: Hyperparameters, dataset: PreparedDataset) -> None:
    """The dataset must have neighbors to show; says how many slices have none."""
    from ich_ray.data.neighbors import without_neighbors
    from ich_ray.training.network_inputs import check_neighbors

    check_neighbors(parameters, dataset)
    slices = dataset.role("train")
    if alone := without_neighbors(dataset.neighbors, slices.rows):
        say(f"neighbors: {alone:,} of {len(slices):,} training slices have none, they stand in for them themselves")


def _check_views(trials: Iterable[Hyperparameters], dataset: PreparedDataset) -> None:
    """The dataset must know what trials show of images; says how many slices have no head."""
    import numpy as np

    from ich_ray.training.network_inputs import check_view

    shown = {(trial.crop, trial.scale): trial for trial in trials if trial.shows_part}
    for trial in shown.values():
        check_view(trial, dataset)
    if "head" not in {crop for crop, _ in shown}:
        return
    rows = dataset.role("train").rows
    if unknown := int(np.isnan(dataset.head_boxes[rows]).any(1).sum()):
        say(f"crop: {unknown:,} of {len(rows):,} training slices have no head in their series, they are shown whole")


def _reads_file(trial: Hyperparameters) -> bool:
    return trial.weights not in {"none", *architecture_of(trial).sources}


def _distinct(trials: Iterable[Hyperparameters], **same: str) -> list[Hyperparameters]:
    """One trial for each network, whatever is frozen and whatever is the `same`; the largest first.

    Its message says most of what must change.
    """
    found = {}
    for trial in trials:
        whole = trial.model_copy(update={"unfreeze_from": "all", **same})
        found[tuple(whole.network.items())] = whole
    return sorted(found.values(), key=_size, reverse=True)


def _size(trial: Hyperparameters) -> int:
    """Larger for networks that are larger in every respect."""
    return math.prod(1 + value for value in trial.network.values() if isinstance(value, int))


def _load_file(parameters: Hyperparameters, image_shape: tuple[int, int, int]) -> None:
    """Make the network without its tensors, and compare them with those of the file."""
    import torch

    from ich_ray.model.networks import build_network

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that weights of a file are not copied to where nothing is
        build_network(parameters, image_shape)
