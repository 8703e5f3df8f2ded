from __future__ import annotations

import pytest
import torch
from torch import nn

from ich_ray.search.plan.live_tensors import peak_bytes


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_the_peak_is_of_what_lives_at_a_time(device: str) -> None:
    with torch.device(device):
        images = torch.zeros(10, 1, 8, 8)
        network = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 1)
        )
    one_map = 10 * 4 * 8 * 8 * 4
    assert peak_bytes(lambda: network(images)) == 2 * one_map  # before and after the rectifier
    assert peak_bytes(lambda: network[0](images).relu_()) == one_map
    assert peak_bytes(lambda: [network[0](images) for _ in range(3)]) == 3 * one_map
    assert peak_bytes(lambda: images[2:].view(-1)) == 0  # memory that was there
