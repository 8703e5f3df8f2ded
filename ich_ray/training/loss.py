"""Weighted binary cross-entropy of known labels, and the shift of probabilities it causes.

Array shapes: targets float32 `[n, labels]`, NaN where a label is unknown; logits likewise, or `[n]` of one label.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ich_ray.errors import ConfigError

if TYPE_CHECKING:
    from ich_ray.model.fields import OptimizationFields

__all__ = ["CrossEntropy", "Loss", "LossOf", "class_weights", "prior_shift"]


class Loss(Protocol):
    """The loss of a training, which knows the targets of all its slices.

    Attributes:
        shifts: what to add to the logits of each label so that they mean probabilities.
    """

    shifts: tuple[float, ...]

    def __call__(self, logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """The sum over a batch; `index` says which training slices these are."""


# (the draw, targets of all training slices on the device of the training)
LossOf: TypeAlias = Callable[["OptimizationFields", torch.Tensor], Loss]


class CrossEntropy:
    """Binary cross-entropy: of each slice the weighted mean over its known labels, summed over slices.

    A subtype counts 1 in the mean and `any`, the last label, `any_weight`: the weights of the RSNA 2019 competition are
    1 and 2. Beside them stand the `class_weights` of each label.

    Args:
        parameters: `loss` and `any_weight`.
        targets: of all training slices, `any` last.

    Raises:
        ConfigError: `any` is known of slices of one class only.
    """

    def __init__(self, parameters: OptimizationFields, targets: torch.Tensor) -> None:
        known = ~targets.isnan()
        # An unknown label is a negative of weight 0: nothing is masked while training.
        self._targets = targets.nan_to_num(0.0)
        positives = (self._targets > 0).sum(0).tolist()
        counts = [(n1, of - n1) for n1, of in zip(positives, known.sum(0).tolist(), strict=True)]
        balance = _balance(parameters.loss, counts)
        columns = [w0 + (w1 - w0) * self._targets[:, label] for label, (w0, w1) in enumerate(balance)]
        self._weights = torch.stack(columns, 1) * _shares(known, parameters.any_weight)
        self.shifts = tuple(math.log(w0 / w1) for w0, w1 in balance)

    def __call__(self, logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        targets = self._targets[index]
        return binary_cross_entropy_with_logits(
            logits.reshape(targets.shape), targets, self._weights[index], reduction="sum"
        )


def _balance(loss: str, counts: list[tuple[int, int]]) -> list[tuple[float, float]]:
    """The class weights of each label; a subtype that is known of one class only has nothing to balance."""
    *subtypes, of_any = counts
    return [
        *(class_weights(loss, *each) if min(each) else (1.0, 1.0) for each in subtypes),
        class_weights(loss, *of_any),
    ]


def _shares(known: torch.Tensor, any_weight: float) -> torch.Tensor:
    """The weight of each label in the mean over those of its slice, 0 where it is unknown; `[n, labels]`."""
    weights = known.float()
    weights[:, -1] *= any_weight
    return weights / weights.sum(1, keepdim=True)


def class_weights(loss: str, positives: int, negatives: int) -> tuple[float, float]:
    """`(w0, w1)` of the weighted loss: w_c = 1 / n_c, scaled to mean 1 over slices.

    The loss is -(w1 y log p + w0 (1 - y) log(1 - p)).

    Raises:
        ConfigError: a class has no training slice.
    """
    if min(positives, negatives) < 1:
        raise ConfigError(
            f"train role: slices with and without haemorrhage must be there, got {positives} with and {negatives} "
            "without; prepare a dataset with more patients"
        )
    if loss == "unweighted":
        return 1.0, 1.0
    total = positives + negatives
    return total / (2 * negatives), total / (2 * positives)


def prior_shift(loss: str, positives: int, negatives: int) -> float:
    """The shift log(w0 / w1) that takes the class weights out of a logit.

    Weights multiply the odds that minimize the loss by w1 / w0 (Elkan, "The foundations of cost-sensitive learning",
    2001, theorem 2); this divides them again.
    """
    w0, w1 = class_weights(loss, positives, negatives)
    return math.log(w0 / w1)
