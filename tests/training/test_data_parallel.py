from __future__ import annotations

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import distributed, nn

from ich_ray.errors import ConfigError
from ich_ray.training.data_parallel import Shard, check_shareable


class BatchNormAct(nn.BatchNorm2d):
    """More than a normalization."""

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


def test_what_timm_does_after_batch_normalization_is_done_by_several_workers_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One worker's sums are those of all here, so that the network alone must give the same."""
    for name in ("broadcast", "all_reduce"):
        monkeypatch.setattr(distributed, name, lambda *_: None)
    torch.manual_seed(0)
    alone = nn.Sequential(nn.Conv2d(1, 2, 3), BatchNormAct2d(2, act_layer=nn.PReLU))
    shared = nn.Sequential(nn.Conv2d(1, 2, 3), BatchNormAct2d(2, act_layer=nn.PReLU))
    shared.load_state_dict(alone.state_dict())
    shared = Shard(0, 2).synchronized(shared)
    assert type(shared[1]).__name__ == "_SharedBatchNorm"
    images = torch.randn(4, 1, 8, 8)
    for mode in (True, False):
        outputs = [network.train(mode)(images) for network in (alone, shared)]
        torch.testing.assert_close(outputs[1], outputs[0])
        assert outputs[1].min() < 0  # PReLU's quarter, not ReLU
    assert list(shared.state_dict()) == list(alone.state_dict())
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


def test_batch_statistics_that_are_not_kept_or_scaled_are_refused() -> None:
    for layer in (nn.BatchNorm2d(2, affine=False), nn.BatchNorm2d(2, track_running_stats=False)):
        with pytest.raises(ConfigError, match="with several workers batch normalization must be "):
            check_shareable(nn.Sequential(layer))
