"""What a network is given for a slice: one image today, and as many as `input_rows` names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ich_ray.bundle.bundle import Bundle
from ich_ray.bundle.card import Card, DatasetNote, SearchNote
from ich_ray.data.dataset import PreparedDataset, SliceSet
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network
from ich_ray.results import WeightsNote
from ich_ray.training.frozen_features import as_features, feature_shape, trunk_key
from ich_ray.training.loop import TrainingBudget, train
from ich_ray.training.network_inputs import place_inputs
from tests.prepared import every_image, make_dataset

QUICK = Hyperparameters(filters=4, dense=8, blocks=1, batch_size=16)
FROZEN = Hyperparameters(architecture="mobilenet_v3_small", unfreeze_from="head")
CPU = torch.device("cpu")


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    return make_dataset(tmp_path / "data", patients=16, blocks=3)


def test_an_input_is_the_image_of_its_slice(dataset: PreparedDataset) -> None:
    train = dataset.role("train")
    for where in ("host", "device"):
        placed = place_inputs(QUICK, train, CPU, where)  # type: ignore[arg-type]
        found = placed.take(np.array([3, 0, 7, 7])).numpy()
        assert np.array_equal(found, every_image(dataset)[train.rows[[3, 0, 7, 7]]])
        assert placed.take(np.empty(0, np.int64)).shape == (0, 3, 32, 32)


class TestThreeSlicesAtATime:
    """A slice between the rows before and after it, whoever these belong to."""

    @pytest.fixture(autouse=True)
    def neighbors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def rows_of(_: object, slices: SliceSet) -> np.ndarray[Any, np.dtype[np.int64]]:
            return np.clip(slices.rows[:, None] + [-1, 0, 1], 0, len(slices.dataset) - 1)

        def shape_of(_: object, image: tuple[int, int, int]) -> tuple[int, int, int]:
            return (3 * image[0], *image[1:])

        monkeypatch.setattr("ich_ray.training.network_inputs.input_rows", rows_of)
        for module in ("model.networks", "training.frozen_features", "bundle.card"):
            monkeypatch.setattr(f"ich_ray.{module}.input_shape", shape_of)

    @pytest.mark.parametrize("where", ["host", "device"])
    def test_their_images_lie_beside_each_other(self, dataset: PreparedDataset, where: Any) -> None:
        slices, images = SliceSet(dataset, np.array([5, 0, 2])), every_image(dataset)
        placed = place_inputs(QUICK, slices, CPU, where)
        assert placed.where == where
        assert placed.held_bytes == (7 * 3 * 32 * 32 if where == "device" else 0)  # rows 0 to 6, 0 and 1 more than once
        found = placed.take(np.array([2, 0, 1])).numpy()
        expected = [np.concatenate(images[rows]) for rows in ([1, 2, 3], [4, 5, 6], [0, 0, 1])]
        assert np.array_equal(found, expected)

    def test_training_is_the_same_from_host_and_device(self, dataset: PreparedDataset) -> None:
        roles, budget = (dataset.role("train"), dataset.role("validation")), TrainingBudget(32, 16)
        found = []
        for where in ("host", "device"):
            *_, last = train(QUICK, *roles, budget=budget, seed=1, placement=where)  # type: ignore[arg-type]
            found.append((last.metrics, last.state().part("weights")))
        assert found[0][0] == found[1][0]
        assert all(torch.equal(weight, found[1][1][name]) for name, weight in found[0][1].items())
        assert next(iter(found[0][1].values())).shape[1] == 9

    def test_frozen_layers_and_bundles_are_given_the_same(self, dataset: PreparedDataset) -> None:
        torch.manual_seed(0)
        network, slices = build_network(FROZEN, dataset.image_shape), SliceSet(dataset, np.array([5, 0, 2]))
        features = as_features(network, FROZEN, slices)
        assert features.shape[1:] == feature_shape(network, FROZEN, dataset.image_shape)
        manifest, channels = dataset.manifest, dataset.image_shape
        card = Card(
            name="a", created=0, architecture=FROZEN.architecture, parameters=FROZEN, image_shape=channels, size=32,
            windows=manifest.windows, dataset=DatasetNote(fingerprint=manifest.fingerprint, roles={**manifest.roles}),
            search=SearchNote(name="a", trial=0, trials=1, objective="average_precision", selection_value=None),
            weights=WeightsNote(file="model.safetensors", sha256="0" * 64), versions={},
        )  # fmt: skip
        bundle = Bundle(network, card)
        assert bundle.inputs(slices).shape == (3, 9, 32, 32)
        assert np.allclose(bundle.logits(bundle.inputs(slices)), bundle.slice_logits(slices))
        bundle.check_outputs()


def test_the_key_of_features_knows_the_input(dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network(FROZEN, dataset.image_shape)
    before = trunk_key(network, FROZEN, dataset)
    monkeypatch.setattr("ich_ray.training.frozen_features.input_shape", lambda *_: (9, 32, 32))
    assert trunk_key(network, FROZEN, dataset) != before
