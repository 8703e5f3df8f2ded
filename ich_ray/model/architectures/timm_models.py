"""The networks of timm (PyTorch Image Models) by name: `timm/resnet18`.

A tag of its weights may follow, `timm/resnet18.tv_in1k`. The body is timm's own module, so that tensors are called
what they are called in timm's files. What differs between its networks (first convolution, classifier, mean, input
size) is read from timm.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ich_ray.errors import ConfigError, first_line, nearest
from ich_ray.model.architectures.base import Architecture, shape_misfit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from ich_ray.model.fields import NetworkFields

__all__ = ["TimmModel"]

_RGB = 3
# Classes whose forward pass is a chain of their modules from stem to head, each seen to give the same logits when cut
# before any stage. Transformers add positions between their modules.
_CHAINS = (
    "ByobNet", "ConvNeXt", "DenseNet", "EfficientNet", "MobileNetV3", "NormFreeNet", "RegNet", "ResNet", "ResNetV2",
    "VGG",
)  # fmt: skip
# What a filter of timm raises over tensors that are not of its network.
_NOT_ITS_TENSORS = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class TimmModel(Architecture):
    """One network of timm; `name` is timm's, and need not exist until something is asked of it."""

    name: str

    sources = ("imagenet",)

    def check_name(self) -> None:
        import timm  # seconds that reading a search does not need

        try:
            found = timm.is_model(self.name) and timm.get_pretrained_cfg(self.name)
        except RuntimeError:  # another tag
            found = None
        if not found:
            network, _, tag = self.name.partition(".")
            known = timm.list_pretrained(f"{network}.*") if tag and timm.is_model(network) else timm.list_models()
            close = nearest(f"timm/{self.name}", [f"timm/{name}" for name in known])
            raise ConfigError(
                f"architecture: must be a network that timm {timm.__version__} has, got 'timm/{self.name}'{close}; "
                "timm.list_models() in Python lists all"
            )

    def build(self, parameters: NetworkFields, input_shape: tuple[int, int, int]) -> nn.Module:
        self.check_name()
        channels, *sides = input_shape
        wanted: dict[str, Any] = {
            "in_chans": channels,
            "num_classes": len(parameters.predicted_labels),
            "drop_rate": parameters.dropout,
        }
        if self._facts["fixed_input_size"]:
            wanted["img_size"] = (sides[0], sides[1])
        try:
            body = _created(self.name, **wanted)
        except (ArithmeticError, AssertionError, RuntimeError, ValueError) as error:
            raise shape_misfit(parameters, input_shape, first_line(error)) from None
        except TypeError as error:
            raise ConfigError(
                f"architecture: a network must take channels, outputs and dropout, got timm/{self.name}: "
                f"{first_line(error)}; use another"
            ) from None
        _check_patches(parameters, input_shape, body)
        if parameters.weights in self.sources:
            from ich_ray.model.pretrained_weights import fill  # loads PyTorch

            fill(body, self.pretrained(parameters.weights), self, parameters)
        return body

    def stages(self, parameters: NetworkFields) -> dict[str, tuple[str, ...]]:  # noqa: ARG002  (Architecture)
        """`stem`, then timm's own paths such as `layer1`, `stages.0` or `blocks.3`, then `head`."""
        return _stages(self.name)

    def normalization(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        mean, std = self._facts["mean"], self._facts["std"]
        if channels % len(mean):
            return (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
        return tuple(mean) * (channels // len(mean)), tuple(std) * (channels // len(std))

    def pretrained(self, source: str) -> dict[str, Any]:  # noqa: ARG002  (there is one)
        """The weights of the name or its tag, in timm's names, fetched from its hub if they are not there.

        Raises:
            ConfigError: timm has none, or the file is not there and cannot be fetched; the message says where it is
                looked for.
        """
        from ich_ray.model.architectures.timm_hub import fetched

        self.check_name()
        return fetched(self.name, self._facts)

    def converted(self, tensors: dict[str, Any], body: nn.Module) -> dict[str, Any]:
        """Positions and tables that fit the sides of the input, resampled by timm's own filter."""
        import torch

        wanted = body.state_dict()
        kept = [name for name in wanted if not self.is_new(name) and not self.is_stem(name)]
        if all(name in tensors and tensors[name].shape == wanted[name].shape for name in kept):
            return tensors
        resampled = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)
        if resampled is None:
            return tensors
        try:
            with torch.device("cpu"):  # the body may be an outline
                return dict(resampled(dict(tensors), body))
        except _NOT_ITS_TENSORS:
            return tensors

    def is_stem(self, tensor: str) -> bool:
        return tensor in {f"{path}.weight" for path in _paths(self._facts["first_conv"])}

    def is_new(self, tensor: str) -> bool:
        return tensor.startswith(tuple(f"{path}." for path in _paths(self._facts["classifier"])))

    def heat_layer(self, parameters: NetworkFields) -> str:  # noqa: ARG002  (Architecture)
        layer = _map_layer(self.name)
        if layer is None:
            raise ConfigError(
                f"--heatmaps: a network must end in a map of places, which Grad-CAM weighs, got timm/{self.name}, "
                "which ends in none; leave it out"
            )
        return layer

    def is_divisible_at(self, stage: str) -> bool:  # noqa: ARG002  (everywhere or nowhere)
        return type(_outline(self.name)).__name__ in _CHAINS

    @property
    def _facts(self) -> dict[str, Any]:
        """What timm says of it: `first_conv`, `classifier`, `mean`, `std`, `fixed_input_size`, sources."""
        facts: dict[str, Any] = _outline(self.name).pretrained_cfg  # type: ignore[assignment]
        return {"fixed_input_size": False, **facts}


def _created(name: str, **wanted: Any) -> nn.Module:
    """The network without stochastic depth, which some do not have and then do not take."""
    import timm

    try:
        return timm.create_model(name, drop_path_rate=0.0, **wanted)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        return timm.create_model(name, **wanted)


@lru_cache(maxsize=32)
def _outline(name: str) -> nn.Module:
    """The network of three channels without memory, in evaluation mode."""
    import torch

    TimmModel(name).check_name()
    # What is drawn from here on must not depend on whether this was asked before.
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return _created(name, num_classes=1).eval()


def _paths(written: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (written,) if isinstance(written, str) else tuple(written or ())


def _check_patches(parameters: NetworkFields, input_shape: tuple[int, int, int], body: nn.Module) -> None:
    """A convolution over patches leaves out, without a word, what they do not cover."""
    size = getattr(getattr(body, "patch_embed", None), "patch_size", None)
    if size is None:
        return
    patch = size if isinstance(size, tuple) else (size, size)
    if any(side % part for side, part in zip(input_shape[1:], patch, strict=True)):
        raise shape_misfit(parameters, input_shape, f"its patches of {patch[0]} px must divide them")


@lru_cache(maxsize=32)
def _stages(name: str) -> dict[str, tuple[str, ...]]:
    """As timm groups the tensors of the network for rates by layer; its modules where it does not."""
    from timm.models import group_parameters

    body = _outline(name)
    heads = tuple(f"{path}." for path in _paths(TimmModel(name)._facts["classifier"]))
    try:
        numbers = group_parameters(body, body.group_matcher(coarse=True), reverse=True)  # type: ignore[operator]
    except (AssertionError, AttributeError, TypeError):  # it has no groups, or none as coarse
        numbers = {}
    last = max(numbers.values(), default=0)
    if not numbers or any(name.startswith(heads) and numbers[name] != last for name in numbers):
        numbers = _by_child(body, heads)
    found: dict[int, list[str]] = {number: [] for number in sorted(set(numbers.values()))}
    for number, path in _covered(body, "", numbers):
        found[number].append(path)
    first, *others, head = found.values()
    # A few networks call a stage in the middle by one of these two names.
    named = {f"{paths[0]}_stage" if paths[0] in {"stem", "head"} else paths[0]: tuple(paths) for paths in others}
    return {"stem": tuple(first), **named, "head": tuple(head)}


def _by_child(body: nn.Module, heads: tuple[str, ...]) -> dict[str, int]:
    """The place of each tensor's module among the children, in their order; those of the head come last."""
    from torch import nn

    parts: list[str] = []
    for child, module in body.named_children():
        several = isinstance(module, nn.ModuleList | nn.Sequential)
        parts += [f"{child}.{part}." for part, _ in module.named_children()] if several else [f"{child}."]
    own = tuple(f"{path.partition('.')[0]}." for path in heads)
    parts = [part for part in parts if not part.startswith(own)]
    return {
        name: len(parts)
        if name.startswith(own)
        else next((place for place, part in enumerate(parts) if name.startswith(part)), 0)
        for name, _ in body.named_parameters()
    }


def _covered(module: nn.Module, path: str, numbers: dict[str, int]) -> Iterator[tuple[int, str]]:
    """The fewest paths of modules, and of tensors between them, that hold the tensors of each number."""
    for name, _ in module.named_parameters(prefix=path, recurse=False):
        if name in numbers:  # else it is shared, and counted where it came first
            yield numbers[name], name
    for child, inner in module.named_children():
        inside = f"{path}.{child}" if path else child
        held = {numbers[name] for name, _ in inner.named_parameters(prefix=inside) if name in numbers}
        if len(held) == 1:
            yield held.pop(), inside
        else:
            yield from _covered(inner, inside, numbers)


@lru_cache(maxsize=32)
def _map_layer(name: str) -> str | None:
    """The module whose output is the map `[n, features, rows, columns]` that is pooled for the head."""
    import torch

    body = _outline(name)
    last: dict[int, str] = {}  # of each output the outermost module that gives it
    outputs = []

    def keep(path: str, output: Any) -> None:
        outputs.append(output)  # no two have one address
        last[id(output)] = path

    hooks = [
        module.register_forward_hook(lambda _, __, output, path=path: keep(path, output))
        for path, module in body.named_modules()
        if path
    ]
    try:
        with torch.device("meta"):
            pooled = body.forward_features(torch.empty((1, *body.pretrained_cfg["input_size"])))  # type: ignore[operator,index]
    finally:
        for hook in hooks:
            hook.remove()
    is_map = isinstance(pooled, torch.Tensor) and pooled.ndim == 4 and getattr(body, "output_fmt", "NCHW") == "NCHW"
    return last.get(id(pooled)) if is_map else None
