"""The sequential CNN: convolutions as they are listed, then everything flattened into dense layers.

In files it is called `stacked_cnn`. The form of networks in many tutorials, and of all candidates of report B: filters
that do not double, a kernel and a pool for each block, no normalization but that of the input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ich_ray.errors import ConfigError
from ich_ray.model.architectures.base import Architecture
from ich_ray.model.fields import OwnFields, Probability

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from ich_ray.model.fields import NetworkFields

__all__ = ["SEQUENTIAL_CNN", "SequentialFields"]

# Weights of the first dense layer alone take 4 GB from here on, and Adam keeps two more of each.
_MOST_WEIGHTS = 1 << 30


class SequentialFields(OwnFields):
    """What no other architecture reads.

    Attributes:
        convolutions: kernel/pool of each block, such as `6/3,3/2,3/2`, or `none`.
        padding: `same` keeps the sides through a convolution, `valid` takes the kernel less one from them.
        input_batch_norm: batch normalization of the pixels before the first block.
        dense_layers: how many hidden layers of `dense` units there are.
        dropout_before_pool: probability of dropping a pixel of a filter between ReLU and pooling.
        dropout_after_pool: the same behind the pooling.
        dropout_dense: the same behind each hidden dense layer.
    """

    convolutions: str = Field(default="3/2,3/2", pattern=r"^(none|[1-9]\d?/[1-9]\d?(,[1-9]\d?/[1-9]\d?){0,7})$")
    padding: Literal["same", "valid"] = "same"
    input_batch_norm: bool = False
    dense_layers: int = Field(default=1, ge=1, le=8)
    dropout_before_pool: Probability = 0.0
    dropout_after_pool: Probability = 0.0
    dropout_dense: Probability = 0.0

    @property
    def kernels_and_pools(self) -> list[tuple[int, int]]:
        """Sides of the convolution and of the pooling of each block."""
        blocks = () if self.convolutions == "none" else self.convolutions.split(",")
        sides = [tuple(map(int, block.split("/"))) for block in blocks]
        return [(kernel, pool) for kernel, pool in sides]

    def sides(self, side: int) -> Iterator[int]:
        """Pixels of a side after each block."""
        for kernel, pool in self.kernels_and_pools:
            side = (side if self.padding == "same" else side - kernel + 1) // pool
            yield side


class _SequentialCNN(Architecture):
    own = SequentialFields
    stage_fields = ("convolutions",)

    def build(self, parameters: NetworkFields, input_shape: tuple[int, int, int]) -> nn.Module:
        from torch import nn  # a second that reading fields and stages does not need

        from ich_ray.model.architectures.layers import BlockNetwork

        self.check(parameters, input_shape)
        own, channels = SequentialFields.of(parameters), input_shape[0]
        blocks: dict[str, nn.Module] = {}
        if own.input_batch_norm:
            blocks["stem"] = nn.BatchNorm2d(channels)
        for number, (kernel, pool) in enumerate(own.kernels_and_pools, 1):
            blocks[f"block{number}"] = _block(own, channels, parameters.filters, kernel, pool)
            channels = parameters.filters
        dense = _dense(own, parameters, _features(parameters, input_shape))
        return BlockNetwork(blocks, nn.Identity(), nn.Sequential(nn.Flatten(), *dense))

    def stages(self, parameters: NetworkFields) -> dict[str, tuple[str, ...]]:
        count = len(SequentialFields.of(parameters).kernels_and_pools)
        names = ("stem", *(f"block{number + 1}" for number in range(count)))
        return {**{name: (f"blocks.{name}",) for name in names}, "head": ("head",)}

    def check(self, parameters: NetworkFields, input_shape: tuple[int, int, int]) -> None:
        own = SequentialFields.of(parameters)
        for number, (side, sides) in enumerate(zip(own.sides(input_shape[1]), own.kernels_and_pools, strict=True), 1):
            if side < 1:
                raise ConfigError(
                    f"convolutions: a pixel must be left after each block, got none after {sides[0]}/{sides[1]}, block "
                    f"{number} of {own.convolutions} on {input_shape[1]} px; list fewer or smaller ones"
                )
        features = _features(parameters, input_shape)
        if features * parameters.dense > _MOST_WEIGHTS:
            raise ConfigError(
                f"dense: at most {_MOST_WEIGHTS:,} weights of a layer must hold, got {features:,} pixels of all "
                f"filters times {parameters.dense} units; use larger pools, more blocks or smaller images"
            )


def _features(parameters: NetworkFields, input_shape: tuple[int, int, int]) -> int:
    """Pixels of all filters that reach the dense layers."""
    *_, side = (input_shape[1], *SequentialFields.of(parameters).sides(input_shape[1]))
    blocks = SequentialFields.of(parameters).kernels_and_pools
    return (parameters.filters if blocks else input_shape[0]) * side * side


def _block(own: SequentialFields, channels: int, filters: int, kernel: int, pool: int) -> nn.Sequential:
    from torch import nn

    layers: list[nn.Module] = [nn.Conv2d(channels, filters, kernel, padding=own.padding), nn.ReLU()]
    if own.dropout_before_pool:
        layers.append(nn.Dropout(own.dropout_before_pool))
    layers.append(nn.MaxPool2d(pool))
    if own.dropout_after_pool:
        layers.append(nn.Dropout(own.dropout_after_pool))
    return nn.Sequential(*layers)


def _dense(own: SequentialFields, parameters: NetworkFields, features: int) -> list[nn.Module]:
    from torch import nn

    layers: list[nn.Module] = []
    for _ in range(own.dense_layers if parameters.dense else 0):
        layers += [nn.Linear(features, parameters.dense), nn.ReLU()]
        if own.dropout_dense:
            layers.append(nn.Dropout(own.dropout_dense))
        features = parameters.dense
    return [*layers, nn.Dropout(parameters.dropout), nn.Linear(features, len(parameters.predicted_labels))]


SEQUENTIAL_CNN = _SequentialCNN()
