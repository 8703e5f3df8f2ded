"""The interface of an architecture: what the rest of the package may ask of one.

Array shapes: a body takes float32 `[n, channels, rows, columns]`, normalized, and returns logits
`[n, labels]`, one for each of `parameters.predicted_labels`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from ich_ray.errors import ConfigError, first_line
from ich_ray.model.fields import OwnFields

if TYPE_CHECKING:
    from torch import nn

    from ich_ray.model.fields import NetworkFields

__all__ = ["Architecture", "shape_misfit"]


class Architecture(ABC):
    """One kind of network.

    Its module imports PyTorch within functions: fields and stages are asked for where nothing is trained.

    Attributes:
        own: the fields that it alone reads.
        stage_fields: names of the fields on which the names of its stages depend.
        stem: path of the first convolution in the body; weights of a file are adapted there to other channels. None
            where a file must have as many.
        head: path of what stays new when weights come from a file.
        sources: names that `weights` may have beside `none` and the path of a file.
        is_small: whether a CPU shows more images a second in larger batches.
    """

    own: ClassVar[type[OwnFields]] = OwnFields
    stage_fields: ClassVar[tuple[str, ...]] = ()
    sources: ClassVar[tuple[str, ...]] = ()
    is_small: ClassVar[bool] = False
    stem: str | None = None
    head: str = "head"

    def check_name(self) -> None:  # noqa: B027  (most names are in a table)
        """Check that there is such a network; of use to families, whose names are checked no sooner.

        Raises:
            ConfigError: there is none.
        """

    @abstractmethod
    def build(self, parameters: NetworkFields, input_shape: tuple[int, int, int]) -> nn.Module:
        """The body for inputs of `(channels, rows, columns)`, with the weights of a source if one is named.

        Raises:
            ConfigError: parameters and input do not fit each other.
        """

    @abstractmethod
    def stages(self, parameters: NetworkFields) -> dict[str, tuple[str, ...]]:
        """The stages from input to output, with the prefixes of their modules; `head` is the last."""

    def check(self, parameters: NetworkFields, input_shape: tuple[int, int, int]) -> None:
        """Check that parameters and input fit, by default by running it without tensors.

        Raises:
            ConfigError: they do not.
        """
        import torch

        with torch.device("meta"):
            body = self.build(parameters.model_copy(update={"weights": "none"}), input_shape)
            try:
                logits = body(torch.empty((2, *input_shape)))
            except NotImplementedError:  # some layers cannot be tried so
                return
            except (AssertionError, RuntimeError, ValueError) as error:
                raise shape_misfit(parameters, input_shape, first_line(error)) from None
        if logits.shape != (wanted := (2, len(parameters.predicted_labels))):
            raise ConfigError(
                f"labels: {parameters.architecture} must give {wanted[1]} logits a slice for {parameters.labels}, got "
                f"{tuple(logits.shape)} of two slices; use another architecture, or labels: any"
            )

    def normalization(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, for values from 0 to 1."""
        # CT windows clip most of a slice to black, so a quarter is nearer their mean than a half.
        return (0.25,) * channels, (0.25,) * channels

    def pretrained(self, source: str) -> dict[str, Any]:
        """The weights of one of `sources`, fetched if they are not there.

        Raises:
            ConfigError: they are neither there nor to be had.
        """
        raise ConfigError(f"weights: {source} must be a source of the architecture, got one that has none; use none")

    def converted(self, tensors: dict[str, Any], body: nn.Module) -> dict[str, Any]:  # noqa: ARG002  (most are as they are)
        """The tensors of a file or source, in the names and shapes of `body` if they can be brought there."""
        return tensors

    def is_stem(self, tensor: str) -> bool:
        """Whether a tensor of the body is the kernel of its first convolution."""
        return tensor == f"{self.stem}.weight"

    def is_new(self, tensor: str) -> bool:
        """Whether a tensor of the body stays as it was drawn when weights come from a file."""
        return tensor.startswith(f"{self.head}.")

    def heat_layer(self, parameters: NetworkFields) -> str:
        """Path of the last layer that knows places, for Grad-CAM.

        Raises:
            ConfigError: there is none.
        """
        *_, last, _head = self.stages(parameters).values()
        return last[-1]

    def is_divisible_at(self, stage: str) -> bool:  # noqa: ARG002  (most have no such place)
        """Whether the body is a chain of modules at `stage`.

        What comes before it then reaches its first module unchanged. Frozen layers of such a body are computed once for
        all trials that share them.
        """
        return False


def shape_misfit(parameters: NetworkFields, input_shape: tuple[int, int, int], why: str) -> ConfigError:
    """The error of images that do not fit a network."""
    shape = "x".join(map(str, input_shape))
    return ConfigError(
        f"architecture: images must fit {parameters.architecture}, got {shape}: {why}; leave it out or prepare other "
        "images"
    )
