"""Test-time augmentation: the mean logits of an image and of other views of it.

Logits, as winners of the RSNA 2019 challenge averaged them or the features before them: the calibration that follows
reads one logit. Views are made of what the network is given, so that whoever asks a bundle need not know of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ich_ray.model.networks import Network
    from ich_ray.vocabulary import TtaView

__all__ = ["VIEWS", "TtaNetwork", "with_tta"]


def _mirrored(images: torch.Tensor) -> torch.Tensor:
    return images.flip(-1)


# Each makes its view of images `[n, channels, rows, columns]`, of the same shape and type.
VIEWS: dict[TtaView, Callable[[torch.Tensor], torch.Tensor]] = {"hflip": _mirrored}


class TtaNetwork(nn.Module):
    """A network that answers with the mean logits of images as they are and of each view.

    One view after another, so that it takes longer and no more memory.
    """

    def __init__(self, network: Network, views: Sequence[TtaView]) -> None:
        super().__init__()
        self.network = network
        self._views = [VIEWS[name] for name in views]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits float32 `[n]`, or `[n, labels]` of several, as those of the network."""
        logits: torch.Tensor = self.network(images)
        for view in self._views:
            logits = logits + self.network(view(images))
        return logits / (1 + len(self._views))


def with_tta(network: Network, views: Sequence[TtaView]) -> nn.Module:
    """The network, or where there are views the one that averages over them; both share the weights."""
    return TtaNetwork(network, views).eval() if views else network
