"""Several networks that answer as one: the mean of their logits.

Logits, as winners of the RSNA 2019 challenge averaged them: the calibration that follows reads one logit for each
label. Each network's own class weights are taken out first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ich_ray.model.networks import Network

__all__ = ["Ensemble"]


class Ensemble(nn.Module):
    """Networks of one input and the same labels.

    One after another, so that it takes longer and hardly more memory.

    Args:
        networks: at least one.
        shifts: what is added to the logits of each, `[networks][labels]`.
    """

    shifts: torch.Tensor

    def __init__(self, networks: Sequence[Network], shifts: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.register_buffer("shifts", torch.tensor(shifts), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Mean logits float32 `[n]`, or `[n, labels]` of several, of images as each network takes them."""
        each = [network(images) for network in self.networks]
        shifts = self.shifts if each[0].ndim > 1 else self.shifts[:, -1]
        return torch.stack([logits + shift for logits, shift in zip(each, shifts.unbind(), strict=True)]).mean(0)
