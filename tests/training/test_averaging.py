"""The seam for averaged weights: who is validated, kept and bundled."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.feature_store import FeaturesInMemory
from ich_ray.data.folds import development_rows
from ich_ray.errors import ConfigError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import Network, build_network
from ich_ray.statistics.metrics import average_precision
from ich_ray.training.frozen_features import as_features
from ich_ray.training.inference import predict_logits
from ich_ray.training.loop import Parts, Progress, TrainingBudget, TrainingState, train
from tests.prepared import make_dataset

QUICK = Hyperparameters(batch_size=16, learning_rate=3e-3, dropout=0.2, filters=4, dense=0)


class Half:
    """A test's own average: half of the way to the newest weights in 32 images."""

    def __init__(self, network: Network) -> None:
        self.network = copy.deepcopy(network)

    def update(self, trained: Network, images: int) -> None:
        with torch.no_grad():
            for own, new in zip(self.network.state_dict().values(), trained.state_dict().values(), strict=True):
                own.copy_(own.lerp(new, 1 - 0.5 ** (images / 32)) if own.is_floating_point() else new)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_dataset(tmp_path_factory.mktemp("prepared") / "dataset", size=32)


def trained(
    dataset: PreparedDataset,
    parts: Parts | None,
    parameters: Hyperparameters = QUICK,
    budget: TrainingBudget = TrainingBudget(200, 100),  # noqa: B008  (frozen)
    **more: object,
) -> list[tuple[Progress, TrainingState]]:
    roles, keys = (dataset.role("train"), dataset.role("validation")), {"budget": budget, "seed": 3}
    stream = train(parameters, *roles, parts=parts, **keys, **more)  # type: ignore[arg-type]
    return [(progress, progress.state()) for progress in stream]


def test_the_average_is_validated_and_bundled_and_changes_no_step(dataset: PreparedDataset) -> None:
    plain, averaged = trained(dataset, None)[-1], trained(dataset, Parts(averaging=Half))[-1]
    weights, average = averaged[1].part("weights"), averaged[1].part("average")
    assert averaged[0].metrics["train_loss"] == plain[0].metrics["train_loss"]
    assert weights.keys() == average.keys()
    assert all(torch.equal(weights[name], value) for name, value in plain[1].part("weights").items())
    assert not torch.equal(weights["body.head.1.weight"], average["body.head.1.weight"])
    assert averaged[1].validated_weights.keys() == average.keys()
    network = build_network(QUICK, dataset.image_shape)
    network.load_state_dict(averaged[1].validated_weights)
    validation = dataset.role("validation")
    found = average_precision(validation.labels, predict_logits(network, validation, QUICK))
    assert found == pytest.approx(averaged[0].metrics["average_precision"])
    assert plain[1].part("average") == {}
    assert torch.equal(plain[1].validated_weights["body.head.1.weight"], weights["body.head.1.weight"])


def test_a_resume_goes_on_with_the_average(dataset: PreparedDataset, tmp_path: Path) -> None:
    parts = Parts(averaging=Half)
    (_, first), (whole, last) = trained(dataset, parts)
    first.save(tmp_path / "state.safetensors")
    ((resumed, state),) = trained(dataset, parts, resume=TrainingState.load(tmp_path / "state.safetensors"))
    assert resumed.metrics == whole.metrics
    assert all(torch.equal(state.tensors[name], value) for name, value in last.tensors.items())
    with pytest.raises(ConfigError, match=r"averaged weights where training averages, and else none, got [1-9]"):
        trained(dataset, None, resume=first)
    with pytest.raises(ConfigError, match="else none, got 0 averaged tensors"):
        trained(dataset, parts, resume=trained(dataset, None)[0][1])


def test_the_average_of_a_network_on_features_is_validated_on_features(dataset: PreparedDataset) -> None:
    frozen = QUICK.model_copy(update={"architecture": "resnet18", "unfreeze_from": "head"})
    torch.manual_seed(3)
    network, rows = build_network(frozen, dataset.image_shape), development_rows(dataset)
    array = as_features(network, frozen, type(dataset.role("train"))(dataset, rows))
    parts, budget = Parts(averaging=Half), TrainingBudget(32, 16)
    layers = trained(dataset, parts, frozen, budget)
    quick = trained(dataset, parts, frozen, budget, features=FeaturesInMemory(rows, array))
    for (one, _), (other, _) in zip(layers, quick, strict=True):
        assert one.metrics == pytest.approx(other.metrics, rel=1e-4)
