"""One typed draw: every knob that building and training a network knows, and the values each may take.

Search spaces are checked against these fields, so a parameter that nothing reads cannot be searched.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ARCHITECTURES", "Architecture", "Hyperparameters"]

Architecture = Literal[
    "plain_cnn",
    "resnet18",
    "resnet34",
    "resnet50",
    "densenet121",
    "efficientnet_b0",
    "convnext_tiny",
    "mobilenet_v3_small",
]
ARCHITECTURES: tuple[str, ...] = Architecture.__args__  # type: ignore[attr-defined]


class Hyperparameters(BaseModel):
    """The parameters of one trial.

    Attributes:
        architecture: `plain_cnn` or a torchvision family.
        blocks: convolution + pooling blocks of `plain_cnn`.
        filters: channels of the first block of `plain_cnn`; they double with each block.
        dense: units of the hidden dense layer of `plain_cnn`; 0 for none.
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
        loss: `weighted` is report A's class-weighted cross-entropy with the weights normalized to mean 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture = "plain_cnn"
    blocks: int = Field(default=2, ge=1, le=6)
    filters: int = Field(default=16, ge=1, le=512)
    dense: int = Field(default=64, ge=0, le=4096)
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
