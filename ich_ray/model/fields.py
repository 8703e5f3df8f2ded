"""Groups of hyperparameters, each with the values that its fields may take.

A field stands in the class of its group; hyperparameters.py puts the groups together. What depends on a group (which
trials share frozen layers, which networks are equal in speed or memory, what must fit a dataset) is derived there, so
that no list of names has to be kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ich_ray.storage import Line
from ich_ray.vocabulary import LABELS

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
        labels: what the network answers: `any` alone, or `all`: the five subtypes and `any`, a logit each.
        resolution: rows and columns that the layers see, at most those of the dataset, whose images the network reduces
            to it; 0 for images as they were prepared.
        crop: what of an image is shown: all of it (`none`), or the `head`, by the box of its series.
        scale: how large: `pixels` as they are, or `mm`: squares of one size in mm (data/shown_rectangles.py).
        neighbors: slices of the series that the network sees on either side of the one that it answers for.
        neighbor_windows: which windows of a neighbor it sees: `same` as of the slice itself, or the `first` one alone.
    """

    architecture: Line = "plain_cnn"
    blocks: int = Field(default=2, ge=1, le=6)
    filters: int = Field(default=16, ge=1, le=512)
    dense: int = Field(default=64, ge=0, le=4096)
    weights: Line = "none"
    unfreeze_from: Line = "all"
    dropout: Probability = 0.5
    labels: Literal["any", "all"] = "any"
    resolution: int = Field(default=0, ge=0, le=4096)
    crop: Literal["none", "head"] = "none"
    scale: Literal["pixels", "mm"] = "pixels"
    neighbors: int = Field(default=0, ge=0, le=2)
    neighbor_windows: Literal["same", "first"] = "same"

    @property
    def shows_part(self) -> bool:
        """Whether a network sees a rectangle of its own of each image."""
        return self.crop != "none" or self.scale != "pixels"

    @property
    def predicted_labels(self) -> tuple[str, ...]:
        """The label of each logit, in order; `any` is the last."""
        return LABELS if self.labels == "all" else ("any",)


class OptimizationFields(_Group):
    """How the weights are fitted.

    Attributes:
        batch_size: images per optimizer step, over all workers together.
        learning_rate: the highest rate.
        schedule: a name of `ich_ray.model.schedule`. `inverse_time` goes by epochs and alone reads `decay`; `constant`
            stays; `cosine` falls to 1 % by the end of the trial's whole budget, whatever its rungs; `flat_cosine`
            stays for 75 % of what follows the warm-up, then does the same.
        warmup: share of the budget in which the rate rises linearly from 1 %; 0 for none.
        decay: inverse-time decay: the rate after `e` epochs is `learning_rate / (1 + decay * e)`.
        optimizer: SGD with Nesterov momentum, Adam or AdamW.
        momentum: of SGD; unused by the others.
        weight_decay: L2 for SGD and Adam, decoupled for AdamW.
        decay_norms: whether weight decay is of biases and normalization layers, too.
        clip: the largest norm of the gradient of all weights together, beyond which it is scaled down; 0 for no limit.
        ema: decay per 64 images of an average of the weights, which is then validated, kept and bundled in their place
            (training/averaging.py); a step of b images uses `ema ** (b / 64)`; 0 for no average.
        loss: `weighted` is cross-entropy weighted by class with the "balanced" weights n / (2 n_c), whose mean is 1.
        any_weight: of `any` in the mean over labels, where a subtype has 1; read with `labels: all` alone.
    """

    batch_size: int = Field(default=64, ge=1, le=65536)
    learning_rate: float = Field(default=1e-3, gt=0, le=10)
    schedule: Line = "inverse_time"
    warmup: float = Field(default=0.0, ge=0, lt=1)
    decay: float = Field(default=0.01, ge=0, le=100)
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    decay_norms: bool = True
    clip: float = Field(default=0.0, ge=0, le=1e6)
    ema: float = Field(default=0.0, ge=0, lt=1)
    loss: Literal["weighted", "unweighted"] = "weighted"
    any_weight: float = Field(default=2.0, gt=0, le=100)


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
