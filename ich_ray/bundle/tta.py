"""Test-time augmentation: the mean logits of an image and of other views of it.

Logits, as winners of the RSNA 2019 challenge averaged them or the features before them: the calibration that follows
reads one logit. Views are made of what the network is given, so that whoever asks a bundle need not know of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from torch import nn

from ich_ray.model.input_shape import mirrored_channels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from ich_ray.model.fields import NetworkFields
    from ich_ray.vocabulary import TtaView

__all__ = ["VIEWS", "TtaNetwork", "View", "with_tta"]

# Makes a view of images `[n, channels, rows, columns]`, of the same shape and type.
View: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"


def _hflip(parameters: NetworkFields, image_channels: int) -> View:
    """Of mirror images."""
    del parameters, image_channels
    return lambda images: images.flip(-1)


def _depth_flip(parameters: NetworkFields, image_channels: int) -> View:
    """Of slices whose neighbors below and above have changed places."""
    order = mirrored_channels(parameters, image_channels)
    return lambda images: images[:, order]


# By the parameters of the network and the channels of one image.
VIEWS: dict[TtaView, Callable[[NetworkFields, int], View]] = {"hflip": _hflip, "depth_flip": _depth_flip}


class TtaNetwork(nn.Module):
    """A network, or several, that answers with the mean logits over images and their views.

    One view after another, so that it takes longer and no more memory.
    """

    def __init__(self, network: nn.Module, views: Sequence[View]) -> None:
        super().__init__()
        self.network = network
        self._views = views

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits float32 `[n]`, or `[n, labels]` of several, as those of the network."""
        logits: torch.Tensor = self.network(images)
        for view in self._views:
            logits = logits + self.network(view(images))
        return logits / (1 + len(self._views))


def with_tta(network: nn.Module, names: Sequence[TtaView], parameters: NetworkFields, image_channels: int) -> nn.Module:
    """The network, or where views are named the one that averages over them; both share the weights."""
    if not names:
        return network
    return TtaNetwork(network, [VIEWS[name](parameters, image_channels) for name in names]).eval()
