"""The shape of a network's input, which need not be that of one image of a dataset.

Which rows of a dataset make up an input is in training/network_inputs.py; both change together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ich_ray.model.fields import NetworkFields

__all__ = ["input_shape"]


def input_shape(
    parameters: NetworkFields,  # noqa: ARG001  (no hyperparameter says so far that an input is more than its slice)
    image_shape: tuple[int, int, int],
) -> tuple[int, int, int]:
    """`(channels, rows, columns)` of what a network of these parameters is given.

    Args:
        parameters: the draw.
        image_shape: of one image of the dataset.
    """
    return image_shape
