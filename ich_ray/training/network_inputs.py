"""Inputs of a network: for each slice its image, and those of its neighbors in the series.

Its channels are those of `model.input_shape`; both change together. Rows and columns are as prepared: augmentation or
the network reduces them. Neighbors are rows of the dataset: they need not belong to the slices that train or validate.
As they are of one patient, who has one role, they belong to no other role.

Array shapes: images are uint8 `[n, channels, rows, columns]`, inputs those of `[k]` images beside each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ich_ray.data.image_store import place
from ich_ray.data.neighbors import MOST_NEIGHBORS, placed_rows
from ich_ray.errors import ConfigError
from ich_ray.model.input_shape import input_channels

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from ich_ray.data.dataset import PreparedDataset, SliceSet
    from ich_ray.data.image_store import ImageStore
    from ich_ray.model.fields import NetworkFields
    from ich_ray.vocabulary import Placement

__all__ = ["NetworkInputs", "check_neighbors", "input_rows", "place_inputs"]


def input_rows(parameters: NetworkFields, slices: SliceSet) -> NDArray[np.int64]:
    """Rows whose images make up the input of each slice, int64 `[n, k]`, itself in the middle.

    Raises:
        ConfigError: the dataset has no neighbors to give.
    """
    if not parameters.neighbors:
        return slices.rows[:, None]
    check_neighbors(parameters, slices.dataset)
    beside = MOST_NEIGHBORS - parameters.neighbors
    return slices.dataset.neighbors[slices.rows, beside : 2 * MOST_NEIGHBORS + 1 - beside]


def check_neighbors(parameters: NetworkFields, dataset: PreparedDataset) -> None:
    """Refuse neighbors that the dataset cannot name, or that may be of another role.

    Raises:
        ConfigError: it cannot, or they are.
    """
    if not parameters.neighbors:
        return
    rule = f"neighbors: {parameters.neighbors} needs"
    if dataset.manifest.split == "slice":
        raise ConfigError(
            f"{rule} roles drawn by patient, got {dataset.files.root} with --split slice, where the neighbors of "
            "training slices are test slices; prepare it without, or use neighbors: 0"
        )
    if not len(placed_rows(dataset.slices)):
        raise ConfigError(
            f"{rule} the series and position of slices, got none in {dataset.files.root}; prepare it again from files "
            "that have them, or use neighbors: 0"
        )


class NetworkInputs:
    """The inputs of some slices, taken in batches.

    `rows` are those of the images of each slice, `[n, k]`, or of its features, `[n]`.

    Attributes:
        where: `device` when all images lie in accelerator memory, else `host`.
        held_bytes: of accelerator memory that they take for good.
    """

    def __init__(self, store: ImageStore, rows: NDArray[np.int64]) -> None:
        self._store, self._rows = store, rows
        self.where, self.held_bytes = store.where, store.held_bytes

    def take(self, positions: NDArray[np.int64]) -> torch.Tensor:
        """The inputs of the slices at `positions`, on the device; the images of each one beside each other."""
        return self._store.take(self._rows.take(positions, axis=0))

    def will_take(self, positions: NDArray[np.int64]) -> None:
        """Have read what `take` will soon be asked for, and return at once."""
        self._store.will_take(self._rows.take(positions, axis=0))


def place_inputs(
    parameters: NetworkFields,
    slices: SliceSet,
    device: torch.device,
    where: Placement = "auto",
    *,
    taken_bytes: int = 0,
    trials: int = 1,
) -> NetworkInputs:
    """Inputs of `slices` for a network of these parameters, from images where `place` puts them."""
    rows, of_image = input_rows(parameters, slices), slices.dataset.image_shape[0]
    channels = input_channels(parameters, of_image)
    some = None if min(channels) == of_image else channels
    store = place(slices.dataset, rows, device, where, channels=some, taken_bytes=taken_bytes, trials=trials)
    return NetworkInputs(store, rows)
