"""Load weights before training: from a source of the architecture, or a safetensors file.

Knows how a first convolution is adapted to other channels. What an architecture's own source is, and how it names and
shapes tensors, is in its file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ich_ray.errors import ConfigError, IntegrityError
from ich_ray.model.architectures import ARCHITECTURES
from ich_ray.model.tensors import Tensors, not_finite, read_tensors, unpack
from ich_ray.storage import locate, unreadable

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn

    from ich_ray.model.architectures import Architecture
    from ich_ray.model.fields import NetworkFields

__all__ = ["check_weights", "fill", "read_weights", "spread"]


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
    """A first convolution for other channels, scaled to keep responses.

    Its own kernels again and again for a multiple of their number, so that the windows of a slice do not begin alike;
    else their mean.
    """
    own = weight.shape[1]
    kernels, times = (weight.mean(1, keepdim=True), channels) if channels % own else (weight, channels // own)
    return kernels.repeat(1, times, 1, 1) * (own / channels)


def fill(
    body: nn.Module, tensors: Mapping[str, torch.Tensor], architecture: Architecture, parameters: NetworkFields
) -> None:
    """Fill a body from tensors of the same architecture; the head stays new.

    Their names are its own or those of a bundle.

    Raises:
        ConfigError: one is missing, or has another shape.
    """
    found = architecture.converted({key.removeprefix("body."): value for key, value in tensors.items()}, body)
    wanted = body.state_dict()
    for key, tensor in wanted.items():
        if architecture.is_new(key):
            continue
        given = found.get(key)
        if given is None and key.endswith("num_batches_tracked"):
            continue  # older files lack it, and nothing here reads it
        if (
            given is not None
            and given.shape != tensor.shape
            and given.ndim == tensor.ndim
            and architecture.is_stem(key)
        ):
            given = spread(given, tensor.shape[1])
        if given is None or given.shape != tensor.shape:
            got = "nothing" if given is None else f"shape {tuple(given.shape)}"
            raise ConfigError(
                f"weights: {parameters.weights}: {key} of {parameters.architecture} must have shape "
                f"{tuple(tensor.shape)}, got {got}; use a file of the same family and settings"
            )
        wanted[key] = given
    body.load_state_dict(wanted)


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
