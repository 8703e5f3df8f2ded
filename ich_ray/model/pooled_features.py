"""Pooled features of a network: what goes into its last layer, before dropout, beside its logits.

For every architecture alike: the last linear layer or convolution is found by a pass over a black image. Of a network
that answers with the mean of several views of an image, features are the mean over these views, too.

Array shapes: images as the network takes them, features float32 `[n, d]`.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ich_ray.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FeatureNetwork"]


class FeatureNetwork(nn.Module):
    """A network that also tells its pooled features, in one pass; modules and weights are shared.

    Threads may share it, and it may be exported.

    Args:
        network: with or without test-time augmentation.
        input_shape: `(channels, rows, columns)` of one image that it is given.

    Attributes:
        width: how many features a slice has.

    Raises:
        ConfigError: the network has no layer whose input could be told.
    """

    def __init__(self, network: nn.Module, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.network, self._inputs = network, _Inputs()
        black = torch.zeros((1, *input_shape), dtype=torch.uint8, device=next(network.parameters()).device)
        with _evaluating(network):
            _last_layer(network, black).register_forward_pre_hook(self._inputs)
            self.width = self(black)[1].shape[1]

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits as those of the network, and features float32 `[n, d]`."""
        with self._inputs as seen:
            logits: torch.Tensor = self.network(images)
            return logits, torch.stack([_flat(one) for one in seen]).mean(0)


class _Inputs:
    """What a layer is given while its owner asks for it, each thread by itself."""

    def __init__(self) -> None:
        self._of_thread: dict[int, list[torch.Tensor]] = {}

    def __enter__(self) -> list[torch.Tensor]:
        return self._of_thread.setdefault(threading.get_ident(), [])

    def __exit__(self, *_: object) -> None:
        del self._of_thread[threading.get_ident()]

    def __call__(self, _: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if (seen := self._of_thread.get(threading.get_ident())) is not None:
            seen.append(arguments[0])


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(was_training)


def _last_layer(network: nn.Module, image: torch.Tensor) -> nn.Module:
    """The last linear layer or convolution that a pass over an image goes through."""
    passed: list[nn.Module] = []

    def keep(module: nn.Module, _: Any) -> None:
        passed.append(module)

    layers = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        network(image)
    finally:
        for hook in hooks:
            hook.remove()
    if not passed:
        raise ConfigError(
            "features: a network must end in a linear layer, whose inputs are its features, got one without any; use "
            "another architecture"
        )
    return passed[-1]


def _flat(given: torch.Tensor) -> torch.Tensor:
    """What a last layer was given, `[n, d]`: of a convolution the mean over places."""
    return (given.mean((2, 3)) if given.ndim == 4 else given.flatten(1)).float()
