"""What a network says of slices, with no notion of how it was trained."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ich_ray.data.read_ahead import IMAGES_AHEAD
from ich_ray.training.network_inputs import place_inputs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray
    from torch import nn

    from ich_ray.data.dataset import SliceSet
    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.training.network_inputs import NetworkInputs

__all__ = ["EVALUATION_BATCH", "batch_logits", "in_batches", "predict_logits"]

# One batch size for every forward pass that is not training: the same slice then gets the same logit everywhere.
EVALUATION_BATCH = 128
# Of float32 pixels that a processor computes with at a time. Beyond 32 MiB each tensor is new memory, which the system
# clears page by page: whole batches took 1.3 to 2.9 times as long.
_HOST_BYTES, _FEWEST = 16 * 2**20, 4


def predict_logits(
    network: nn.Module,
    slices: SliceSet,
    parameters: Hyperparameters,
    device: torch.device | str = "cpu",
    batch_size: int = EVALUATION_BATCH,
) -> NDArray[np.float32]:
    """Logits of all `slices` in their order, float32 `[n]`, in evaluation mode and full precision.

    Args:
        network: on the device.
        slices: of a prepared dataset.
        parameters: of the network, which say what it is given for a slice.
        device: where to compute.
        batch_size: slices at a time.
    """
    inputs = place_inputs(parameters, slices, torch.device(device), "host")
    return batch_logits(network, in_batches(inputs, np.arange(len(slices)), batch_size))


def batch_logits(
    network: nn.Module, batches: Iterable[torch.Tensor], precision: AbstractContextManager[Any] | None = None
) -> NDArray[np.float32]:
    """Logits of all batches in turn, float32 `[n]`, in evaluation mode; by default full precision.

    Args:
        network: on the device of the batches.
        batches: uint8 `[any, channels, rows, columns]` each, taken one at a time.
        precision: a context such as autocast.
    """
    was_training = network.training
    network.eval()
    with torch.inference_mode(), precision or nullcontext():
        parts = [network(part) for batch in batches for part in _cut(batch)]
    network.train(was_training)
    return torch.cat(parts).cpu().numpy() if parts else np.empty(0, np.float32)


def _cut(batch: torch.Tensor) -> Sequence[torch.Tensor]:
    """A batch of the host in parts of few bytes; an accelerator takes it whole."""
    if batch.device.type != "cpu":
        return (batch,)
    most = max(_FEWEST, _HOST_BYTES // (4 * math.prod(batch.shape[1:])))
    return [batch[start : start + most] for start in range(0, max(len(batch), 1), most)]


def in_batches(inputs: NetworkInputs, positions: NDArray[np.int64], batch_size: int) -> Iterator[torch.Tensor]:
    """Inputs at `positions`, in order, uint8 `[at most batch_size, channels, rows, columns]` each."""
    ahead = max(IMAGES_AHEAD, batch_size)
    inputs.will_take(positions[:ahead])
    for start in range(0, len(positions), batch_size):
        inputs.will_take(positions[start + ahead : start + ahead + batch_size])
        yield inputs.take(positions[start : start + batch_size])
