"""What a network says of slices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network
from ich_ray.training.inference import predict_logits
from tests.prepared import make_dataset

if TYPE_CHECKING:
    from pathlib import Path


def test_logits_do_not_depend_on_the_batch_size_or_training_mode(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "dataset")
    parameters = Hyperparameters(dropout=0.2, filters=8, dense=16)
    network = build_network(parameters, dataset.image_shape)
    one, other = (predict_logits(network, dataset.role("test"), parameters, batch_size=size) for size in (128, 5))
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert network.training
