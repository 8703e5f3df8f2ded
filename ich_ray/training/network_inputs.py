"""Inputs of a network: for each slice its image, and those of its neighbors in the series.

Its channels are those of `model.input_shape`; both change together. Rows and columns are as prepared: augmentation or
the network reduces them. Where `crop` or `scale` shows a part of each image, that part is cut out, and reduced in the
same pass; neighbors are cut as the slice is, whose series they share. Neighbors are rows of the dataset: they need not
belong to the slices that train or validate. As they are of one patient, who has one role, they belong to no other role.

Array shapes: images are uint8 `[n, channels, rows, columns]`, inputs those of `[k]` images beside each other, float32
where they are cut; rectangles as in `model.resampling`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ich_ray.data.image_store import as_index, place
from ich_ray.data.neighbors import MOST_NEIGHBORS, placed_rows
from ich_ray.data.shown_rectangles import plausible_sides, shown_rectangles
from ich_ray.errors import ConfigError
from ich_ray.model.input_shape import input_channels, input_shape

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from ich_ray.data.dataset import PreparedDataset, SliceSet
    from ich_ray.data.image_store import ImageStore
    from ich_ray.model.fields import NetworkFields
    from ich_ray.vocabulary import Placement

__all__ = [
    "NetworkInputs",
    "check_inputs",
    "check_neighbors",
    "check_view",
    "check_whole_series",
    "input_rectangles",
    "input_rows",
    "place_inputs",
]


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


def input_rectangles(parameters: NetworkFields, slices: SliceSet) -> NDArray[np.float32] | None:
    """What is shown of the image of each slice, `[n, 4]`; None where all of it is.

    Raises:
        ConfigError: the dataset does not say where heads lie, or how large images are.
    """
    if not parameters.shows_part:
        return None
    check_view(parameters, slices.dataset)
    return shown_rectangles(parameters, slices.dataset.head_boxes[slices.rows], slices.dataset.sides_mm[slices.rows])


def check_inputs(parameters: NetworkFields, dataset: PreparedDataset) -> None:
    """Refuse what the dataset cannot show: neighbors, heads or sizes that it does not know.

    Raises:
        ConfigError: it cannot.
    """
    check_neighbors(parameters, dataset)
    check_view(parameters, dataset)


def check_view(parameters: NetworkFields, dataset: PreparedDataset) -> None:
    """Refuse `crop` and `scale` where the dataset does not know heads or sizes.

    Raises:
        ConfigError: it does not.
    """
    where = dataset.files.root
    if parameters.crop == "head" and not np.isfinite(dataset.head_boxes).any():
        raise ConfigError(
            f"crop: head needs the place of the head in slices, got none in {where}; prepare it again, into "
            "another folder, or use crop: none"
        )
    if parameters.scale == "mm" and not plausible_sides(dataset.sides_mm).any():
        raise ConfigError(
            f"scale: mm needs the size of images in mm, got none in {where}; prepare it again, into "
            "another folder, from files with PixelSpacing, or use scale: pixels"
        )


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


def check_whole_series(dataset: PreparedDataset) -> None:
    """Refuse slices whose series a bundle with a sequence model cannot be given whole.

    Raises:
        ConfigError: roles were drawn by slice, so that other slices of a series may be of another role.
    """
    if dataset.manifest.split == "slice":
        raise ConfigError(
            f"{dataset.files.root}: a bundle with a sequence model needs roles drawn by patient, got --split slice, "
            "where slices of one series have several roles; prepare it without, or use a bundle without sequence model"
        )


class NetworkInputs:
    """The inputs of some slices, taken in batches.

    `rows` are those of the images of each slice, `[n, k]`, or of its features, `[n]`; `rectangles`, what is shown of
    them, on their device, and `side` how large.

    Attributes:
        where: `device` when all images lie in accelerator memory, else `host`.
        held_bytes: of accelerator memory that they take for good.
    """

    def __init__(
        self, store: ImageStore, rows: NDArray[np.int64], rectangles: torch.Tensor | None = None, side: int = 0
    ) -> None:
        self._store, self._rows, self._rectangles, self._side = store, rows, rectangles, side
        self.where, self.held_bytes = store.where, store.held_bytes

    def take(self, positions: NDArray[np.int64]) -> torch.Tensor:
        """The inputs of the slices at `positions`, on the device; the images of each one beside each other."""
        from ich_ray.model.resampling import reduced

        images, rectangles = self.take_uncut(positions)
        return images if rectangles is None else reduced(images, self._side, rectangles)

    def take_uncut(self, positions: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The images as prepared, and the rectangle of each that is shown; None where all of it is."""
        images = self._store.take(self._rows.take(positions, axis=0))
        if self._rectangles is None:
            return images, None
        return images, self._rectangles.index_select(0, as_index(positions, self._rectangles.device))

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
    import torch

    rows, of_image = input_rows(parameters, slices), slices.dataset.image_shape[0]
    channels = input_channels(parameters, of_image)
    some = None if min(channels) == of_image else channels
    shown, side = input_rectangles(parameters, slices), input_shape(parameters, slices.dataset.image_shape)[1]
    rectangles = None if shown is None else torch.from_numpy(shown).to(device)
    store = place(slices.dataset, rows, device, where, channels=some, taken_bytes=taken_bytes, trials=trials)
    return NetworkInputs(store, rows, rectangles, side)
