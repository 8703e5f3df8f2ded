"""A network cut in two where training begins: a trunk that never changes, and the rest.

What frozen layers make of the input of a slice is the same in every epoch and every trial where images are not
augmented, because frozen layers stay in evaluation mode. So it may be computed once and read after that. Knows
networks and the key of a trunk; where features are kept is in data/feature_store.py, how all of them are computed in
search/tune/precompute_features.py.

Array shapes: images are uint8 `[n, channels, rows, columns]`, features float32 `[n, *shape]`.
"""

from __future__ import annotations

import copy
import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ich_ray.data.feature_store import Features
from ich_ray.model.architectures import architecture_of
from ich_ray.model.input_shape import input_channels, input_shape
from ich_ray.training.inference import in_batches
from ich_ray.training.network_inputs import place_inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.data.dataset import PreparedDataset, SliceSet
    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.model.networks import Network

__all__ = ["TrainableHead", "as_features", "feature_shape", "is_divisible", "shared", "trunk_features", "trunk_key"]

_BATCH = 64
# Also of what `features.json` means: another number makes other keys, and old features are then not found.
_FORMAT = 1


def is_divisible(parameters: Hyperparameters) -> bool:
    """Whether there is a trunk to cut off: frozen stages of a body that is a chain of modules."""
    architecture, stage = architecture_of(parameters), parameters.unfreeze_from
    if stage == "all" or stage == next(iter(architecture.stages(parameters))):
        return False
    return architecture.is_divisible_at(stage)


def _first_trained(parameters: Hyperparameters) -> str:
    """The path of the first module that is trained, in the body of the network."""
    return architecture_of(parameters).stages(parameters)[parameters.unfreeze_from][0]


def trunk_key(network: Network, parameters: Hyperparameters, dataset: PreparedDataset) -> str:
    """A name for the features: equal for equal slices, cut and frozen weights, in hexadecimal."""
    known = list(architecture_of(parameters).stages(parameters).items())
    cut = [name for name, _ in known].index(parameters.unfreeze_from)
    trained = tuple(f"{prefix}." for _, prefixes in known[cut:] for prefix in prefixes)
    told: list[str | int] = [_FORMAT, dataset.manifest.fingerprint, parameters.architecture, parameters.unfreeze_from]
    if parameters.neighbors:  # absent without, so that features of older versions are found
        told += input_channels(parameters, dataset.image_shape[0])
    if parameters.shows_part:
        told += [parameters.crop, parameters.scale]
    digest = hashlib.sha256(json.dumps([*told, *input_shape(parameters, dataset.image_shape)]).encode())
    for name, tensor in network.body.state_dict().items():
        if not f"{name}.".startswith(trained):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


class _Reached(Exception):
    pass


def trunk_features(network: Network, parameters: Hyperparameters, images: torch.Tensor) -> torch.Tensor:
    """What reaches the first trained module, in evaluation mode and full precision."""
    reached: list[torch.Tensor] = []

    def stop(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        reached.append(arguments[0])
        raise _Reached

    was_training = network.training
    network.eval()
    hook = network.body.get_submodule(_first_trained(parameters)).register_forward_pre_hook(stop)
    try:
        with torch.inference_mode():
            network(images)
    except _Reached:
        pass
    finally:
        hook.remove()
        network.train(was_training)
    return reached[0].float()


def feature_shape(network: Network, parameters: Hyperparameters, image_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Of the features of one slice."""
    device = next(network.parameters()).device
    black = torch.zeros((1, *input_shape(parameters, image_shape)), dtype=torch.uint8, device=device)
    return tuple(trunk_features(network, parameters, black).shape[1:])


class TrainableHead(nn.Module):
    """The network after its trunk, on features: the same modules and weights, less frozen ones."""

    def __init__(self, network: Network, parameters: Hyperparameters) -> None:
        super().__init__()
        self.body = _without_before(network.body, _first_trained(parameters).split("."))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits float32 `[n]`, or `[n, labels]` of several."""
        if features.ndim == 4:
            features = features.contiguous(memory_format=torch.channels_last)
        logits: torch.Tensor = self.body(features)
        return (logits.squeeze(1) if logits.shape[1] == 1 else logits).float()


def _without_before(module: nn.Module, path: list[str]) -> nn.Module:
    """A copy that passes its input on to the child of `path`: those before it are left out, all others are shared."""
    cut = copy.copy(module)
    cut._modules = dict(module._modules)
    for name in list(cut._modules):
        if name == path[0]:
            break
        cut._modules[name] = nn.Identity()
    if len(path) > 1:
        cut._modules[path[0]] = _without_before(module.get_submodule(path[0]), path[1:])
    return cut


def shared(network: Network, parameters: Hyperparameters, dataset: PreparedDataset) -> Features | None:
    """The features of this network's trunk, if they have been computed."""
    if not is_divisible(parameters) or not (dataset.files.root / "features").exists():
        return None
    return Features.open(dataset, trunk_key(network, parameters, dataset))


def as_features(network: Network, parameters: Hyperparameters, slices: SliceSet) -> NDArray[np.float32]:
    """Features of slices in their order, float32 `[n, *shape]`."""
    device = next(network.parameters()).device
    batches = in_batches(place_inputs(parameters, slices, device, "host"), np.arange(len(slices)), _BATCH)
    return torch.cat([trunk_features(network, parameters, batch).cpu() for batch in batches]).contiguous().numpy()
