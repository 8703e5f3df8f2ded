"""Inputs of a network: for each slice, the images of one or more rows of a dataset.

Its channels are those of `model.input_shape`; both change together. Rows and columns are as prepared: augmentation or
the network reduces them. What comes with a slice, such as its neighbors in the series, need not belong to the slices
that train or validate.

Array shapes: images are uint8 `[n, channels, rows, columns]`, inputs `[n, k * channels, rows, columns]` of `k` images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ich_ray.data.image_store import place

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from ich_ray.data.dataset import SliceSet
    from ich_ray.data.image_store import ImageStore
    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.vocabulary import Placement

__all__ = ["NetworkInputs", "input_rows", "place_inputs"]


def input_rows(
    parameters: Hyperparameters,  # noqa: ARG001  (no hyperparameter says so far that an input is more than its slice)
    slices: SliceSet,
) -> NDArray[np.int64]:
    """Rows of slices.parquet whose images make up the input of each slice, int64 `[n, k]`."""
    return slices.rows[:, None]


class NetworkInputs:
    """The inputs of some slices, taken in batches.

    Attributes:
        where: `device` when all images lie in accelerator memory, else `host`.
        held_bytes: of accelerator memory that they take for good.
    """

    def __init__(self, store: ImageStore, rows: NDArray[np.int64]) -> None:
        self._store, self._rows = store, rows
        self.where, self.held_bytes = store.where, store.held_bytes

    def take(self, positions: NDArray[np.int64]) -> torch.Tensor:
        """The inputs of the slices at `positions`, on the device; the images of each one beside each other."""
        rows = self._rows.take(positions, axis=0)
        images = self._store.take(rows.reshape(-1))
        if rows.shape[1] == 1:
            return images
        return images.view(len(rows), rows.shape[1] * images.shape[1], *images.shape[2:])


def place_inputs(
    parameters: Hyperparameters,
    slices: SliceSet,
    device: torch.device,
    where: Placement = "auto",
    *,
    taken_bytes: int = 0,
    trials: int = 1,
) -> NetworkInputs:
    """Inputs of `slices` for a network of these parameters, from images where `place` puts them."""
    rows = input_rows(parameters, slices)
    return NetworkInputs(place(slices.dataset, rows, device, where, taken_bytes=taken_bytes, trials=trials), rows)
