from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from ich_ray.bundle.tta import with_tta
from ich_ray.errors import ConfigError
from ich_ray.model.architectures import ARCHITECTURES
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import Network, build_network
from ich_ray.model.pooled_features import FeatureNetwork

TIMM = ["timm/test_resnet", "timm/test_efficientnet", "timm/test_convnext", "timm/test_vit"]
# Of each architecture the last layer, and how many features go into it.
LAST = {
    "plain_cnn": ("head.3", 64),
    "stacked_cnn": ("head.4", 64),
    "resnet18": ("fc.1", 512),
    "resnet34": ("fc.1", 512),
    "resnet50": ("fc.1", 2048),
    "densenet121": ("classifier.1", 1024),
    "efficientnet_b0": ("classifier.1.1", 1280),
    "convnext_tiny": ("classifier.2.1", 768),
    "mobilenet_v3_small": ("classifier.3.1", 1024),
    "timm/test_resnet": ("fc", 96),
    "timm/test_efficientnet": ("classifier", 256),
    "timm/test_convnext": ("head.fc", 64),
    "timm/test_vit": ("head", 64),
}
SHAPE = (3, 64, 64)


def network(**fields: object) -> Network:
    torch.manual_seed(0)
    return build_network(Hyperparameters.model_validate({"labels": "all", "dropout": 0.5, **fields}), SHAPE)


def images(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def pooled(net: nn.Module, given: torch.Tensor) -> torch.Tensor:
    """Features of images in evaluation mode; a network is left in the mode that it is in."""
    training = net.training
    both = FeatureNetwork(net, SHAPE)
    assert net.training == training
    with torch.inference_mode():
        found: torch.Tensor = both.eval()(given)[1]
    net.train(training)
    return found


@pytest.mark.parametrize("architecture", [*ARCHITECTURES.names(), *TIMM])
def test_features_are_what_the_last_layer_makes_logits_of(architecture: str) -> None:
    net = network(architecture=architecture)
    found = pooled(net.train(), images())
    path, width = LAST[architecture]
    last = [module for module in net.body.modules() if isinstance(module, nn.Linear) and module.out_features == 6][-1]
    assert net.body.get_submodule(path) is last
    assert found.shape == (3, width)
    with torch.inference_mode():
        logits = net.eval()(images())
        assert torch.allclose(linear(found, last.weight, last.bias), logits, atol=1e-5)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("dense", [0, 8])
def test_logits_stand_beside_features_in_one_pass(dense: int) -> None:
    net = network(dense=dense, labels="any").eval()
    both = FeatureNetwork(net, SHAPE)
    with torch.inference_mode():
        logits, features = both(images())
        assert torch.equal(logits, net(images()))
    assert logits.shape == (3,)
    assert features.shape == (3, both.width) == (3, dense or 64)
    assert torch.equal(features, pooled(net, images()))


def test_features_are_the_mean_over_views() -> None:
    net = network().eval()
    mirrored = with_tta(net, ["hflip"], Hyperparameters(), 3)
    expected = (pooled(net, images()) + pooled(net, images().flip(-1))) / 2
    assert torch.allclose(pooled(mirrored, images()), expected, atol=1e-6)


def test_threads_share_one() -> None:
    both, parts = FeatureNetwork(network().eval(), SHAPE), images(12).split(2)

    def told(part: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return both(part)[1]

    expected = [told(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(*pair) for pair in zip(pool.map(told, parts), expected, strict=True))


def test_it_travels_to_another_process() -> None:
    both = FeatureNetwork(network().eval(), SHAPE)
    again = pickle.loads(pickle.dumps(both))  # noqa: S301
    with torch.inference_mode():
        assert torch.equal(again(images())[1], both(images())[1])


def test_it_can_be_exported_for_any_number_of_images() -> None:
    both = FeatureNetwork(network().eval(), SHAPE)
    program = torch.export.export(both, (images(2),), dynamic_shapes=({0: torch.export.Dim("slices")},))
    with torch.inference_mode():
        logits, features = both(images(5))
        exported = program.module()(images(5))
    assert torch.allclose(exported[0], logits, atol=1e-5)
    assert torch.allclose(exported[1], features, atol=1e-5)


class Brightness(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((1, 2, 3)) - self.threshold


def test_of_a_network_the_last_layer_alone_is_asked_and_one_without_layers_is_refused() -> None:
    net = network()
    hooks = {name: len(module._forward_pre_hooks) for name, module in net.named_modules()}
    pooled(net, images())
    asked = {f"body.{LAST['plain_cnn'][0]}": 1}
    assert {name: len(module._forward_pre_hooks) for name, module in net.named_modules()} == hooks | asked
    with pytest.raises(ConfigError, match="must end in a linear layer"):
        pooled(Brightness(), images())
