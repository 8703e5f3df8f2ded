from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ich_ray.data.dataset import PreparedDataset, SliceSet
from ich_ray.data.feature_store import ROWS_A_FILE, FeatureFiles, Features, check_room
from ich_ray.data.folds import development_rows
from ich_ray.errors import ConfigError, IntegrityError
from ich_ray.model.architectures import ARCHITECTURES
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network
from ich_ray.training.frozen_features import (
    TrainableHead,
    as_features,
    feature_shape,
    is_divisible,
    shared,
    trunk_features,
    trunk_key,
)
from ich_ray.training.inference import predict_logits
from ich_ray.training.loop import TrainingBudget, TrainingState, train
from tests.prepared import make_dataset

FROZEN = Hyperparameters(architecture="resnet18", unfreeze_from="layer4", batch_size=16, learning_rate=1e-3)
SEED = 3


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    return make_dataset(tmp_path / "data", patients=20)


def cut_points() -> list[tuple[str, str]]:
    """The last stages and the head of each family."""
    found = []
    small = [
        f"timm/{name}" for name in ("test_resnet", "test_efficientnet", "test_convnext", "lcnet_050", "regnetx_002")
    ]
    for architecture in (
        "resnet18", "densenet121", "efficientnet_b0", "convnext_tiny", "mobilenet_v3_small", *small,
    ):  # fmt: skip
        names = list(ARCHITECTURES[architecture].stages(Hyperparameters(architecture=architecture)))
        found += [(architecture, name) for name in (names[-3], "head")]
    return found


@pytest.mark.parametrize(("architecture", "stage"), cut_points(), ids=str)
def test_trunk_and_tail_are_the_network(architecture: str, stage: str) -> None:
    parameters = Hyperparameters(architecture=architecture, unfreeze_from=stage)
    if (architecture, stage) == ("densenet121", "head"):
        assert not is_divisible(parameters)
        return
    assert is_divisible(parameters)
    torch.manual_seed(0)
    network = build_network(parameters, (3, 64, 64)).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    features = trunk_features(network, parameters, images)
    assert tuple(features.shape[1:]) == feature_shape(network, parameters, (3, 64, 64))
    tail = TrainableHead(network, parameters).eval()
    with torch.inference_mode():
        torch.testing.assert_close(tail(features), network(images), rtol=1e-5, atol=1e-6)
    trained = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert {id(weight) for weight in tail.parameters()} == {
        id(weight) for name, weight in network.named_parameters() if name in trained
    }


@pytest.mark.parametrize(("architecture", "stage"), cut_points(), ids=str)
def test_training_gives_what_is_trained_the_same_features(architecture: str, stage: str) -> None:
    """ConvNeXt and EfficientNet leave whole blocks out at random while they are trained: not frozen ones."""
    # Dropout of timm is a function just before the head, which the rest after the cut does as well.
    parameters = Hyperparameters(architecture=architecture, unfreeze_from=stage, dropout=0)
    if not is_divisible(parameters):
        return
    torch.manual_seed(0)
    network = build_network(parameters, (3, 64, 64))
    for name, weight in network.named_parameters():
        if name.endswith("layer_scale"):  # ConvNeXt begins with blocks that add next to nothing
            weight.data.fill_(0.5)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    reached: list[torch.Tensor] = []
    first = network.body.get_submodule(ARCHITECTURES[architecture].stages(parameters)[stage][0])
    first.register_forward_pre_hook(lambda _, given: reached.append(given[0].detach()))
    with torch.no_grad():
        network.train()(images)
    torch.testing.assert_close(trunk_features(network, parameters, images), reached[0], rtol=1e-5, atol=0)


def test_what_has_no_trunk() -> None:
    assert not is_divisible(Hyperparameters())
    assert not is_divisible(Hyperparameters(architecture="resnet18"))
    assert not is_divisible(Hyperparameters(architecture="resnet18", unfreeze_from="stem"))
    assert not is_divisible(Hyperparameters(architecture="timm/test_vit", unfreeze_from="blocks.3")), "adds positions"


def computed(dataset: PreparedDataset, parameters: Hyperparameters, seed: int = SEED) -> FeatureFiles:
    """What search/tune/precompute_features.py does, in this process."""
    torch.manual_seed(seed)
    network = build_network(parameters, dataset.image_shape)
    files = FeatureFiles.of(dataset, trunk_key(network, parameters, dataset))
    rows = development_rows(dataset)
    for number, start in enumerate(range(0, len(rows), ROWS_A_FILE)):
        files.write(number, as_features(network, parameters, SliceSet(dataset, rows[start : start + ROWS_A_FILE])))
    files.finish(dataset, feature_shape(network, parameters, dataset.image_shape))
    return files


Reports = list[tuple[dict[str, float], TrainingState]]


def trained(dataset: PreparedDataset, resume: TrainingState | None = None) -> Reports:
    roles = dataset.role("train"), dataset.role("validation")
    budget = TrainingBudget(128, 64)
    return [
        (progress.metrics, progress.state())
        for progress in train(FROZEN, *roles, budget=budget, seed=SEED, resume=resume)
    ]


@pytest.mark.slow
def test_the_same_is_learned_from_features(dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a relative 1e-3 after eight steps: a convolution rounds by the number of images that pass at once."""
    whole = trained(dataset)
    computed(dataset, FROZEN)
    read: list[int] = []
    gather = Features.gather
    monkeypatch.setattr(Features, "gather", lambda self, rows: read.append(len(rows)) or gather(self, rows))
    monkeypatch.setattr(PreparedDataset, "gather", lambda *_: pytest.fail("no image is needed"))
    fast = trained(dataset)
    assert sum(read) > 128
    for (metrics, state), (quick, short) in zip(whole, fast, strict=True):
        assert quick == pytest.approx(metrics, rel=1e-3)
        assert state.tensors.keys() == short.tensors.keys()
        for name, tensor in state.tensors.items():
            torch.testing.assert_close(short.tensors[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    frozen = {name for name in whole[0][1].tensors if name.startswith("weights.body.layer1.")}
    assert all(torch.equal(fast[1][1].tensors[name], whole[0][1].tensors[name]) for name in frozen)


@pytest.mark.slow
def test_a_trial_may_go_on_with_features_that_came_later(dataset: PreparedDataset) -> None:
    whole = trained(dataset)
    computed(dataset, FROZEN)
    (resumed,) = trained(dataset, resume=whole[0][1])
    assert resumed[0] == pytest.approx(whole[1][0], rel=1e-3)


def test_the_key_knows_weights_cut_data_and_size(dataset: PreparedDataset, tmp_path: Path) -> None:
    def key(data: PreparedDataset = dataset, seed: int = SEED, **changes: object) -> str:
        parameters = FROZEN.model_copy(update=changes)
        torch.manual_seed(seed)
        return trunk_key(build_network(parameters, data.image_shape), parameters, data)

    other = make_dataset(tmp_path / "other", patients=20, size=40)
    assert key() == key(dropout=0.1, batch_size=8, learning_rate=0.1)
    assert len({key(), key(seed=4), key(unfreeze_from="layer3"), key(other), key(architecture="resnet34")}) == 5


def test_features_of_other_weights_are_not_found(dataset: PreparedDataset) -> None:
    computed(dataset, FROZEN, seed=SEED + 1)
    torch.manual_seed(SEED)
    assert shared(build_network(FROZEN, dataset.image_shape), FROZEN, dataset) is None


@pytest.mark.parametrize("resolution", [24, 16])
def test_features_are_of_the_resolution(dataset: PreparedDataset, resolution: int) -> None:
    reduced = FROZEN.model_copy(update={"resolution": resolution})
    files = computed(dataset, reduced)
    torch.manual_seed(SEED)
    network = build_network(reduced, dataset.image_shape)
    slices = dataset.role("validation")
    found = shared(network, reduced, dataset)
    assert found is not None
    assert trunk_key(network, reduced, dataset) == files.key
    assert trunk_key(network, FROZEN, dataset) != files.key
    assert trunk_key(network, FROZEN.model_copy(update={"resolution": 32}), dataset) == trunk_key(
        network, FROZEN, dataset
    )
    tail = TrainableHead(network, reduced).eval()
    with torch.inference_mode():
        logits = tail(torch.from_numpy(found.gather(slices.rows)))
    np.testing.assert_allclose(logits, predict_logits(network, slices, reduced), rtol=1e-4, atol=1e-5)


def test_half_written_features_are_not_read(dataset: PreparedDataset) -> None:
    files = computed(dataset, FROZEN)
    files.manifest.unlink()
    assert Features.open(dataset, files.key) is None


def test_damaged_features_are_named(dataset: PreparedDataset) -> None:
    files = computed(dataset, FROZEN)
    files.block(0).write_bytes(b"nothing")
    features = Features.open(dataset, files.key)
    assert features is not None
    with pytest.raises(IntegrityError, match=r"00000.arrow: must hold features"):
        features.gather(development_rows(dataset)[:1])


def test_test_patients_have_no_features(dataset: PreparedDataset) -> None:
    files = computed(dataset, FROZEN)
    features = Features.open(dataset, files.key)
    assert features is not None
    assert features.covers(dataset.role("train").rows)
    assert not features.covers(dataset.role("test").rows)
    assert not features.covers(dataset.role("calibration").rows)
    rows = development_rows(dataset)[[5, 0, 3]]
    assert np.array_equal(features.gather(rows)[1], features.gather(rows[1:2])[0])


def test_no_room_is_said_before_anything_is_written(dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 0, 1_000_000))
    slices = len(development_rows(dataset))
    assert check_room(dataset, slices, (10,)) == slices * 40
    with pytest.raises(ConfigError, match=r"GB must be free for features 256x8x8 of \d+ slices, got 0.0; freeze more"):
        check_room(dataset, slices, (256, 8, 8))


def test_only_given_weights_are_shared_of_images_as_they_are(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ich_ray.search.tune import precompute_features
    from ich_ray.search.tune.precompute_features import share_trunks, shareable

    said: list[str] = []
    monkeypatch.setattr(precompute_features, "say", said.append)

    path = tmp_path / "w.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    given = FROZEN.model_copy(update={"weights": str(path)})
    same, deeper = given.model_copy(update={"dropout": 0.1}), given.model_copy(update={"unfreeze_from": "layer3"})
    assert len(shareable([given, same, deeper, FROZEN, Hyperparameters()])) == 2
    changed = [given.model_copy(update=update) for update in ({"augment": 0.5}, {"erase": 0.5})]
    assert share_trunks(dataset, [Hyperparameters(augment=1.0)]) == []
    assert said == []
    assert share_trunks(dataset, changed) == shareable(changed) == []
    assert said == ["trials with augment or erase share no features: their frozen layers compute every changed image"]
    assert len(shareable([given, *changed, given.model_copy(update={"resolution": 24})])) == 2
