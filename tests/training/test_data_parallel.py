from __future__ import annotations

import pytest
import torch
from torch import distributed, nn

from ich_ray.errors import ConfigError
from ich_ray.training.data_parallel import Shard


class BatchNormAct(nn.BatchNorm2d):
    """As timm's: the activation is inside."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return super().forward(values).relu()


def test_batch_normalization_of_several_workers_takes_the_place_of_its_exact_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "broadcast", lambda tensor, source: None)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
    weight = network[1].weight
    shared = Shard(0, 2).synchronized(network)
    assert [type(layer).__name__ for layer in shared] == ["Conv2d", "_SharedBatchNorm", "ReLU"]
    assert shared[1].weight is weight


@pytest.mark.parametrize("layer", [BatchNormAct(2), nn.BatchNorm1d(2), nn.SyncBatchNorm(2)], ids=repr)
def test_normalization_that_may_do_more_is_refused_before_anything_is_shared(layer: nn.Module) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), layer)
    with pytest.raises(ConfigError) as caught:
        Shard(1, 2).synchronized(network)
    assert str(caught.value) == (
        "architecture: with several workers batch normalization must be nn.BatchNorm2d, got "
        f"{type(layer).__name__} at 1; use nn.BatchNorm2d, or one worker"
    )
    assert Shard().synchronized(network) is network
