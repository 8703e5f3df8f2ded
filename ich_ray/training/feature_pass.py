"""Features and logits of slices in one pass of a network, as a sequence model learns from them.

Array shapes: logits float32 `[n, labels]`, features float32 `[n, d]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ich_ray.training.inference import EVALUATION_BATCH, cut_batch, in_batches
from ich_ray.training.network_inputs import place_inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.data.dataset import SliceSet
    from ich_ray.model.fields import NetworkFields
    from ich_ray.model.pooled_features import FeatureNetwork

__all__ = ["predict_features"]


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
    logits = np.empty((len(slices), len(parameters.predicted_labels)), np.float32)
    features, done = np.empty((len(slices), network.width), np.float32), 0
    was_training = network.training
    network.eval()
    with torch.inference_mode():
        for batch in in_batches(inputs, np.arange(len(slices)), batch_size):
            for part in cut_batch(batch):
                told, pooled = network(part)
                here = slice(done, done + len(part))
                logits[here], features[here] = told.reshape(len(part), -1).cpu().numpy(), pooled.cpu().numpy()
                done += len(part)
    network.train(was_training)
    return logits, features
