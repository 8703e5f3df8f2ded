"""Average a network's weights along the training; the average is validated, kept, bundled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from ich_ray.model.networks import Network

__all__ = ["Averaging", "AveragingOf"]


class Averaging(Protocol):
    """The averaged network of a training.

    Attributes:
        network: of the same kind as the trained one, in memory of its own; its tensors are all that a resume restores.
    """

    network: Network

    def update(self, trained: Network, images: int) -> None:
        """Follow a step of `images` images over all workers: trials of other batch sizes then average alike."""


# Of a network at the start of its training.
AveragingOf: TypeAlias = Callable[["Network"], Averaging]
