"""Features of a bundle's network for all slices but those of test patients, by Ray Data.

What they are is known to bundle/feature_network.py, how they are kept to data/sequence_features.py. A file that is
there whole is not made again, and of two commands at once one waits for the other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.data.dataset import PreparedDataset, SliceSet
from ich_ray.data.sequence_features import SequenceFeatureFiles, SequenceFeatures
from ich_ray.errors import ConfigError
from ich_ray.progress import bar, say
from ich_ray.ray_data import map_in_order
from ich_ray.search.cluster_resources import ClusterResources
from ich_ray.storage import SearchFiles, file_lock, is_held, locate, sha256

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from upath import UPath

    from ich_ray.bundle.card import Card
    from ich_ray.bundle.feature_network import FeatureReader
    from ich_ray.vocabulary import Role

__all__ = ["compute_features", "features_key"]

# Test patients are read when `evaluate` opens them.
_ROLES: tuple[Role, ...] = ("train", "validation", "calibration")


@dataclass(frozen=True)
class _Job:
    """What every task is told; plain values, as it travels through Ray."""

    bundle: str
    dataset: str
    fingerprint: str
    folder: str
    key: str


def features_key(card: Card, dataset: PreparedDataset) -> str:
    """Of what a network makes of the images of a dataset: its weights, how they are shown to it, and the images."""
    told = [card.weights.sha256, card.parameters.identity(), list(card.tta), dataset.manifest.fingerprint]
    return sha256(json.dumps(told, sort_keys=True).encode())[:32]


def compute_features(bundle: UPath, dataset: PreparedDataset, search: SearchFiles, key: str) -> SequenceFeatures:
    """What is missing of the features that the trials of a search read. Ray must be connected.

    Raises:
        ConfigError: their folder cannot be written, or the bundle on another machine is another one.
        IchRayError: a task failed; whole files are kept.
    """
    files = _files(search.features, dataset, key)
    if not files.manifest.exists():
        try:
            where = str(dataset.files.root), dataset.manifest.fingerprint, str(search.root)
            _alone(files, _Job(str(bundle), *where, key))
        except OSError as error:
            raise ConfigError(
                f"{files.root}: features of slices must be written there, got {error.strerror or error}; make room, or "
                "make it writable"
            ) from None
    return SequenceFeatures.open(search.features, dataset, key)


def _files(folder: UPath, dataset: PreparedDataset, key: str) -> SequenceFeatureFiles:
    return SequenceFeatureFiles(folder, key, np.sort(np.concatenate([dataset.role(role).rows for role in _ROLES])))


def _alone(files: SequenceFeatureFiles, job: _Job) -> None:
    """Compute under the lock of the features, or wait for whoever does."""
    if is_held(files.lock):
        say("  another command computes the features, waiting for it")
    with file_lock(files.lock, "features of slices", wait=True):
        if files.manifest.exists():
            return
        missing = [number for number in range(files.count) if not files.block(number).exists()]
        say(f"  features of {len(files.slices):,} slices, once: {len(missing)} of {files.count} files to make")
        with bar("Features", files.count, "files") as advance:
            done = files.count - len(missing)
            for _ in _mapped(job, missing) if missing else ():
                done += 1
                advance(done)
        dataset, reader = _opened(job)
        files.finish(dataset, reader.width)


def _mapped(job: _Job, numbers: list[int]) -> Iterator[int]:
    items = [{"number": number} for number in numbers]
    rule, hint = f"{job.bundle}: features of slices must be computed", "run again with --resume, whole files are kept"
    gpus = int(any(machine.gpus for machine in ClusterResources().machines()))
    for table in map_in_order(items, _made, job, rule=rule, hint=hint, gpus=gpus):
        yield from table["number"].to_pylist()


def _made(job: _Job, item: dict[str, int]) -> pa.Table:
    """The number of a file, once it is there."""
    import pyarrow as pa

    make_file(job, item["number"])
    return pa.table({"number": [item["number"]]})


def make_file(job: _Job, number: int) -> None:
    """One file of features, written whole or not at all."""
    dataset, reader = _opened(job)
    files = _files(SearchFiles(locate(job.folder)).features, dataset, job.key)
    files.write(number, reader(SliceSet(dataset, files.rows_of(number))).astype(np.float16))


@lru_cache(maxsize=1)
def _opened(job: _Job) -> tuple[PreparedDataset, FeatureReader]:
    """Once a process, and refused where the bundle is not the one that was asked for."""
    import torch

    from ich_ray.bundle.bundle import load_bundle
    from ich_ray.bundle.feature_network import FeatureReader

    torch.set_num_threads(1)  # a process for each CPU
    dataset = PreparedDataset.open(job.dataset, fingerprint=job.fingerprint)
    bundle = load_bundle(locate(job.bundle))
    if (found := features_key(bundle.card, dataset)) != job.key:
        raise ConfigError(
            f"{job.bundle}: every machine must see the same bundle, got features {found} instead of {job.key}; put it "
            "on storage that all of them share"
        )
    return dataset, FeatureReader(bundle.network, bundle.card, bundle.device)
