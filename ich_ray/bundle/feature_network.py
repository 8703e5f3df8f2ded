"""A network that gives logits and, in the same pass, what goes into its last layer: features.

Made of the modules of the network, of which only those on the way to the last layer are other objects. So it holds no
weights of its own, threads may share it, and it can be exported.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ich_ray.bundle.tta import with_tta
from ich_ray.errors import ConfigError
from ich_ray.model.input_shape import input_shape
from ich_ray.training.inference import EVALUATION_BATCH, batch_logits, in_batches
from ich_ray.training.network_inputs import place_inputs

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from ich_ray.bundle.card import Card
    from ich_ray.data.dataset import SliceSet
    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.model.networks import Network

__all__ = ["FeatureReader", "with_features"]


class WithInput(nn.Module):
    """A linear layer that gives its outputs and, behind them, its inputs: `[n, labels + d]`."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.layer(features).flatten(1), features.flatten(1)], 1)


def with_features(
    network: Network, parameters: Hyperparameters, image_shape: tuple[int, int, int], features: int
) -> Network:
    """A network in evaluation mode that gives float32 `[n, labels + features]`: logits, then features.

    Raises:
        ConfigError: it ends in no layer of weights, or has other features.
    """
    path = _last_layer(network, parameters, image_shape)
    if (found := network.get_submodule(path).weight.shape[1]) != features:  # type: ignore[union-attr, index]
        raise ConfigError(f"sequence: features must be as many as {found} of the network, got {features}")
    made: Network = _with(network, path.split(".")).eval()
    return made


class FeatureReader:
    """Logits and features of slices of a dataset, as a bundle with a sequence model computes them.

    Attributes:
        width: how many a slice has.
        labels: how many the network answers.
    """

    def __init__(self, network: Network, card: Card, device: torch.device) -> None:
        self._card, self._device = card, device
        parameters, image_shape = card.parameters, card.image_shape
        path = _last_layer(network, parameters, image_shape)
        self.width = int(network.get_submodule(path).weight.shape[1])  # type: ignore[union-attr, arg-type, index]
        self.labels = len(parameters.predicted_labels)
        seeing = with_features(network, parameters, image_shape, self.width)
        self._seeing = with_tta(seeing, card.tta, parameters, image_shape[0])

    def __call__(self, slices: SliceSet) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits `[n, labels]` and features `[n, width]`, in their order."""
        inputs = place_inputs(self._card.parameters, slices, self._device, "host")
        both = batch_logits(self._seeing, in_batches(inputs, np.arange(len(slices)), EVALUATION_BATCH))
        both = both.reshape(len(slices), -1)
        return both[:, : self.labels], both[:, self.labels :]


def _last_layer(network: nn.Module, parameters: Hyperparameters, image_shape: tuple[int, int, int]) -> str:
    """The path of the layer of weights that is called last."""
    called: list[str] = []
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}

    def note(name: str) -> Any:
        return lambda *_: called.append(name)

    hooks = [module.register_forward_hook(note(name)) for name, module in layers.items()]
    black = torch.zeros((1, *input_shape(parameters, image_shape)), dtype=torch.uint8)
    was_training = network.training
    try:
        with torch.inference_mode():
            network.eval()(black.to(next(network.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
        network.train(was_training)
    if not called or layers[called[-1]].weight.shape[0] != len(parameters.predicted_labels):
        raise ConfigError(
            f"architecture: {parameters.architecture} must end in a linear layer for a sequence model, got another; "
            "use another architecture, or --sequence 0"
        )
    return called[-1]


def _with(module: Any, path: list[str]) -> Any:
    if not path:
        return WithInput(module)
    outer = copy.copy(module)
    outer._modules = {**module._modules, path[0]: _with(module._modules[path[0]], path[1:])}
    return outer
