"""The families of torchvision: one line of facts for each, in torchvision's own names."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ich_ray.errors import ConfigError
from ich_ray.model.architectures.base import Architecture

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from ich_ray.model.fields import NetworkFields

__all__ = ["TorchvisionModel"]

# Of ImageNet, for values from 0 to 1: https://docs.pytorch.org/vision/stable/models.html
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class TorchvisionModel(Architecture):
    """What differs between families.

    Attributes:
        name: torchvision's.
        stem: the first convolution, which is adapted when inputs have other than three channels.
        head: the last linear layer, which is replaced by dropout and a linear unit for each label.
        body: the trainable stages from input to output, each with its module prefixes; `head` comes after them.
        unbroken_to_head: whether modules alone, and no function, stand between the last stage and the head.
        renamed: to what torchvision's module calls a tensor of its own file.
    """

    name: str
    stem: str
    head: str
    body: Mapping[str, tuple[str, ...]]
    unbroken_to_head: bool = True
    renamed: Callable[[str], str] = field(default=lambda key: key)

    sources = ("imagenet",)

    def build(self, parameters: NetworkFields, input_shape: tuple[int, int, int]) -> nn.Module:
        import torchvision  # seconds that reading stages does not need
        from torch import nn

        body: nn.Module = torchvision.models.get_model(self.name, weights=None)
        if parameters.weights in self.sources:
            body.load_state_dict(self.pretrained(parameters.weights))
        _adapt_stem(body, self.stem, input_shape[0])
        for path, module in list(body.get_submodule(self._classifier).named_modules(prefix=self._classifier)):
            if isinstance(module, nn.Dropout):
                body.set_submodule(path, nn.Identity())
        last = body.get_submodule(self.head)
        assert isinstance(last, nn.Linear)  # noqa: S101  (the table below says so)
        units = nn.Linear(last.in_features, len(parameters.predicted_labels))
        body.set_submodule(self.head, nn.Sequential(nn.Dropout(parameters.dropout), units))
        return body

    def stages(self, parameters: NetworkFields) -> dict[str, tuple[str, ...]]:  # noqa: ARG002  (Architecture)
        return {**self.body, "head": (self._classifier,)}

    @property
    def _classifier(self) -> str:
        """The top-level module that holds the head."""
        return self.head.split(".")[0]

    def check(self, parameters: NetworkFields, input_shape: tuple[int, int, int]) -> None:  # noqa: ARG002
        if not _passes(self.name, input_shape[1:]):
            raise ConfigError(
                f"architecture: images must be large enough for {self.name}, got {input_shape[1]} px; leave it out or "
                "prepare larger images"
            )

    def normalization(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if channels == 3:
            return _MEAN, _STD
        return (sum(_MEAN) / 3,) * channels, (sum(_STD) / 3,) * channels

    def pretrained(self, source: str) -> dict[str, Any]:  # noqa: ARG002  (there is one)
        """ImageNet weights: torchvision's own file, which its own loader fetches if it is not there.

        Raises:
            ConfigError: the file is not there and cannot be fetched; the message says where it is looked for.
        """
        import torch
        import torchvision

        weights = torchvision.models.get_model_weights(self.name).DEFAULT
        expected = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
        try:
            state: dict[str, Any] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"weights: imagenet needs the file {expected}, got {type(error).__name__} while fetching it; copy "
                f"{expected.name} there from a machine with a network, set TORCH_HOME, or use weights: none"
            ) from None
        return {self.renamed(key): value for key, value in state.items()}

    def is_divisible_at(self, stage: str) -> bool:
        return stage != "head" or self.unbroken_to_head


@lru_cache
def _passes(name: str, sides: tuple[int, int]) -> bool:
    """Whether images of these sides survive all poolings; torchvision looks at them no sooner."""
    import torch
    import torchvision

    with torch.device("meta"):
        body = torchvision.models.get_model(name, weights=None)
        try:
            body(torch.empty((2, 3, *sides)))
        except (RuntimeError, ValueError):
            return False
    return True


def _adapt_stem(body: nn.Module, path: str, channels: int) -> None:
    from torch import nn

    from ich_ray.model.pretrained_weights import spread

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


def _residual(name: str) -> TorchvisionModel:
    layers = {f"layer{number}": (f"layer{number}",) for number in range(1, 5)}
    return TorchvisionModel(name=name, stem="conv1", head="fc", body={"stem": ("conv1", "bn1"), **layers})


def _numbered(name: str, count: int, head: str) -> TorchvisionModel:
    body = {f"features{number}": (f"features.{number}",) for number in range(count)}
    return TorchvisionModel(name=name, stem="features.0.0", head=head, body=body)


def _dense_names(key: str) -> str:
    """Old DenseNet files write `norm.1` where the module is called `norm1`."""
    for word in ("norm", "relu", "conv"):
        for number in "12":
            key = key.replace(f".{word}.{number}.", f".{word}{number}.")
    return key


RESNET18 = _residual("resnet18")
RESNET34 = _residual("resnet34")
RESNET50 = _residual("resnet50")
DENSENET121 = TorchvisionModel(
    name="densenet121",
    stem="features.conv0",
    head="classifier",
    body={
        "stem": ("features.conv0", "features.norm0"),
        **{f"denseblock{n}": (f"features.denseblock{n}", f"features.transition{n}") for n in (1, 2, 3)},
        "denseblock4": ("features.denseblock4", "features.norm5"),
    },
    unbroken_to_head=False,
    renamed=_dense_names,
)
EFFICIENTNET_B0 = _numbered("efficientnet_b0", 9, "classifier.1")
CONVNEXT_TINY = _numbered("convnext_tiny", 8, "classifier.2")
MOBILENET_V3_SMALL = _numbered("mobilenet_v3_small", 13, "classifier.3")
