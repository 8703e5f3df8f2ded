"""One network, several processes: which images are whose, and what is summed over all.

Knows `torch.distributed` and that a group has been started by whoever started the processes. Gradients come together
in DistributedDataParallel. It takes the mean over processes, which is the mean over the images of the global batch
where each process scales the sum of its losses by processes / images (`scale`), cut batches included. A single sum of
all gradients after the backward pass gives the same bits and took 1.05 times the time of a step of ResNet18, and as
long for the plain CNN (benchmarks/data_parallel.py, two CPU processes).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ich_ray.errors import ConfigError, IchRayError
from ich_ray.training.memory import out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["ALONE", "PeerLost", "Shard", "check_shareable"]

Module = TypeVar("Module", bound=nn.Module)


# Of the source file that each of gloo's messages begins with: it raises no kind of error of its own.
_GLOO = "/gloo/"


class PeerLost(IchRayError):
    """Another process of the group has ended: this one cannot go on, and is not the reason."""


@contextmanager
def _with_peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo says no more of it
        if out_of_memory(error) is not None:
            raise
        raise _lost(error) from None


def _lost(error: RuntimeError) -> PeerLost:
    return PeerLost(f"every worker must take part, got {str(error).splitlines()[0]}")


def _sum(tensor: torch.Tensor) -> torch.Tensor:
    with _with_peers():
        distributed.all_reduce(tensor)
    return tensor


@dataclass(frozen=True)
class Shard:
    """Process `rank` of `world_size` that train one network together."""

    rank: int = 0
    world_size: int = 1

    def part(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """This process's share of a global batch."""
        return positions[self.rank :: self.world_size]

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        return _sum(tensor) if self.world_size > 1 else tensor

    def scale(self, images: int) -> float:
        """The factor of a process's sum of losses, so that gradients are of the mean over `images`."""
        return self.world_size / images

    def data_parallel(self, network: nn.Module) -> nn.Module:
        """The network, whose `backward` gives every process the gradient of the global batch."""
        if self.world_size == 1:
            return network
        with _with_peers():
            return DistributedDataParallel(network, forward_sync_buffers=False, gradient_as_bucket_view=True)

    def backward(self, loss: torch.Tensor) -> None:
        """The backward pass; it waits for the other processes.

        Raises:
            PeerLost: one of them has ended.
        """
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if isinstance(error, distributed.DistError) or _GLOO in str(error):
                raise _lost(error) from None
            raise

    def gathered(self, own: NDArray[np.float32], count: int, device: torch.device) -> NDArray[np.float32]:
        """All `count` values, `[count]` or `[count, any]`, where each process has those of its `part`."""
        if self.world_size == 1:
            return own
        values = torch.zeros((count, *own.shape[1:]), device=device)
        values[self.rank :: self.world_size] = torch.from_numpy(own).to(device)
        return self.total(values).cpu().numpy()

    def synchronized(self, network: Module) -> Module:
        """The network with the first process's weights, and batch statistics taken over all processes.

        Raises:
            ConfigError: it normalizes batches in a way that is not known here.
        """
        if self.world_size == 1:
            return network
        normalizing = _normalizing(network)
        with _with_peers():
            for tensor in network.state_dict().values():
                distributed.broadcast(tensor, 0)
        for path, module in normalizing:
            network.set_submodule(path, _SharedBatchNorm(module))
        return network


def check_shareable(network: nn.Module) -> None:
    """Check that several workers can train a network as one would.

    Raises:
        ConfigError: it normalizes batches in a way that is not known here.
    """
    _normalizing(network)


def _normalizing(network: nn.Module) -> list[tuple[str, nn.BatchNorm2d]]:
    """The batch normalizations of a network, by path.

    Exact types only: a subclass may do more than normalize, and what took its place would not.
    """
    found = []
    for path, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine and module.track_running_stats and _is_known(module):
            found.append((path, module))
        elif isinstance(module, _BatchNorm) or "running_var" in module._buffers:
            raise ConfigError(
                f"architecture: with several workers batch normalization must be nn.BatchNorm2d, got "
                f"{type(module).__name__} at {path}; use nn.BatchNorm2d, or one worker"
            )
    return found


def _is_known(module: nn.BatchNorm2d) -> bool:
    if type(module) is nn.BatchNorm2d:
        return True
    from timm.layers.norm_act import BatchNormAct2d  # seconds that a network without one need not wait

    return type(module) is BatchNormAct2d


ALONE = Shard()


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(_: Any, own: torch.Tensor) -> torch.Tensor:
        return _sum(own.clone())

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _sum(gradient.contiguous().clone())


class _SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalization over the global batch, on any device (PyTorch's own SyncBatchNorm refuses CPUs).

    With what timm's does after it, under the same names: an activation may have weights.
    """

    def __init__(self, of: nn.BatchNorm2d) -> None:
        super().__init__(of.num_features, of.eps, of.momentum)
        self.weight, self.bias = of.weight, of.bias
        self.running_mean, self.running_var = of.running_mean, of.running_var
        self.num_batches_tracked = of.num_batches_tracked
        for name, module in of.named_children():
            self.add_module(name, module)
        self.training = of.training

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        normal = self._normalized(values)
        for module in self.children():
            normal = module(normal)
        return normal

    def _normalized(self, values: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return batch_norm(values, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        wide = values.float()
        own = torch.stack([wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3))])
        count = torch.tensor([values.numel() / self.num_features], device=values.device)
        _sum(count)
        mean, square = _Sum.apply(own) / count
        variance = (square - mean.square()).clamp(min=0)
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        normal: torch.Tensor = wide * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
        return normal.to(values.dtype)

    def _track(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        assert self.running_mean is not None  # noqa: S101  (no family of ours turns tracking off)
        assert self.running_var is not None  # noqa: S101
        assert self.num_batches_tracked is not None  # noqa: S101
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum or 0.1)
        self.running_var.lerp_(variance, self.momentum or 0.1)
