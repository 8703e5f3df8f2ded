"""Average a network's weights along the training; the average is validated, kept, bundled.

The average is exponential, and its decay counts images: trials of other batch sizes average over as many. A young one
is of the last tenth of its training, because the usual start, the first weights or a mean of all, would judge a short
trial by weights that it left long ago.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ich_ray.model.networks import Network

__all__ = ["WeightAverage", "kept_share"]

_IMAGES_OF_DECAY = 64
# The past's share after a step of b images at n is at most (n / (n + b)) ** 9: image i of n then counts as i ** 8, half
# of the average is of the last 7.4 % and its mean age is n / 10. For a step it is min(decay, (1 + t) / (10 + t)) of
# TensorFlow's ExponentialMovingAverage, written in images, where two steps of 32 must be one of 64.
_POWER = 9


def kept_share(ema: float, images_seen: int, images: int) -> float:
    """The share of the average that stays as it was, in a step of `images` images after `images_seen`."""
    return float(min(ema ** (images / _IMAGES_OF_DECAY), (images_seen / (images_seen + images)) ** _POWER))


class WeightAverage:
    """The average of a network in training.

    Attributes:
        network: of the same kind as the trained one, in memory of its own; its tensors are all that a resume restores.

    Args:
        trained: at the start; its tensors stay the same ones.
        ema: decay per 64 images.
    """

    def __init__(self, trained: Network, ema: float) -> None:
        self.network = copy.deepcopy(trained)
        self._ema = ema
        moving = {name for name, weight in trained.named_parameters() if weight.requires_grad}
        moving |= {name for name, _ in trained.named_buffers()}
        own = self.network.state_dict()
        pairs = [(own[name], value) for name, value in trained.state_dict().items() if name in moving]
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._counted = [pair for pair in pairs if not pair[0].is_floating_point()]

    def update(self, images_seen: int, images: int) -> None:
        """Follow a step of `images` images over all workers, after `images_seen`; batch statistics, too."""
        averaged, trained = zip(*self._averaged, strict=True)
        torch._foreach_lerp_(averaged, trained, 1 - kept_share(self._ema, images_seen, images))
        for counter, newest in self._counted:
            counter.copy_(newest)
