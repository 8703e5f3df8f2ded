"""Features of a bundle's network for all slices but those of test patients, by Ray Data.

What they are is known to model/pooled_features.py, how they are kept to data/sequence_features.py: here in a folder
for each bundle and dataset. A part that is there whole is not made again, and of two commands at once one waits for the
other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.data.dataset import PreparedDataset, SliceSet
from ich_ray.data.sequence_features import SequenceFeatureFiles, SequenceFeatures, sequence_features_key
from ich_ray.errors import ConfigError
from ich_ray.progress import bar, say
from ich_ray.ray_data import map_in_order
from ich_ray.storage import SearchFiles, file_lock, is_held, locate
from ich_ray.training.sequence_set import SequenceSet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa
    from upath import UPath

    from ich_ray.bundle.bundle import Bundle
    from ich_ray.bundle.card import Card
    from ich_ray.model.pooled_features import FeatureNetwork
    from ich_ray.vocabulary import Role

__all__ = [
    "check_features",
    "compute_features",
    "feature_files",
    "features_key",
    "open_features",
    "outdated",
    "read_set",
]

# Test patients are read when `evaluate` opens them.
_ROLES: tuple[Role, ...] = ("train", "validation", "calibration")
_NAMED_BY = 16  # of the key, in the name of a folder
_NAME = re.compile(rf"[0-9a-f]{{{_NAMED_BY}}}")


@dataclass(frozen=True)
class _Job:
    """What every task is told; plain values, as it travels through Ray."""

    bundle: str
    dataset: str
    fingerprint: str
    search: str
    key: str


def feature_files(search: SearchFiles, dataset: PreparedDataset, card: Card) -> SequenceFeatureFiles:
    """Where what the network of a card makes of a dataset lies, or is to lie, for the trials of a search."""
    return _files(search, dataset, features_key(card, dataset))


def features_key(card: Card, dataset: PreparedDataset) -> str:
    """Of what a network makes of the images of a dataset."""
    return sequence_features_key(card.weights.sha256, card.parameters, dataset.manifest.fingerprint, card.tta)


def _files(search: SearchFiles, dataset: PreparedDataset, key: str) -> SequenceFeatureFiles:
    rows = np.sort(np.concatenate([dataset.role(role).rows for role in _ROLES]))
    return SequenceFeatureFiles(search.features / key[:_NAMED_BY], key, dataset.manifest.fingerprint, rows)


def outdated(search: SearchFiles, files: SequenceFeatureFiles) -> list[str]:
    """Names of folders with features of other bundles; what else lies beside them is not ours."""
    found = search.features.iterdir() if search.features.exists() else ()
    return sorted(folder.name for folder in found if _NAME.fullmatch(folder.name) and folder.name != files.root.name)


def check_features(search: SearchFiles, files: SequenceFeatureFiles, hint: str) -> None:
    """Refuse a folder with features of another bundle or dataset; `hint` says what to do with it.

    Raises:
        ConfigError: they are of others.
    """
    if others := outdated(search, files):
        raise ConfigError(
            f"{search.root}: its features must be of this bundle and dataset, got others ({', '.join(others)} instead "
            f"of {files.root.name}); {hint}"
        )


def open_features(search: SearchFiles, dataset: PreparedDataset, key: str) -> SequenceFeatures:
    """The features that a trial reads.

    Raises:
        ConfigError: they are not there.
    """
    files = _files(search, dataset, key)
    features = SequenceFeatures.open(files)
    if features is None:
        raise ConfigError(
            f"{files.root}: features of this bundle must be there, got none; run `ich-ray sequence` again"
        )
    return features


def read_set(slices: SliceSet, features: SequenceFeatures, labels: Sequence[str]) -> SequenceSet:
    """Slices with their features, as a sequence model learns from them; `labels` has `any` last."""
    return SequenceSet.of(slices.dataset, slices.rows, features.of_rows(slices.rows), labels, features.files.key)


def compute_features(files: SequenceFeatureFiles, bundle: UPath, dataset: PreparedDataset, search: SearchFiles) -> None:
    """Compute what is missing of the features. Ray must be connected.

    Raises:
        ConfigError: their folder cannot be written, or the bundle on another machine is another one.
        IchRayError: a task failed; whole parts are kept.
    """
    if files.manifest.exists():
        return
    where = str(dataset.files.root), dataset.manifest.fingerprint, str(search.root)
    try:
        _alone(files, _Job(str(bundle), *where, files.key))
    except OSError as error:
        raise ConfigError(
            f"{files.root}: features of slices must be written there, got {error.strerror or error}; make room, or "
            "make it writable"
        ) from None


def _alone(files: SequenceFeatureFiles, job: _Job) -> None:
    """Compute under the lock of the features, or wait for whoever does."""
    if is_held(files.lock):
        say("  another command computes the features, waiting for it")
    with file_lock(files.lock, "features of slices", wait=True):
        if files.manifest.exists():
            return
        missing = [number for number in range(files.count) if not files.is_there(number)]
        say(f"  features of {len(files.rows):,} slices, once: {len(missing)} of {files.count} parts to make")
        with bar("Features", files.count, "parts") as advance:
            done = files.count - len(missing)
            for _ in _mapped(job, missing) if missing else ():
                done += 1
                advance(done)
        files.finish()


def _mapped(job: _Job, numbers: list[int]) -> Iterator[int]:
    from ich_ray.search.cluster_resources import ClusterResources

    items = [{"number": number} for number in numbers]
    rule, hint = f"{job.bundle}: features of slices must be computed", "run again, whole parts are kept"
    gpus = int(any(machine.gpus for machine in ClusterResources().machines()))
    for table in map_in_order(items, _made, job, rule=rule, hint=hint, gpus=gpus):
        yield from table["number"].to_pylist()


def _made(job: _Job, item: dict[str, int]) -> pa.Table:
    """The number of a part, once it is there."""
    import pyarrow as pa

    make_part(job, item["number"])
    return pa.table({"number": [item["number"]]})


def make_part(job: _Job, number: int) -> None:
    """One part of the features, written whole or not at all."""
    from ich_ray.training.feature_pass import predict_features

    dataset, bundle, network = _opened(job)
    files = _files(SearchFiles(locate(job.search)), dataset, job.key)
    slices = SliceSet(dataset, files.rows_of(number))
    logits, features = predict_features(network, slices, bundle.card.parameters, bundle.device)
    files.write(number, features, logits)


@lru_cache(maxsize=1)
def _opened(job: _Job) -> tuple[PreparedDataset, Bundle, FeatureNetwork]:
    """Once a process, and refused where the bundle is not the one that was asked for."""
    from ich_ray.bundle.bundle import load_bundle
    from ich_ray.model.pooled_features import FeatureNetwork

    dataset = PreparedDataset.open(job.dataset, fingerprint=job.fingerprint)
    bundle = load_bundle(locate(job.bundle))
    if (found := features_key(bundle.card, dataset)) != job.key:
        raise ConfigError(
            f"{job.bundle}: every machine must see the same bundle, got features {found[:12]} instead of "
            f"{job.key[:12]}; put it on storage that all of them share"
        )
    return dataset, bundle, FeatureNetwork(bundle.model, bundle.card.input_shape).eval()
