"""What a network says of slices, with no notion of how it was trained."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ich_ray.data.read_ahead import IMAGES_AHEAD
from ich_ray.training.network_inputs import place_inputs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray
    from torch import nn

    from ich_ray.data.dataset import SliceSet
    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.training.network_inputs import NetworkInputs

__all__ = ["EVALUATION_BATCH", "batch_logits", "in_batches", "predict_logits"]

# One batch size for every forward pass that is not training: the same slice then gets the same logit everywhere.
EVALUATION_BATCH = 128


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
        parts = [network(batch) for batch in batches]
    network.train(was_training)
    return torch.cat(parts).cpu().numpy() if parts else np.empty(0, np.float32)


def in_batches(inputs: NetworkInputs, positions: NDArray[np.int64], batch_size: int) -> Iterator[torch.Tensor]:
    """Inputs at `positions`, in order, uint8 `[at most batch_size, channels, rows, columns]` each."""
    ahead = max(IMAGES_AHEAD, batch_size)
    inputs.will_take(positions[:ahead])
    for start in range(0, len(positions), batch_size):
        inputs.will_take(positions[start + ahead : start + ahead + batch_size])
        yield inputs.take(positions[start : start + batch_size])
