"""What a network says of slices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network
from ich_ray.training import inference
from ich_ray.training.inference import batch_logits, predict_logits
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


@pytest.mark.parametrize(("held", "expected"), [(2**20, [10, 3]), (6 * 256, [6, 4, 3]), (1, [4, 4, 2, 3])])
def test_a_processor_takes_a_batch_in_parts_of_few_bytes(
    monkeypatch: pytest.MonkeyPatch, held: int, expected: list[int]
) -> None:
    """Images of 64 pixels, 256 bytes as float32; four at least, as one alone does not keep a processor busy."""
    taken: list[int] = []

    class First(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            taken.append(len(images))
            return images[:, 0, 0, 0].float()

    monkeypatch.setattr(inference, "_HOST_BYTES", held)
    images = torch.arange(13, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    assert batch_logits(First(), images.split(10)).tolist() == list(range(13))
    assert taken == expected
    assert batch_logits(First(), [images[:0]]).tolist() == []
