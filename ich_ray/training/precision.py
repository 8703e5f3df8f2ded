"""Precision by rule: trials of a search compute alike, before and after a resume.

| device | precision |
|---|---|
| CPU | float32 |
| accelerator of compute capability 8.0 or more | bfloat16 in autocast, channels last |
| any other accelerator | float32 |

A search asks for the least of its machines' accelerators (search/accelerators.py) and writes the answer into
search.json; a training state holds its own and goes on in it.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ich_ray.vocabulary import Precision

__all__ = ["autocast", "precision_of", "precision_on"]

# Ampere, the first with bfloat16 in its tensor cores; older ones emulate it, slower than float32.
_BFLOAT16_FROM = (8, 0)


def precision_of(capability: tuple[int, int]) -> Precision:
    """The precision for an accelerator of this compute capability."""
    return "bfloat16 channels_last" if capability >= _BFLOAT16_FROM else "float32"


def precision_on(device: torch.device, wanted: Precision | None = None) -> Precision:
    """The precision on a device: float32 on a CPU, else as wanted, else by its own capability."""
    if device.type != "cuda":
        return "float32"
    return wanted or precision_of(torch.cuda.get_device_capability(device))


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """A new context of this precision; networks are laid out channels last wherever they are."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, torch.bfloat16)
