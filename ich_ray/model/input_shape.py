"""The shape of what the layers of a network see, which need not be that of one image of a dataset.

Which rows of a dataset make up an input is in training/network_inputs.py; both change together. A network is given
them at the size that they were prepared at, and reduces them itself (resampling.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ich_ray.errors import ConfigError

if TYPE_CHECKING:
    from ich_ray.model.fields import NetworkFields

__all__ = ["input_shape"]


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
    return channels, rows, columns
