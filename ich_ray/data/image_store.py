"""Where the images of a training lie, and how batches of rows come to its device.

In accelerator memory, all of them, where they fit; else gathered batch after batch from the mapped blocks, read ahead
and copied beside the computation. Which rows make up an input of a network is in training/network_inputs.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.vocabulary import Placement

__all__ = ["ImageStore", "as_index", "fits_device", "place"]

# Of the accelerator memory of a trial; the rest is for weights, activations and gradients.
DEVICE_SHARE = 0.5

# Buffers of page-locked memory: one is filled while one is copied and one waits for its turn.
_STAGES = 3


class ImageStore(Protocol):
    """Images of a dataset, ready to be taken by row."""

    @property
    def where(self) -> Literal["device", "host"]:
        """`device` when they all lie in accelerator memory, else `host`."""

    @property
    def held_bytes(self) -> int:
        """Of accelerator memory that they take for good."""

    def take(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """Images of rows of slices.parquet, uint8 `[len(rows), channels, rows, columns]`, on the device.

        Args:
            rows: int64 `[n]`, or `[n, k]` of k images beside each other.
        """

    def will_take(self, rows: NDArray[np.int64]) -> None:
        """Have what `take` will soon be asked for read from the disk, if it lies there, and return at once."""


class _HostImages:
    """Batches gathered from the mapped blocks."""

    where: Literal["host"] = "host"
    held_bytes = 0

    def __init__(self, dataset: PreparedDataset, device: torch.device, channels: Sequence[int] | None) -> None:
        self._dataset, self._device, self._channels = dataset, device, channels

    def take(self, rows: NDArray[np.int64]) -> torch.Tensor:
        import torch

        return torch.from_numpy(self._dataset.gather(rows, channels=self._channels)).to(self._device)

    def will_take(self, rows: NDArray[np.int64]) -> None:
        self._dataset.read_ahead(rows, self._channels)


class _StagedImages:
    """Batches gathered into page-locked memory and copied beside the computation.

    `take` returns before the copy is over: it waits for nothing but its own buffer, and the computation waits for the
    copy on the device. So while the device works on one batch, the next is gathered and copied, as long as its caller
    reads nothing back in between.
    """

    where: Literal["host"] = "host"
    held_bytes = 0

    def __init__(self, dataset: PreparedDataset, device: torch.device, channels: Sequence[int] | None) -> None:
        import torch

        self._dataset, self._device, self._channels = dataset, device, channels
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers = [torch.empty(0, dtype=torch.uint8) for _ in range(_STAGES)]
        self._copied = [torch.cuda.Event() for _ in range(_STAGES)]  # type: ignore[no-untyped-call]
        self._turn = 0

    def take(self, rows: NDArray[np.int64]) -> torch.Tensor:
        import torch

        turn, self._turn = self._turn, (self._turn + 1) % _STAGES
        self._copied[turn].synchronize()  # the last batch from this buffer is on the device; at once if there was none
        shape = self._dataset.gathered_shape(rows, self._channels)
        if self._buffers[turn].numel() < math.prod(shape):
            self._buffers[turn] = torch.empty(math.prod(shape), dtype=torch.uint8, pin_memory=True)
        staged = self._buffers[turn][: math.prod(shape)].view(shape)
        self._dataset.gather(rows, staged.numpy(), self._channels)
        with torch.cuda.stream(self._copies):
            images = staged.to(self._device, non_blocking=True)
            self._copied[turn].record(self._copies)
        computation = torch.cuda.current_stream(self._device)
        computation.wait_event(self._copied[turn])
        images.record_stream(computation)  # its memory is of the other stream, which must not take it back early
        return images

    def will_take(self, rows: NDArray[np.int64]) -> None:
        self._dataset.read_ahead(rows, self._channels)


class _DeviceImages:
    """The images of some rows in the memory of the device, each of them once, gathered there."""

    where: Literal["device"] = "device"

    def __init__(
        self,
        dataset: PreparedDataset,
        rows: NDArray[np.int64],
        device: torch.device,
        channels: Sequence[int] | None,
    ) -> None:
        import torch

        self._dataset, self._channels = dataset, channels
        self._place = np.full(len(dataset), -1)
        self._place[rows] = np.arange(len(rows))
        self._images = torch.empty((len(rows), *dataset.image_shape), dtype=torch.uint8, device=device)
        self.held_bytes = self._images.nbytes
        for start in range(0, len(rows), 4096):
            part = rows[start : start + 4096]
            self._images[start : start + len(part)] = torch.from_numpy(dataset.gather(part)).to(device)

    def take(self, rows: NDArray[np.int64]) -> torch.Tensor:
        places, (_, of_image, *sides) = self._place.take(rows), self._images.shape
        images = self._images
        if self._channels:  # not whole images: picked channel by channel
            images = images.view(-1, 1, *sides)
            of_each = zip(places.T, self._channels, strict=True)
            places = np.concatenate([place[:, None] * of_image + np.arange(count) for place, count in of_each], 1)
        taken = images.index_select(0, as_index(places.reshape(-1), images.device))
        return taken.view(self._dataset.gathered_shape(rows, self._channels))

    def will_take(self, rows: NDArray[np.int64]) -> None:
        """They lie where they are taken."""


def as_index(positions: NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """`positions` on the device, copied without waiting for earlier work of the device."""
    import torch

    index = torch.from_numpy(positions)
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index.to(device)


def fits_device(needed_bytes: int, free_bytes: int, total_bytes: int, *, taken_bytes: int = 0, trials: int = 1) -> bool:
    """Whether a trial may keep so many bytes of images in the memory of its accelerator.

    It may use DEVICE_SHARE of its own part, an equal one for each of `trials` on the device whether they have started
    or not; and never more than that share of what is free now.

    Args:
        needed_bytes: to be kept.
        free_bytes: what no process uses.
        total_bytes: all of it.
        taken_bytes: images that the trial keeps there already.
        trials: on this device at a time.
    """
    own_bytes = min(total_bytes / trials, free_bytes + taken_bytes)
    return needed_bytes + taken_bytes <= DEVICE_SHARE * own_bytes


def place(
    dataset: PreparedDataset,
    rows: NDArray[np.int64],
    device: torch.device,
    where: Placement = "auto",
    *,
    channels: Sequence[int] | None = None,
    taken_bytes: int = 0,
    trials: int = 1,
) -> ImageStore:
    """Put the images of some rows of a dataset where batches are taken fastest.

    Args:
        dataset: that holds them.
        rows: of slices.parquet, all that will be asked for; each is held once, however often it stands here.
        device: where batches are wanted.
        where: `device` for all at once, `host` for batch after batch; `auto` is `device` if that is an accelerator and
            `fits_device` says so, else `host`.
        channels: how many, the first ones, to take of each of k images that are taken together; all if not given.
        taken_bytes: images of the same trial that are on the device already.
        trials: that share the device.

    Raises:
        torch.OutOfMemoryError: `device` was asked for and has no room.
    """
    import torch

    once = np.unique(rows)
    needed = len(once) * math.prod(dataset.image_shape)
    if where == "device" or (
        where == "auto"
        and device.type == "cuda"
        and fits_device(needed, *torch.cuda.mem_get_info(device), taken_bytes=taken_bytes, trials=trials)
    ):
        try:
            return _DeviceImages(dataset, once, device, channels)
        except torch.OutOfMemoryError:  # another process was faster
            if where == "device":
                raise
    return (_StagedImages if device.type == "cuda" else _HostImages)(dataset, device, channels)
