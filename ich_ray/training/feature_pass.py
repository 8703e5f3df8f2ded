"""Features and logits of slices in one pass of a network, as a sequence model learns from them.

Array shapes: logits float32 `[n, labels]`, features float32 `[n, d]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ich_ray.training.inference import EVALUATION_BATCH, batch_logits, in_batches
from ich_ray.training.network_inputs import place_inputs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from ich_ray.data.dataset import SliceSet
    from ich_ray.model.fields import NetworkFields
    from ich_ray.model.pooled_features import FeatureNetwork

__all__ = ["batch_features", "predict_features"]


def predict_features(
    network: FeatureNetwork,
    slices: SliceSet,
    parameters: NetworkFields,
    device: torch.device | str = "cpu",
    batch_size: int = EVALUATION_BATCH,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits and features of all `slices` in their order, in evaluation mode and full precision.

    Args:
        network: on the device.
        slices: of a prepared dataset.
        parameters: of the network, which say what it is given for a slice.
        device: where to compute.
        batch_size: slices at a time.
    """
    inputs = place_inputs(parameters, slices, torch.device(device), "host")
    batches = in_batches(inputs, np.arange(len(slices)), batch_size)
    return batch_features(network, batches, len(parameters.predicted_labels))


def batch_features(
    network: FeatureNetwork, batches: Iterable[torch.Tensor], labels: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits and features of all images of the batches, in evaluation mode and full precision.

    Args:
        network: on the device of the batches; threads may share one that is in evaluation mode.
        batches: as in `batch_logits`.
        labels: that the network answers.
    """
    both = batch_logits(_Beside(network), batches).reshape(-1, labels + network.width)
    return both[:, :labels], both[:, labels:]


class _Beside(nn.Module):
    """Logits and features beside each other, `[n, labels + d]`, as one pass over many batches gives one array."""

    def __init__(self, seeing: FeatureNetwork) -> None:
        super().__init__()
        self.seeing = seeing
        self.train(seeing.training)  # which it is left in

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits, features = self.seeing(images)
        return torch.cat([logits.reshape(len(logits), -1), features], 1)
