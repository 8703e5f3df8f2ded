"""Bytes changed and cut at random in each kind of file: what is read is equal, or the file is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ich_ray.bundle.bundle import Bundle, load_bundle
from ich_ray.bundle.card import Card, DatasetNote, SearchNote
from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.feature_store import FeatureFiles, Features
from ich_ray.data.folds import development_rows
from ich_ray.errors import ConfigError, IntegrityError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network
from ich_ray.model.pretrained_weights import read_weights
from ich_ray.storage import sha256
from ich_ray.training.state import TrainingState
from ich_ray.trial_records import WeightsNote
from tests.prepared import make_dataset

CASES = 30
KEY = "5" * 24
PARAMETERS = Hyperparameters(filters=2, dense=2, blocks=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    dataset = make_dataset(folder / "data", patients=4, size=8, blocks=2)
    files = FeatureFiles.of(dataset, KEY)
    files.write(0, np.arange(4.0 * len(development_rows(dataset)), dtype=np.float32).reshape(-1, 4))
    files.finish(dataset, (4,))
    manifest = dataset.manifest
    card = Card(
        name="a", created=0, architecture="plain_cnn", parameters=PARAMETERS, image_shape=(3, 8, 8), size=8,
        windows=manifest.windows, dataset=DatasetNote(fingerprint=manifest.fingerprint, roles={**manifest.roles}),
        search=SearchNote(name="a", trial=0, trials=1, objective="average_precision", selection_value=None),
        weights=WeightsNote(file="model.safetensors", sha256="0" * 64), versions={},
    )  # fmt: skip
    Bundle(build_network(PARAMETERS, (3, 8, 8)), card).save(folder / "bundle")
    tensors = {"weights.a": torch.arange(6.0), "optimizer.0.step": torch.tensor(3.0)}
    TrainingState(tensors, {"images_seen": 8, "elapsed_s": 1.5, "plan": {"seed": 1}}).save(folder / "a.safetensors")
    save_file({"a": torch.arange(6.0)}, folder / "weights.safetensors")
    return folder


def read_dataset(folder: Path) -> Any:
    found = PreparedDataset.open(folder / "data", verify=True)
    labels = [found.role(role).labels.tolist() for role in ("train", "test")]
    return found.manifest, labels, found.gather(np.arange(len(found))).tobytes()


def read_unverified(folder: Path) -> Any:
    """As a search reads a dataset that is large: pixels are not compared, all that leads to them is."""
    found = PreparedDataset.open(folder / "data")
    return found.gather(np.arange(16)).shape


def read_features(folder: Path) -> Any:
    found = Features.open(PreparedDataset.open(folder / "data"), KEY)
    return None if found is None else found.gather(np.arange(3)).shape


def read_bundle(folder: Path) -> Any:
    found = load_bundle(folder / "bundle")
    return found.card.parameters, found.logits(np.zeros((2, 3, 8, 8), np.uint8)).tolist()


def read_state(folder: Path) -> Any:
    found = TrainingState.load(folder / "a.safetensors")
    return {name: tuple(value.shape) for name, value in found.tensors.items()}, found.images_seen


def read_file_of_weights(folder: Path) -> Any:
    return {name: tuple(value.shape) for name, value in read_weights(str(folder / "weights.safetensors")).items()}


# What a change of a byte may leave: another number in a file without a hash is not found, as it is well formed.
KINDS: list[tuple[str, Callable[[Path], Any], bool]] = [
    ("data/dataset.json", read_unverified, False),
    ("data/slices.parquet", read_unverified, False),
    ("data/blocks/00001.arrow", read_dataset, True),
    ("data/blocks/00001.arrow", read_unverified, True),
    (f"data/features/{KEY}/features.json", read_features, True),
    (f"data/features/{KEY}/00000.arrow", read_features, True),
    ("bundle/card.json", read_bundle, False),
    ("bundle/model.safetensors", read_bundle, True),
    ("a.safetensors", read_state, False),
    ("weights.safetensors", read_file_of_weights, False),
]


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three bytes changed, or the end cut off; headers of binary files are small and are hit as often."""
    if rng.random() < 0.2:
        return data[: int(rng.integers(0, len(data)))]
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        near = int(rng.choice([16, 512, len(data)]))
        place = int(rng.integers(0, min(near, len(data))))
        if rng.random() < 0.3:
            place = len(data) - 1 - place
        out[place] = int(rng.integers(0, 256))
    return bytes(out)


def outcome(read: Callable[[Path], Any], folder: Path) -> tuple[Any, str]:
    """What was read, or why it was not; any other error ends the test."""
    try:
        return read(folder), ""
    except (IntegrityError, ConfigError) as error:
        return None, str(error)


@pytest.mark.parametrize(("name", "read", "equal"), KINDS, ids=[f"{name} {read.__name__}" for name, read, _ in KINDS])
def test_damage_is_named_or_without_effect(
    whole: Path, tmp_path: Path, name: str, read: Callable[[Path], Any], equal: bool
) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    folder = tmp_path / "copy"
    file, data, expected = folder / name, (whole / name).read_bytes(), read(whole)
    rng = np.random.default_rng(sum(name.encode()))
    refused = 0
    for _ in range(CASES):
        file.write_bytes(damaged(data, rng))
        found, said = outcome(read, folder)
        refused += bool(said)
        if said:
            assert str(folder) in said  # the file, or another one that it speaks of
            assert "\n" not in said
        else:
            assert found == expected or not equal
    assert refused > CASES // 10
    file.write_bytes(data)
    assert read(folder) == expected


def test_weights_without_their_hash_are_compared_by_name_type_and_shape(whole: Path, tmp_path: Path) -> None:
    """The sender's card has the sender's hash: then nothing but numbers can differ, and no number is not finite."""
    shutil.copytree(whole / "bundle", tmp_path / "bundle")
    file, card = tmp_path / "bundle" / "model.safetensors", tmp_path / "bundle" / "card.json"
    data, text = file.read_bytes(), card.read_text()
    before, rng = sha256(data), np.random.default_rng(1)
    for _ in range(2 * CASES):
        changed = damaged(data, rng)
        file.write_bytes(changed)
        card.write_text(text.replace(before, sha256(changed)))
        found, said = outcome(load_bundle, tmp_path / "bundle")
        if said:
            assert "model.safetensors: " in said
        else:
            assert all(value.isfinite().all() for value in found.network.state_dict().values())
