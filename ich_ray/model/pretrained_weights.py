"""Load weights before training: from a source of the architecture, or a safetensors file.

Knows how a first convolution is adapted to other channels. Which tensors a network needs is in networks.py, what an
architecture's own source is in its file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ich_ray.errors import ConfigError, IntegrityError
from ich_ray.model.architectures import ARCHITECTURES
from ich_ray.model.tensors import Tensors, not_finite, read_tensors, unpack
from ich_ray.storage import locate, unreadable

if TYPE_CHECKING:
    import torch

__all__ = ["check_weights", "read_weights", "spread"]


def check_weights(architecture: str, weights: str) -> None:
    """Find the weights that a draw names, or fetch them, so that no trial fails for want of a file.

    Raises:
        ConfigError: they are neither there nor to be had.
        IntegrityError: the file is not one of weights.
    """
    if weights in ARCHITECTURES[architecture].sources:
        ARCHITECTURES[architecture].pretrained(weights)
    elif weights not in {"none", "imagenet"}:
        read_weights(weights)


def spread(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """A first convolution for other channels: the mean of its own, scaled to keep responses."""
    return weight.mean(1, keepdim=True).repeat(1, channels, 1, 1) * (weight.shape[1] / channels)


def read_weights(path: str) -> Tensors:
    """The tensors of a safetensors file.

    Raises:
        ConfigError: there is no such file.
        IntegrityError: it is none, or a number in it is not finite.
    """
    if not Path(path).is_file():
        raise ConfigError(f"weights: one of none, imagenet or a safetensors file must be given, got {path!r}")
    file = locate(path)
    try:
        tensors, _ = unpack(read_tensors(file))
    except OSError as error:
        raise unreadable(file, error) from None
    except (ValueError, MemoryError) as error:
        said = str(error) or type(error).__name__
        raise IntegrityError(f"{path}: must be a safetensors file, got {said}; fetch it again") from None
    if name := not_finite(tensors):
        raise IntegrityError(f"{path}: weights must be finite, got others in {name}; fetch it again")
    return tensors
