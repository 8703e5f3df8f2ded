"""Averaged weights: how old they are, and who is validated, kept and bundled."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.feature_store import FeaturesInMemory
from ich_ray.data.folds import development_rows
from ich_ray.errors import ConfigError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import Network, build_network
from ich_ray.statistics.metrics import average_precision
from ich_ray.training.averaging import WeightAverage, kept_share
from ich_ray.training.frozen_features import as_features
from ich_ray.training.inference import predict_logits
from ich_ray.training.loop import Progress, TrainingBudget, TrainingState, train
from tests.prepared import make_dataset

PLAIN = Hyperparameters(batch_size=16, learning_rate=3e-3, dropout=0.2, filters=4, dense=0)
AVERAGED = PLAIN.model_copy(update={"ema": 0.9})


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_dataset(tmp_path_factory.mktemp("prepared") / "dataset", size=32)


@pytest.mark.parametrize(
    ("seen", "images", "share"),
    [
        (0, 64, 0.0),  # the first weights of all count for nothing
        (64, 64, 0.5**9),
        (576, 64, 0.9**9),
        (10**9, 64, 0.99),
        (10**9, 128, 0.99**2),
        (10**9, 16, 0.99**0.25),
    ],
)
def test_a_step_keeps_a_share_of_the_past_that_its_images_say(seen: int, images: int, share: float) -> None:
    assert kept_share(0.99, seen, images) == pytest.approx(share)


@pytest.mark.parametrize("seen", [0, 640, 10**6])
def test_small_steps_keep_as_much_as_a_large_one(seen: int) -> None:
    small = [kept_share(0.999, seen + done, 32) for done in range(0, 128, 32)]
    assert math.prod(small) == pytest.approx(kept_share(0.999, seen, 128))


class Line(nn.Module):
    """Its weight is what a test says; its counter counts steps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([5.0], dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))


def averages(batch: int, ema: float, images: int) -> tuple[list[float], WeightAverage]:
    """Of a weight that is the square root of the images seen; after every 128 images."""
    network = Line()
    average, found = WeightAverage(network, ema), []  # type: ignore[arg-type]
    for seen in range(0, images, batch):
        network.weight.data.fill_(math.sqrt(seen + batch))
        network.mean.fill_(-math.sqrt(seen + batch))
        network.steps += 1
        average.update(seen, batch)
        if (seen + batch) % 128 == 0:
            found.append(average.network.weight.item())
    return found, average


def reference(ema: float, images: int) -> float:
    """Weights are kept image by image, their mean taken at the end."""
    kept = np.ones(images)
    for seen in range(1, images):
        kept[:seen] *= min(ema ** (1 / 64), (seen / (seen + 1)) ** 9)
        kept[seen] = 1 - min(ema ** (1 / 64), (seen / (seen + 1)) ** 9)
    return float(kept @ np.sqrt(np.arange(1, images + 1)))


@pytest.mark.parametrize("ema", [0.5, 0.9])  # old from image 830, and from 5,460 on
def test_the_average_is_of_as_many_images_whatever_the_batch(ema: float) -> None:
    (small, average), (large, _) = averages(32, ema, 2560), averages(128, ema, 2560)
    expected = [reference(ema, images) for images in range(128, 2561, 128)]
    # Weights at the ends of batches are older by half a batch than those of each image.
    np.testing.assert_allclose(small[4:], expected[4:], rtol=0.02)
    np.testing.assert_allclose(large[4:], expected[4:], rtol=0.06)
    assert small[-1] < math.sqrt(2560)
    assert average.network.mean.item() == pytest.approx(-small[-1])
    assert int(average.network.steps) == 80


def trained(
    dataset: PreparedDataset,
    parameters: Hyperparameters = AVERAGED,
    budget: TrainingBudget = TrainingBudget(200, 100),  # noqa: B008  (frozen)
    **more: Any,
) -> list[tuple[Progress, TrainingState]]:
    roles = (dataset.role("train"), dataset.role("validation"))
    return [(progress, progress.state()) for progress in train(parameters, *roles, budget=budget, seed=3, **more)]


def test_the_average_is_validated_and_bundled_and_changes_no_step(dataset: PreparedDataset) -> None:
    plain, averaged = trained(dataset, PLAIN)[-1], trained(dataset)[-1]
    weights, average = averaged[1].part("weights"), averaged[1].part("average")
    assert averaged[0].metrics["train_loss"] == plain[0].metrics["train_loss"]
    assert weights.keys() == average.keys()
    assert all(torch.equal(weights[name], value) for name, value in plain[1].part("weights").items())
    assert not torch.equal(weights["body.head.1.weight"], average["body.head.1.weight"])
    assert averaged[1].validated_weights.keys() == average.keys()
    network = build_network(PLAIN, dataset.image_shape)
    network.load_state_dict(averaged[1].validated_weights)
    validation = dataset.role("validation")
    found = average_precision(validation.labels, predict_logits(network, validation, PLAIN))
    assert found == pytest.approx(averaged[0].metrics["average_precision"])
    assert plain[1].part("average") == {}
    assert torch.equal(plain[1].validated_weights["body.head.1.weight"], weights["body.head.1.weight"])


def test_the_average_is_that_of_the_weights_after_each_step(
    dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[int, dict[str, torch.Tensor]]] = []
    update = WeightAverage.update
    networks: list[Network] = []
    start = WeightAverage.__init__

    def begin(self: WeightAverage, network: Network, ema: float) -> None:
        networks.append(network)
        start(self, network, ema)

    def spy(self: WeightAverage, seen: int, images: int) -> None:
        kept.append((images, {name: value.clone() for name, value in networks[0].state_dict().items()}))
        update(self, seen, images)

    monkeypatch.setattr(WeightAverage, "__init__", begin)
    monkeypatch.setattr(WeightAverage, "update", spy)
    average = trained(dataset)[-1][1].part("average")
    seen, expected = 0, dict(kept[0][1])
    for images, weights in kept:
        share = min(0.9 ** (images / 64), (seen / (seen + images)) ** 9)
        for name, value in weights.items():
            moves = value.is_floating_point()
            expected[name] = share * expected[name] + (1 - share) * value if moves else value
        seen += images
    assert seen == 200
    for name, value in average.items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_a_resume_goes_on_with_the_average(dataset: PreparedDataset, tmp_path: Path) -> None:
    (_, first), (whole, last) = trained(dataset)
    first.save(tmp_path / "state.safetensors")
    ((resumed, state),) = trained(dataset, resume=TrainingState.load(tmp_path / "state.safetensors"))
    assert resumed.metrics == whole.metrics
    assert all(torch.equal(state.tensors[name], value) for name, value in last.tensors.items())
    with pytest.raises(ConfigError, match="must belong to the same parameters"):
        trained(dataset, PLAIN, resume=first)
    lost = {name: value for name, value in first.tensors.items() if not name.startswith("average.")}
    with pytest.raises(ConfigError, match="averaged weights where training averages, and else none, got 0 averaged"):
        trained(dataset, resume=TrainingState(lost, first.numbers))


def test_the_average_of_a_network_on_features_is_validated_on_features(dataset: PreparedDataset) -> None:
    frozen = AVERAGED.model_copy(update={"architecture": "resnet18", "unfreeze_from": "head"})
    torch.manual_seed(3)
    network, rows = build_network(frozen, dataset.image_shape), development_rows(dataset)
    array = as_features(network, frozen, type(dataset.role("train"))(dataset, rows))
    budget = TrainingBudget(32, 16)
    layers = trained(dataset, frozen, budget)
    quick = trained(dataset, frozen, budget, features=FeaturesInMemory(rows, array))
    for (one, _), (other, _) in zip(layers, quick, strict=True):
        assert one.metrics == pytest.approx(other.metrics, rel=1e-4)
