"""The shape of what the layers of a network see, which need not be that of one image of a dataset.

With `neighbors` an input is of several slices: the channels of the one farthest below first, those of the one farthest
above last, by place along the normal. Those of the slice that the network answers for are in the middle. Each slice has
its windows in the order of the dataset, a neighbor the first window alone if `neighbor_windows` says so: with one
neighbor on either side and the windows a, b, c the channels are `abc abc abc` or `a abc a`.

Which rows of a dataset make up an input is in training/network_inputs.py; both change together. A network is given
them at the size that they were prepared at, and reduces them itself (resampling.py).
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from ich_ray.errors import ConfigError

if TYPE_CHECKING:
    from ich_ray.model.fields import NetworkFields

__all__ = ["first_own_channel", "input_channels", "input_shape", "mirrored_channels"]


def input_channels(parameters: NetworkFields, image_channels: int) -> tuple[int, ...]:
    """Of each slice of an input, from below to above; the slice itself is in the middle."""
    of_neighbor = 1 if parameters.neighbor_windows == "first" else image_channels
    beside = (of_neighbor,) * parameters.neighbors
    return (*beside, image_channels, *beside)


def first_own_channel(parameters: NetworkFields, image_channels: int) -> int:
    """Where the channels of the slice itself begin."""
    return sum(input_channels(parameters, image_channels)[: parameters.neighbors])


def mirrored_channels(parameters: NetworkFields, image_channels: int) -> list[int]:
    """The channels of an input in the order of one whose neighbors below and above have changed places."""
    channels = input_channels(parameters, image_channels)
    ends = list(accumulate(channels))
    return [index for end, count in zip(ends[::-1], channels[::-1], strict=True) for index in range(end - count, end)]


def input_shape(parameters: NetworkFields, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """`(channels, rows, columns)` of what the layers of a network of these parameters see.

    Args:
        parameters: the draw.
        image_shape: of one image of the dataset.

    Raises:
        ConfigError: the resolution is larger than the images.
    """
    channels, *sides = image_shape
    if parameters.resolution > min(sides):
        raise ConfigError(
            f"resolution: must be at most the {min(sides)} px that the images were prepared at, got "
            f"{parameters.resolution}; lower it, or prepare larger images"
        )
    rows, columns = (parameters.resolution or side for side in sides)
    return sum(input_channels(parameters, channels)), rows, columns
