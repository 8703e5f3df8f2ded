"""What a network is given for a slice: its image, or those of its neighbors around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ich_ray.bundle.bundle import Bundle
from ich_ray.bundle.card import Card, DatasetNote, SearchNote
from ich_ray.data.dataset import PreparedDataset, SliceSet
from ich_ray.errors import ConfigError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.input_shape import first_own_channel, input_shape
from ich_ray.model.networks import build_network
from ich_ray.training.frozen_features import as_features, feature_shape, trunk_key
from ich_ray.training.loop import TrainingBudget, train
from ich_ray.training.network_inputs import check_neighbors, input_rows, place_inputs
from ich_ray.trial_records import WeightsNote
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


# Of slices.parquet: four slices of a patient, 5 mm apart. The windows of row 5 and those of what lies around it:
LAYOUTS: dict[tuple[int, str], list[tuple[int, slice]]] = {
    (1, "same"): [(4, slice(3)), (5, slice(3)), (6, slice(3))],
    (1, "first"): [(4, slice(1)), (5, slice(3)), (6, slice(1))],
    (2, "same"): [(5, slice(3)), (4, slice(3)), (5, slice(3)), (6, slice(3)), (7, slice(3))],
    (2, "first"): [(5, slice(1)), (4, slice(1)), (5, slice(3)), (6, slice(1)), (7, slice(1))],
}


def seeing(neighbors: int, windows: str = "same", of: Hyperparameters = QUICK) -> Hyperparameters:
    return Hyperparameters.model_validate({**of.model_dump(), "neighbors": neighbors, "neighbor_windows": windows})


@pytest.mark.parametrize(("neighbors", "windows"), LAYOUTS)
@pytest.mark.parametrize("where", ["host", "device"])
def test_images_of_neighbors_lie_around_those_of_the_slice(
    dataset: PreparedDataset, neighbors: int, windows: str, where: Any
) -> None:
    """Those of rows 4, 6 and 7 are in no slice set."""
    images, parameters = every_image(dataset), seeing(neighbors, windows)
    placed = place_inputs(parameters, SliceSet(dataset, np.array([5, 0])), CPU, where)
    assert placed.where == where
    held = {1: 5, 2: 7}[neighbors]  # rows 0 to 2 and 4 to 7, each once
    assert placed.held_bytes == (held * 3 * 32 * 32 if where == "device" else 0)
    expected = np.concatenate([images[row][planes] for row, planes in LAYOUTS[neighbors, windows]])
    found = placed.take(np.array([1, 0, 0])).numpy()
    assert np.array_equal(found[1], expected)
    assert np.array_equal(found[2], expected)
    own = first_own_channel(parameters, 3)
    assert own == {(1, "same"): 3, (1, "first"): 1, (2, "same"): 6, (2, "first"): 2}[neighbors, windows]
    assert np.array_equal(found[:, own : own + 3], images[[0, 5, 5]])
    assert np.array_equal(found[0, :own], np.concatenate([images[0, : own // neighbors]] * neighbors))
    shape = input_shape(parameters, dataset.image_shape)
    assert found.shape == (3, *shape)
    assert placed.take(np.empty(0, np.int64)).shape == (0, *shape)


def test_more_channels_than_an_image_has_are_not_read(dataset: PreparedDataset) -> None:
    for channels in ((3, 4), (3, 0), (3,), (3, 3, 3)):
        with pytest.raises(ValueError, match="channels must be of the images of a row"):
            dataset.gather(np.array([[0, 1]]), channels=channels)


@pytest.mark.parametrize("windows", ["same", "first"])
def test_training_is_the_same_from_host_and_device(dataset: PreparedDataset, windows: str) -> None:
    roles, budget = (dataset.role("train"), dataset.role("validation")), TrainingBudget(32, 16)
    found = []
    for where in ("host", "device"):
        drawn = seeing(1, windows)
        *_, last = train(drawn, *roles, budget=budget, seed=1, placement=where)  # type: ignore[arg-type]
        found.append((last.metrics, last.state().part("weights")))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(weight, found[1][1][name]) for name, weight in found[0][1].items())
    assert next(iter(found[0][1].values())).shape[1] == {"same": 9, "first": 5}[windows]


def test_a_training_that_is_resumed_sees_the_same_neighbors(dataset: PreparedDataset) -> None:
    drawn = seeing(2, "first").model_copy(update={"augment": 1.0, "training_slices": 16})
    roles, budget = (dataset.role("train"), dataset.role("validation")), TrainingBudget(64, 32)
    first, whole = [(each.metrics, each.state()) for each in train(drawn, *roles, budget=budget, seed=1)]
    (again,) = train(drawn, *roles, budget=budget, seed=1, resume=first[1])
    assert again.metrics == whole[0]
    (other,) = train(
        drawn.model_copy(update={"neighbor_windows": "same"}), *roles, budget=TrainingBudget(64, 64), seed=1
    )
    assert other.metrics != whole[0]


def test_frozen_layers_and_bundles_are_given_the_same(dataset: PreparedDataset) -> None:
    torch.manual_seed(0)
    parameters = seeing(1, "first", FROZEN)
    network, slices = build_network(parameters, dataset.image_shape), SliceSet(dataset, np.array([5, 0, 2]))
    features = as_features(network, parameters, slices)
    assert features.shape[1:] == feature_shape(network, parameters, dataset.image_shape)
    bundle = Bundle(network, card_of(dataset, parameters))
    assert bundle.inputs(slices).shape == (3, 5, 32, 32)
    assert np.allclose(bundle.logits(bundle.inputs(slices)), bundle.slice_logits(slices))
    bundle.check_outputs()


def card_of(dataset: PreparedDataset, parameters: Hyperparameters) -> Card:
    manifest = dataset.manifest
    return Card(
        name="a", created=0, architecture=parameters.architecture, parameters=parameters,
        image_shape=dataset.image_shape, size=32, windows=manifest.windows,
        dataset=DatasetNote(fingerprint=manifest.fingerprint, roles={**manifest.roles}),
        search=SearchNote(name="a", trial=0, trials=1, objective="average_precision", selection_value=None),
        weights=WeightsNote(file="model.safetensors", sha256="0" * 64), versions={},
    )  # fmt: skip


def test_neighbors_need_roles_by_patient(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, patients=16)
    dataset.manifest = dataset.manifest.model_copy(update={"split": "slice"})
    assert input_rows(QUICK, dataset.role("train"))[:2].tolist() == [[0], [1]]
    with pytest.raises(ConfigError, match=r"neighbors: 2 needs roles drawn by patient, got .* with --split slice"):
        input_rows(seeing(2), dataset.role("train"))


@pytest.mark.parametrize("missing", ["position_mm", "series"])
def test_neighbors_need_places_in_series(tmp_path: Path, missing: str) -> None:
    dataset = make_dataset(tmp_path, patients=16)
    nothing = [""] * len(dataset) if missing == "series" else [float("nan")] * len(dataset)
    for table in (
        dataset.slices.drop_columns([missing]),
        dataset.slices.drop_columns([missing]).append_column(missing, [nothing]),
    ):
        pq.write_table(table, str(dataset.files.slices))
        opened = PreparedDataset.open(dataset.files.root)
        with pytest.raises(ConfigError, match="neighbors: 1 needs the series and position of slices, got none"):
            check_neighbors(seeing(1), opened)
        check_neighbors(QUICK, opened)


def test_the_key_of_features_knows_the_input(dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network(FROZEN, dataset.image_shape)
    before = trunk_key(network, FROZEN, dataset)
    monkeypatch.setattr("ich_ray.training.frozen_features.input_shape", lambda *_: (9, 32, 32))
    found = {trunk_key(network, seeing(*layout, FROZEN), dataset) for layout in LAYOUTS}  # type: ignore[arg-type]
    assert len({before, trunk_key(network, FROZEN, dataset), *found}) == 6
