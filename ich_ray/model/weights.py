"""Where the weights of a network come from before it is trained: torchvision's ImageNet files, or a safetensors file.

Knows files and tensors by name, and how a first convolution is adapted to other channels. Which tensors a network
needs is in networks.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ich_ray.errors import ConfigError, IntegrityError
from ich_ray.model.tensors import Tensors, not_finite, read_tensors, unpack
from ich_ray.storage import locate, unreadable

__all__ = ["check_weights", "imagenet", "read_weights", "spread"]


def check_weights(architecture: str, weights: str) -> None:
    """Find the weights that a draw names, or fetch them, so that no trial fails for want of a file.

    Raises:
        ConfigError: they are neither there nor to be had.
        IntegrityError: the file is not one of weights.
    """
    if weights == "imagenet" and architecture != "plain_cnn":
        imagenet(architecture)
    elif weights not in {"none", "imagenet"}:
        read_weights(weights)


def spread(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """A first convolution for other channels: the mean over its own, scaled so that responses keep their size."""
    return weight.mean(1, keepdim=True).repeat(1, channels, 1, 1) * (weight.shape[1] / channels)


def imagenet(name: str) -> dict[str, Any]:
    """ImageNet weights of a family: torchvision's own file, which its own loader fetches if it is not there.

    Raises:
        ConfigError: the file is not there and cannot be fetched; the message says where it is looked for.
    """
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    expected = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    try:
        state: dict[str, Any] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"weights: imagenet needs the file {expected}, got {type(error).__name__} while fetching it; copy "
            f"{expected.name} there from a machine with a network, set TORCH_HOME, or use weights: none"
        ) from None
    return {_renamed(key): value for key, value in state.items()} if name == "densenet121" else state


def _renamed(key: str) -> str:
    """Old DenseNet files write `norm.1` where the module is called `norm1`."""
    for word in ("norm", "relu", "conv"):
        for number in "12":
            key = key.replace(f".{word}.{number}.", f".{word}{number}.")
    return key


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
