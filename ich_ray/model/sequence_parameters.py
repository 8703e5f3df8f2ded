"""Parameters of a sequence model: a small network over features of the slices of a series.

The model is a name of `SEQUENCE_MODELS`; sequence_networks.py has them, with PyTorch. Defaults are frozen: what is on
disk leaves them out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticKnownError

from ich_ray.model.fields import OptimizationFields, Probability
from ich_ray.registry import Registry
from ich_ray.storage import Line

if TYPE_CHECKING:
    from torch import nn

__all__ = ["SEQUENCE_MODELS", "SequenceModel", "SequenceParameters"]

# (the draw, numbers of each place that it is given): a module with `width`, how many numbers it gives for each place,
# and forward(float32 [series, longest, numbers], bool [series, longest] of the places that are there, or None for all).
SequenceModel: TypeAlias = Callable[["SequenceParameters", int], "nn.Module"]

_NETWORKS = "ich_ray.model.sequence_networks"
SEQUENCE_MODELS: Registry[SequenceModel] = Registry(
    "sequence_models",
    {
        "bigru": f"{_NETWORKS}:bigru",
        "bilstm": f"{_NETWORKS}:bilstm",
        "transformer": f"{_NETWORKS}:TransformerModel",
        "dilated_conv": f"{_NETWORKS}:DilatedConvModel",
    },
    __name__,
)

_Width = Annotated[int, Field(ge=4, le=4096)]


class SequenceParameters(BaseModel):
    """The parameters of one trial of a sequence search.

    The optimizer is AdamW without decay of norms and biases; the rate rises linearly and then falls along a cosine to
    1 % by the end of the budget; gradients are clipped at a norm of 1.

    Attributes:
        model: a name of `SEQUENCE_MODELS`.
        hidden: units of each direction of a recurrent model, of the wide layer of a transformer's blocks, channels
            between the convolutions.
        layers: recurrent layers, blocks of a transformer, or convolutions, each twice as dilated as the one before.
        projection: numbers to which the inputs of a place are reduced.
        dropout: probability of leaving out a number between layers.
        noise: standard deviation of what is added to normalized features in training.
        slice_dropout: probability that a place shows nothing in training; it keeps its label.
        deltas: whether the differences to the places before and after are inputs, too.
        position: what is told of where a place lies: nothing, its number in the series, or mm along the series.
        study_weight: of the study head's loss, where that of the slices has 1.
        learning_rate: the highest rate.
        weight_decay: decoupled, as of AdamW.
        batch_size: series per optimizer step.
        warmup: share of the budget in which the rate rises from 1 %.
        any_weight: of `any` in the mean over labels, where a subtype has 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: Line = "bigru"
    hidden: _Width = 128
    layers: int = Field(default=1, ge=1, le=8)
    projection: _Width = 128
    dropout: Probability = 0.2
    noise: float = Field(default=0.02, ge=0, le=1)
    slice_dropout: Probability = 0.02
    deltas: bool = False
    position: Literal["none", "ordinal", "mm"] = "ordinal"
    study_weight: float = Field(default=0.25, ge=0, le=100)
    learning_rate: float = Field(default=3e-4, gt=0, le=10)
    weight_decay: float = Field(default=1e-2, ge=0, le=1)
    batch_size: int = Field(default=64, ge=1, le=65536)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    any_weight: float = Field(default=2.0, gt=0, le=100)

    @field_validator("model")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in SEQUENCE_MODELS:
            known = ", ".join(map(repr, SEQUENCE_MODELS.names()))
            raise PydanticKnownError("literal_error", {"expected": f"{known} or one that was registered"})
        return name

    def identity(self) -> dict[str, Any]:
        """The fields that differ from their defaults: the identity of a trial or state."""
        return self.model_dump(exclude_defaults=True)

    def is_same(self, stored: object) -> bool:
        """Whether parameters read from a file are these, with or without their defaults."""
        try:
            return type(self).model_validate(stored).identity() == self.identity()
        except ValidationError:
            return False

    @property
    def optimization(self) -> OptimizationFields:
        """How its weights are fitted, in the words of a network's draw."""
        return OptimizationFields(
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            schedule="cosine",
            warmup=self.warmup,
            optimizer="adamw",
            weight_decay=self.weight_decay,
            decay_norms=False,
            clip=1.0,
            loss="unweighted",
            any_weight=self.any_weight,
        )

    def images_within(self, budget: int) -> int:
        """Series that a trial is shown where a search grants `budget` of them: an image is a series."""
        return budget
