"""Hyperparameters to a network: uint8 images in, one logit per slice out.

Knows architectures, their stages and how pixels are normalized (inside the module, so that nobody can forget it).
Knows nothing of data, losses or optimizers.

Array shapes: images are uint8 `[n, channels, rows, columns]`, logits float32 `[n]`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ich_ray.errors import ConfigError, nearest
from ich_ray.model.stacked import StackedBody
from ich_ray.model.weights import imagenet, read_weights, spread

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ich_ray.model.hyperparameters import Hyperparameters

__all__ = ["FAMILIES", "Family", "Network", "build_network", "stages"]

# Of ImageNet, for values from 0 to 1: https://docs.pytorch.org/vision/stable/models.html
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)

# The plain CNN works on a grid of about this side. At 128 px on two cores the stem of stride 4 trained at 1,440 img/s,
# one of stride 2 at 270; after 14,000 synthetic slices their average precision was 0.976 and 0.986 (one seed). Batch
# normalization stays because group normalization and none needed several times the images at most learning rates.
_GRID = 32
_LARGEST_STRIDE = 4

# PyTorch's 0.1 leaves 43 % of the initial statistics in place after the 8 steps of a short report, 0.2 leaves 17 %.
_BATCH_NORM_MOMENTUM = 0.2


@dataclass(frozen=True)
class Family:
    """What differs between torchvision families; the names are torchvision's own.

    Attributes:
        stem: the first convolution, which is adapted when images have other than three channels.
        head: the last linear layer, which is replaced by dropout and one linear unit.
        stages: the trainable stages from input to output, each with its module prefixes; `head` comes after them.
    """

    stem: str
    head: str
    stages: Mapping[str, tuple[str, ...]]

    @property
    def classifier(self) -> str:
        """The top-level module that holds the head."""
        return self.head.split(".")[0]


def _residual() -> Family:
    layers = {f"layer{number}": (f"layer{number}",) for number in range(1, 5)}
    return Family(stem="conv1", head="fc", stages={"stem": ("conv1", "bn1"), **layers})


def _numbered(count: int, stem: str, head: str) -> Family:
    return Family(stem, head, {f"features{number}": (f"features.{number}",) for number in range(count)})


_DENSE_STAGES = {
    "stem": ("features.conv0", "features.norm0"),
    **{f"denseblock{n}": (f"features.denseblock{n}", f"features.transition{n}") for n in (1, 2, 3)},
    "denseblock4": ("features.denseblock4", "features.norm5"),
}

FAMILIES: Mapping[str, Family] = {
    "resnet18": _residual(),
    "resnet34": _residual(),
    "resnet50": _residual(),
    "densenet121": Family("features.conv0", "classifier", _DENSE_STAGES),
    "efficientnet_b0": _numbered(9, "features.0.0", "classifier.1"),
    "convnext_tiny": _numbered(8, "features.0.0", "classifier.2"),
    "mobilenet_v3_small": _numbered(13, "features.0.0", "classifier.3"),
}


class Network(nn.Module):
    """A body between the two things every family shares: pixel normalization and a flat float32 logit."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, body: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.body = body
        center, spread = torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)
        self.register_buffer("scale", 1 / (255 * spread), persistent=False)
        self.register_buffer("shift", -center / spread, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits float32 `[n]` of images uint8 `[n, channels, rows, columns]`."""
        # In place and in this order: 20 ms for 64 images where `(images - mean) / std`, channels last, takes 86.
        pixels = images.to(torch.float32, copy=True).mul_(self.scale).add_(self.shift)
        logits: torch.Tensor = self.body(pixels.contiguous(memory_format=torch.channels_last))
        return logits.squeeze(1).float()

    def train(self, mode: bool = True) -> Network:
        """What is frozen stays in evaluation mode: its batch statistics belong to its weights, no block is left out."""
        super().train(mode)
        for module in self.modules():
            weights = list(module.parameters())
            if weights and not any(weight.requires_grad for weight in weights):
                module.eval()
        return self


class _PlainBody(nn.Module):
    """Convolution blocks, then the strongest and the mean response of each filter, then a small dense part.

    The maximum keeps a bleeding of a few pixels that the mean over the slice would drown.
    """

    def __init__(self, parameters: Hyperparameters, channels: int, stride: int) -> None:
        super().__init__()
        filters = parameters.filters
        self.blocks = nn.ModuleDict()
        if stride > 1:
            self.blocks["stem"] = nn.Sequential(*_convolution(channels, filters, 2 * stride - 1, stride))
            channels = filters
        for block in range(parameters.blocks):
            wide = filters * 2**block
            self.blocks[f"block{block + 1}"] = nn.Sequential(*_convolution(channels, wide, 3, 1), nn.MaxPool2d(2))
            channels = wide
        features = 2 * channels
        dense: list[nn.Module] = []
        if parameters.dense:
            dense = [nn.Linear(features, parameters.dense), nn.ReLU()]
            features = parameters.dense
        self.head = nn.Sequential(*dense, nn.Dropout(parameters.dropout), nn.Linear(features, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        for block in self.blocks.values():
            pixels = block(pixels)
        logits: torch.Tensor = self.head(torch.cat([pixels.amax((2, 3)), pixels.mean((2, 3))], 1))
        return logits


def _convolution(channels: int, filters: int, kernel: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, filters, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(filters, momentum=_BATCH_NORM_MOMENTUM),
        nn.ReLU(),
    ]


def build_network(parameters: Hyperparameters, image_shape: tuple[int, int, int]) -> Network:
    """The network of a draw, in training mode, with the layers before `unfreeze_from` frozen.

    Args:
        parameters: the draw; its batch size, rates and loss are not read.
        image_shape: `(channels, rows, columns)`.

    Raises:
        ConfigError: the parameters do not fit each other, the image or the weights file.
    """
    if parameters.architecture in {"plain_cnn", "stacked_cnn"}:
        network = _own(parameters, image_shape)
    else:
        network = _pretrained(parameters, image_shape[0])
    if parameters.weights not in {"none", "imagenet"}:
        _load(network, parameters, image_shape[0])
    _freeze(network, parameters)
    network.to(memory_format=torch.channels_last)
    return network.train()


def _own(parameters: Hyperparameters, image_shape: tuple[int, int, int]) -> Network:
    if parameters.weights == "imagenet":
        raise ConfigError(
            "weights: imagenet exists for torchvision families only, got architecture "
            f"{parameters.architecture}; use none"
        )
    body = (
        StackedBody(parameters, image_shape)
        if parameters.architecture == "stacked_cnn"
        else _plain(parameters, image_shape)
    )
    # CT windows clip most of a slice to black, so a quarter is nearer their mean than a half.
    return Network(body, (0.25,) * image_shape[0], (0.25,) * image_shape[0])


def _plain(parameters: Hyperparameters, image_shape: tuple[int, int, int]) -> _PlainBody:
    channels, *sides = image_shape
    stride = min(_LARGEST_STRIDE, max(1, 2 ** round(math.log2(min(sides) / _GRID))))
    if math.ceil(min(sides) / stride) < 2**parameters.blocks:
        raise ConfigError(
            f"blocks: each block halves the image, {parameters.blocks} are too many for {min(sides)} px "
            f"(reduced {stride} times first); use fewer blocks or prepare larger images"
        )
    return _PlainBody(parameters, channels, stride)


def _pretrained(parameters: Hyperparameters, channels: int) -> Network:
    import torchvision  # a second of start-up that the plain CNN does not need

    name = parameters.architecture
    family = FAMILIES[name]
    body: nn.Module = torchvision.models.get_model(name, weights=None)
    if parameters.weights == "imagenet":
        body.load_state_dict(imagenet(name))
    _adapt_stem(body, family.stem, channels)
    for path, module in list(body.get_submodule(family.classifier).named_modules(prefix=family.classifier)):
        if isinstance(module, nn.Dropout):
            body.set_submodule(path, nn.Identity())
    last = body.get_submodule(family.head)
    assert isinstance(last, nn.Linear)  # noqa: S101  (the table above says so)
    body.set_submodule(family.head, nn.Sequential(nn.Dropout(parameters.dropout), nn.Linear(last.in_features, 1)))
    if channels == 3:
        return Network(body, _IMAGENET_MEAN, _IMAGENET_STD)
    return Network(body, (sum(_IMAGENET_MEAN) / 3,) * channels, (sum(_IMAGENET_STD) / 3,) * channels)


def _adapt_stem(body: nn.Module, path: str, channels: int) -> None:
    first = body.get_submodule(path)
    assert isinstance(first, nn.Conv2d)  # noqa: S101
    if channels == first.in_channels:
        return
    new = nn.Conv2d(
        channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    new.weight.data = spread(first.weight.data, channels)
    if first.bias is not None and new.bias is not None:
        new.bias.data = first.bias.data
    body.set_submodule(path, new)


def _load(network: Network, parameters: Hyperparameters, channels: int) -> None:
    """Fill the body from a file of the same family (torchvision's names or those of a bundle); the head stays new."""
    found = {key.removeprefix("body."): value for key, value in read_weights(parameters.weights).items()}
    family = FAMILIES.get(parameters.architecture)
    head = family.head if family else "head"
    wanted = network.body.state_dict()
    for key, tensor in wanted.items():
        if key.startswith(f"{head}."):
            continue
        given = found.get(key)
        if given is None and key.endswith("num_batches_tracked"):
            continue  # older files lack it, and nothing here reads it
        if given is not None and family and key == f"{family.stem}.weight" and given.ndim == tensor.ndim:
            given = given if given.shape[1] == channels else spread(given, channels)
        if given is None or given.shape != tensor.shape:
            got = "nothing" if given is None else f"shape {tuple(given.shape)}"
            raise ConfigError(
                f"weights: {parameters.weights}: {key} of {parameters.architecture} must have shape "
                f"{tuple(tensor.shape)}, got {got}; use a file of the same family and settings"
            )
        wanted[key] = given
    network.body.load_state_dict(wanted)


def stages(parameters: Hyperparameters) -> dict[str, tuple[str, ...]]:
    """The stages of an architecture from input to output, with the prefixes of their modules; `head` is the last."""
    if parameters.architecture in {"plain_cnn", "stacked_cnn"}:
        stacked = parameters.architecture == "stacked_cnn"
        blocks = len(parameters.kernels_and_pools) if stacked else parameters.blocks
        names = ("stem", *(f"block{number + 1}" for number in range(blocks)))
        return {**{name: (f"blocks.{name}",) for name in names}, "head": ("head",)}
    family = FAMILIES[parameters.architecture]
    return {**family.stages, "head": (family.classifier,)}


def _freeze(network: Network, parameters: Hyperparameters) -> None:
    if parameters.unfreeze_from == "all":
        return
    known = stages(parameters)
    if parameters.unfreeze_from not in known:
        raise ConfigError(
            f"unfreeze_from: {parameters.architecture} has the stages all, {', '.join(known)}, got "
            f"{parameters.unfreeze_from!r}{nearest(parameters.unfreeze_from, known)}"
        )
    names = list(known)
    trainable = [prefix for name in names[names.index(parameters.unfreeze_from) :] for prefix in known[name]]
    for name, weight in network.body.named_parameters():
        weight.requires_grad = any(name.startswith(f"{prefix}.") for prefix in trainable)
