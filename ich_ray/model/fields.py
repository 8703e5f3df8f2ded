"""Groups of hyperparameters, each with the values that its fields may take.

A field stands in the class of its group; hyperparameters.py puts the groups together. What depends on a group (which
trials share frozen layers, which networks are equal in speed or memory, what must fit a dataset) is derived there, so
that no list of names has to be kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ich_ray.storage import Line

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "DROPS",
    "AugmentationFields",
    "NetworkFields",
    "OptimizationFields",
    "OwnFields",
    "Probability",
    "SamplingFields",
]

# Marks a probability of leaving something out in training: frozen layers leave nothing out, and no tensor is larger or
# smaller for it.
DROPS = "drops"
Probability = Annotated[float, DROPS, Field(ge=0, lt=1)]


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class NetworkFields(_Group):
    """Which network is built.

    Attributes:
        architecture: a name of `ich_ray.model.architectures`; it may have fields of its own beside these.
        blocks: convolution + pooling blocks, where an architecture leaves their number open.
        filters: channels of the first block or of every block, where it leaves these open.
        dense: units of a hidden dense layer, where it has one; 0 for none.
        weights: `none`, a source that the architecture knows, such as `imagenet` (torchvision's own files), or the path
            of a safetensors file of the same family.
        unfreeze_from: the first trainable stage of a pretrained family, counted from the input: `all`, `head`, or a
            stage name of that family such as `layer4`.
        dropout: probability of dropping a feature before the last layer.
        resolution: rows and columns that the layers see, at most those of the dataset, whose images the network reduces
            to it; 0 for images as they were prepared.
    """

    architecture: Line = "plain_cnn"
    blocks: int = Field(default=2, ge=1, le=6)
    filters: int = Field(default=16, ge=1, le=512)
    dense: int = Field(default=64, ge=0, le=4096)
    weights: Line = "none"
    unfreeze_from: Line = "all"
    dropout: Probability = 0.5
    resolution: int = Field(default=0, ge=0, le=4096)


class OptimizationFields(_Group):
    """How the weights are fitted.

    Attributes:
        batch_size: images per optimizer step, over all workers together.
        learning_rate: the rate before decay.
        decay: inverse-time decay: the rate after `e` epochs is `learning_rate / (1 + decay * e)`.
        optimizer: SGD with Nesterov momentum, Adam or AdamW.
        momentum: of SGD; unused by the others.
        weight_decay: L2 for SGD and Adam, decoupled for AdamW.
        loss: `weighted` is cross-entropy weighted by class with the "balanced" weights n / (2 n_c), whose mean is 1.
    """

    batch_size: int = Field(default=64, ge=1, le=65536)
    learning_rate: float = Field(default=1e-3, gt=0, le=10)
    decay: float = Field(default=0.01, ge=0, le=100)
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    loss: Literal["weighted", "unweighted"] = "weighted"


class SamplingFields(_Group):
    """Which slices are shown, and how often.

    Attributes:
        training_slices: train on so many of the training slices, drawn at random with their share of haemorrhage; 0
            for all.
        epochs: end after so many passes over `training_slices`, within the budget; 0 to spend the whole budget.
    """

    training_slices: int = Field(default=0, ge=0, le=2**31)
    epochs: int = Field(default=0, ge=0, le=10_000)

    @model_validator(mode="after")
    def _epochs_of_something(self) -> Self:
        if self.epochs and not self.training_slices:
            raise ValueError("epochs counts passes over training_slices, which must be given with it")
        return self


class AugmentationFields(_Group):
    """How training images are changed at random; `training.augmentation` has the ranges.

    Attributes:
        augment: strength of flips, rotations, shifts, scalings and changes of brightness, which multiplies their
            ranges; 0 for none.
        erase: probability that a rectangle of an image is made black.
    """

    augment: float = Field(default=0.0, ge=0, le=1.5)
    erase: float = Field(default=0.0, ge=0, le=1)


class OwnFields(BaseModel):
    """Fields that one architecture alone reads, of the group `network`.

    An architecture without any has this class. Every field has a default. In spaces, ledgers and cards they stand
    beside the others, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def of(cls, parameters: NetworkFields) -> Self:
        """These fields of a draw."""
        return cls.model_validate({name: getattr(parameters, name) for name in cls.model_fields})
