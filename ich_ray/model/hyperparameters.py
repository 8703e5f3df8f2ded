"""One typed draw: every knob that building and training a network knows, and the values each may take.

Search spaces are checked against these fields, so a parameter that nothing reads cannot be searched.

Defaults are frozen: what is on disk leaves them out. A new field has one that means "as before".
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

__all__ = ["ARCHITECTURES", "STACKED_ONLY", "Architecture", "Hyperparameters"]

Architecture = Literal[
    "plain_cnn",
    "stacked_cnn",
    "resnet18",
    "resnet34",
    "resnet50",
    "densenet121",
    "efficientnet_b0",
    "convnext_tiny",
    "mobilenet_v3_small",
]
ARCHITECTURES: tuple[str, ...] = Architecture.__args__  # type: ignore[attr-defined]

# What no other architecture reads.
STACKED_ONLY = (
    "convolutions",
    "padding",
    "input_batch_norm",
    "dense_layers",
    "dropout_before_pool",
    "dropout_after_pool",
    "dropout_dense",
)


class Hyperparameters(BaseModel):
    """The parameters of one trial.

    Attributes:
        architecture: `plain_cnn`, `stacked_cnn` (convolutions as listed, flattened) or a torchvision family.
        blocks: convolution + pooling blocks of `plain_cnn`.
        filters: channels of the first block of `plain_cnn`, where they double with each block; of every block of
            `stacked_cnn`.
        convolutions: kernel/pool of each block of `stacked_cnn`, such as `6/3,3/2,3/2`, or `none`.
        padding: `same` keeps the sides through a convolution, `valid` takes the kernel less one from them.
        input_batch_norm: batch normalization of the pixels before the first block.
        dense: units of a hidden dense layer of the two; 0 for none.
        dense_layers: how many of those `stacked_cnn` has.
        dropout_before_pool: of `stacked_cnn`, probability of dropping a pixel of a filter between ReLU and pooling.
        dropout_after_pool: the same behind the pooling.
        dropout_dense: the same behind each hidden dense layer.
        weights: `none`, `imagenet` (torchvision's own files), or the path of a safetensors file of the same family.
        unfreeze_from: the first trainable stage of a pretrained family, counted from the input: `all`, `head`, or a
            stage name of that family such as `layer4`.
        batch_size: images per optimizer step, over all workers together.
        learning_rate: the rate before decay.
        decay: inverse-time decay: the rate after `e` epochs is `learning_rate / (1 + decay * e)`.
        dropout: probability of dropping a feature before the last layer.
        optimizer: SGD with Nesterov momentum, Adam or AdamW.
        momentum: of SGD; unused by the others.
        weight_decay: L2 for SGD and Adam, decoupled for AdamW.
        loss: `weighted` is report A's class-weighted cross-entropy with the weights normalized to mean 1, which are the
            "balanced" weights n / (2 n_c) of report B.
        training_slices: train on so many of the training slices, drawn at random with their share of haemorrhage; 0
            for all.
        epochs: end after so many passes over `training_slices`, within the budget; 0 to spend the whole budget.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture = "plain_cnn"
    blocks: int = Field(default=2, ge=1, le=6)
    filters: int = Field(default=16, ge=1, le=512)
    convolutions: str = Field(default="3/2,3/2", pattern=r"^(none|[1-9]\d?/[1-9]\d?(,[1-9]\d?/[1-9]\d?){0,7})$")
    padding: Literal["same", "valid"] = "same"
    input_batch_norm: bool = False
    dense: int = Field(default=64, ge=0, le=4096)
    dense_layers: int = Field(default=1, ge=1, le=8)
    dropout_before_pool: float = Field(default=0.0, ge=0, lt=1, allow_inf_nan=False)
    dropout_after_pool: float = Field(default=0.0, ge=0, lt=1, allow_inf_nan=False)
    dropout_dense: float = Field(default=0.0, ge=0, lt=1, allow_inf_nan=False)
    weights: str = "none"
    unfreeze_from: str = "all"
    batch_size: int = Field(default=64, ge=1, le=65536)
    learning_rate: float = Field(default=1e-3, gt=0, le=10, allow_inf_nan=False)
    decay: float = Field(default=0.01, ge=0, le=100, allow_inf_nan=False)
    dropout: float = Field(default=0.5, ge=0, lt=1, allow_inf_nan=False)
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    momentum: float = Field(default=0.9, ge=0, lt=1, allow_inf_nan=False)
    weight_decay: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    loss: Literal["weighted", "unweighted"] = "weighted"
    training_slices: int = Field(default=0, ge=0)
    epochs: int = Field(default=0, ge=0, le=10_000)

    @model_validator(mode="after")
    def _epochs_of_something(self) -> Hyperparameters:
        if self.epochs and not self.training_slices:
            raise ValueError("epochs counts passes over training_slices, which must be given with it")
        return self

    def identity(self) -> dict[str, Any]:
        """What a trial, a retraining and a resumed state are told apart by: the fields that differ from their defaults.

        A field that is added later changes the identity of nothing that was written without it.
        """
        return self.model_dump(exclude_defaults=True)

    def is_same(self, stored: object) -> bool:
        """Whether parameters read from a file are these, with their defaults (as of version 0.1.0) or without."""
        try:
            return type(self).model_validate(stored).identity() == self.identity()
        except ValidationError:
            return False

    @property
    def kernels_and_pools(self) -> list[tuple[int, int]]:
        """Sides of the convolution and of the pooling of each block of `stacked_cnn`."""
        blocks = () if self.convolutions == "none" else self.convolutions.split(",")
        sides = [tuple(map(int, block.split("/"))) for block in blocks]
        return [(kernel, pool) for kernel, pool in sides]

    @property
    def of_speed(self) -> tuple[tuple[str, object], ...]:
        """What the speed of a step depends on, apart from the images: whether there is dropout, and not how much."""
        free = {"learning_rate", "decay", "momentum", "weight_decay", "optimizer", "loss", "weights"}
        named = self.model_dump(exclude=free | {"training_slices", "epochs"}).items()
        return tuple((name, value > 0 if name.startswith("dropout") else value) for name, value in named)

    def images_within(self, budget: int) -> int:
        """Images that a trial is trained on where a search grants `budget` of them."""
        return min(budget, self.epochs * self.training_slices) if self.epochs else budget
