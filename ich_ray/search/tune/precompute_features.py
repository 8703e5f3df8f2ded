"""Features of frozen layers for all trials that freeze the same, by Ray Data, before a search starts.

Which layers, and what they make of an image, is known to training/frozen_features.py; where it is kept to
data/feature_store.py. This counts what a search would share, asks for room, and hands out files of features to be made.
A file that is there whole is not made again, and of two searches at once one waits for the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ich_ray.data.dataset import PreparedDataset, SliceSet
from ich_ray.data.feature_store import FeatureFiles, check_room, kept_shapes
from ich_ray.data.folds import development_rows
from ich_ray.errors import ConfigError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.progress import bar, say
from ich_ray.ray_data import map_in_order
from ich_ray.storage import file_lock, is_held

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pyarrow as pa

    from ich_ray.model.networks import Network

__all__ = ["check_trunks", "compute", "share_trunks", "shareable"]


@dataclass(frozen=True)
class _Job:
    """What every task is told; plain values, as it travels through Ray."""

    dataset: str
    fingerprint: str
    parameters: dict[str, Any]
    key: str
    gpu: bool


def shareable(trials: Iterable[Hyperparameters]) -> list[Hyperparameters]:
    """One draw for each trunk that trials share: frozen layers of the same weights.

    Those weights do not depend on a trial's seed, and images are not augmented.
    """
    alike = [trial for trial in trials if not trial.is_augmented and _has_trunk(trial)]
    return list({tuple(trial.network.items()): trial for trial in alike}.values())


def _has_trunk(trial: Hyperparameters) -> bool:
    from ich_ray.training.frozen_features import is_divisible

    return trial.weights != "none" and is_divisible(trial)


def check_trunks(dataset: PreparedDataset, trials: Iterable[Hyperparameters]) -> None:
    """Check that features of these trials can be kept, without the weights that tell whose they are.

    Those of the same shape that are there are taken for theirs.

    Raises:
        ConfigError: they do not fit on the disk of the dataset, or it lies on object storage.
    """
    from ich_ray.model.networks import build_network
    from ich_ray.training.frozen_features import feature_shape

    kept, slices = kept_shapes(dataset), len(development_rows(dataset))
    for parameters in shareable(trials):
        bare = parameters.model_copy(update={"weights": "none", "unfreeze_from": "all"})
        shape = feature_shape(build_network(bare, dataset.image_shape), parameters, dataset.image_shape)
        if shape not in kept:
            check_room(dataset, slices, shape)


def share_trunks(dataset: PreparedDataset, trials: Iterable[Hyperparameters], gpus: bool = False) -> list[str]:
    """Compute what is missing of the features that these trials share; returns their keys.

    Ray must be connected.

    Raises:
        ConfigError: they do not fit on the disk of the dataset, it cannot be written, or weights are not there.
        IchRayError: a task failed; what is there is kept.
    """
    from ich_ray.model.networks import build_network
    from ich_ray.training.frozen_features import feature_shape, trunk_key

    trials, keys = list(trials), []
    if any(trial.is_augmented and _has_trunk(trial) for trial in trials):
        say("trials with augment or erase share no features: their frozen layers compute every changed image")
    for parameters in shareable(trials):
        network = build_network(parameters, dataset.image_shape)
        key, shape = trunk_key(network, parameters, dataset), feature_shape(network, parameters, dataset.image_shape)
        keys.append(key)
        files = FeatureFiles.of(dataset, key)
        if files.manifest.exists():
            continue
        needed = check_room(dataset, len(files.rows), shape)
        say(f"frozen layers of {parameters.architecture} below {parameters.unfreeze_from}: {needed / 1e9:.2f} GB, once")
        job = _Job(str(dataset.files.root), dataset.manifest.fingerprint, parameters.model_dump(), key, gpus)
        try:
            _alone(files, job, dataset, shape)
        except OSError as error:
            raise ConfigError(
                f"{files.root}: the folder of the dataset must take features of frozen layers, got "
                f"{error.strerror or error}; make it writable or leave out --share-trunks"
            ) from None
    return keys


def _alone(files: FeatureFiles, job: _Job, dataset: PreparedDataset, shape: tuple[int, ...]) -> None:
    """Compute under the lock of the key, or wait for whoever does."""
    if is_held(files.lock):
        say("  another search computes them, waiting for it")
    with file_lock(files.lock, "features of frozen layers", wait=True):
        if not files.manifest.exists():
            compute(files, job)
            files.finish(dataset, shape)


def compute(files: FeatureFiles, job: _Job) -> None:
    """Every file of a key that is not there yet."""
    missing = [number for number in range(files.count) if not files.block(number).exists()]
    with bar("Frozen layers", files.count, "files") as advance:
        done = files.count - len(missing)
        for _ in _mapped(job, missing) if missing else ():
            done += 1
            advance(done)


def _mapped(job: _Job, numbers: list[int]) -> Iterator[int]:
    items = [{"number": number} for number in numbers]
    rule, hint = f"{job.dataset}: features of frozen layers must be computed", "run again, whole files are kept"
    for table in map_in_order(items, _made, job, rule=rule, hint=hint, gpus=1 if job.gpu else 0):
        yield from table["number"].to_pylist()


def _made(job: _Job, item: dict[str, int]) -> pa.Table:
    """The number of a file, once it is there."""
    import pyarrow as pa

    make_file(job, item["number"])
    return pa.table({"number": [item["number"]]})


def make_file(job: _Job, number: int) -> None:
    """One file of features, written whole or not at all."""
    from ich_ray.training.frozen_features import as_features

    dataset, network, parameters = _opened(job)
    files = FeatureFiles.of(dataset, job.key)
    features = as_features(network, parameters, SliceSet(dataset, files.rows_of(number)))
    files.write(number, np.ascontiguousarray(features))


@lru_cache(maxsize=1)
def _network(dataset: str, fingerprint: str, told: str, key: str, gpu: bool) -> tuple[PreparedDataset, Network]:
    """Built once a process, and refused where its frozen weights are not those that were asked for."""
    import torch

    from ich_ray.model.networks import build_network
    from ich_ray.training.frozen_features import trunk_key

    opened = PreparedDataset.open(dataset, fingerprint=fingerprint)
    parameters = Hyperparameters.model_validate_json(told)
    network = build_network(parameters, opened.image_shape)
    if (found := trunk_key(network, parameters, opened)) != key:
        raise ConfigError(
            f"weights: every machine must have the same file of {parameters.architecture}, got features {found} "
            f"instead of {key}; copy the file to all"
        )
    return opened, network.to("cuda" if gpu and torch.cuda.is_available() else "cpu")


def _opened(job: _Job) -> tuple[PreparedDataset, Network, Hyperparameters]:
    parameters = Hyperparameters.model_validate(job.parameters)
    dataset, network = _network(job.dataset, job.fingerprint, parameters.model_dump_json(), job.key, job.gpu)
    return dataset, network, parameters
