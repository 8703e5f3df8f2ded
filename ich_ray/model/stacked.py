"""Convolutions as they are listed, one after another, then everything flattened into dense layers.

The form of networks in many tutorials, and of all candidates of report B: filters that do not double, a kernel and a
pool for each block, no normalization but that of the input. Knows one draw and the shape of an image; pixel
normalization and freezing are in networks.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ich_ray.errors import ConfigError

if TYPE_CHECKING:
    from ich_ray.model.hyperparameters import Hyperparameters

__all__ = ["StackedBody"]

# Weights of the first dense layer alone take 4 GB from here on, and Adam keeps two more of each.
_MOST_WEIGHTS = 1 << 30


class StackedBody(nn.Module):
    """Blocks of convolution, ReLU and max-pooling, then dense layers, then one logit.

    Raises:
        ConfigError: a block leaves no pixel, or more weights than anything holds.
    """

    def __init__(self, parameters: Hyperparameters, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict()
        channels, side = image_shape[0], image_shape[1]
        if parameters.input_batch_norm:
            self.blocks["stem"] = nn.BatchNorm2d(channels)
        for number, (kernel, pool) in enumerate(parameters.kernels_and_pools, 1):
            block = _block(parameters, channels, kernel, pool)
            self.blocks[f"block{number}"] = block
            channels, side = parameters.filters, _side(parameters, side, kernel) // pool
            if side < 1:
                raise ConfigError(
                    f"convolutions: a pixel must be left after each block, got none after {kernel}/{pool}, block "
                    f"{number} of {parameters.convolutions} on {image_shape[1]} px; list fewer or smaller ones"
                )
        self.head = nn.Sequential(nn.Flatten(), *_dense(parameters, channels * side * side))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        for block in self.blocks.values():
            pixels = block(pixels)
        logits: torch.Tensor = self.head(pixels)
        return logits


def _side(parameters: Hyperparameters, side: int, kernel: int) -> int:
    return side if parameters.padding == "same" else side - kernel + 1


def _block(parameters: Hyperparameters, channels: int, kernel: int, pool: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, parameters.filters, kernel, padding=parameters.padding), nn.ReLU()]
    if parameters.dropout_before_pool:
        layers.append(nn.Dropout(parameters.dropout_before_pool))
    layers.append(nn.MaxPool2d(pool))
    if parameters.dropout_after_pool:
        layers.append(nn.Dropout(parameters.dropout_after_pool))
    return nn.Sequential(*layers)


def _dense(parameters: Hyperparameters, features: int) -> list[nn.Module]:
    if features * parameters.dense > _MOST_WEIGHTS:
        raise ConfigError(
            f"dense: at most {_MOST_WEIGHTS:,} weights of a layer must hold, got {features:,} pixels of all filters "
            f"times {parameters.dense} units; use larger pools, more blocks or smaller images"
        )
    layers: list[nn.Module] = []
    for _ in range(parameters.dense_layers if parameters.dense else 0):
        layers += [nn.Linear(features, parameters.dense), nn.ReLU()]
        if parameters.dropout_dense:
            layers.append(nn.Dropout(parameters.dropout_dense))
        features = parameters.dense
    return [*layers, nn.Dropout(parameters.dropout), nn.Linear(features, 1)]
