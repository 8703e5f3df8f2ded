"""How the loss weighs the two classes, and what that does to the probabilities."""

from __future__ import annotations

import math

from ich_ray.errors import ConfigError

__all__ = ["class_weights", "prior_shift"]


def class_weights(loss: str, positives: int, negatives: int) -> tuple[float, float]:
    """`(w0, w1)` of report A's loss -(w1 y log p + w0 (1 - y) log(1 - p)): w_c = 1 / n_c, scaled to mean 1 over slices.

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
    """What to add to a logit so that it means the probability itself and not the class-weighted one: log(w0 / w1).

    Weights multiply the odds that minimize the loss by w1 / w0 (Elkan, "The foundations of cost-sensitive learning",
    2001, theorem 2); this divides them again.
    """
    w0, w1 = class_weights(loss, positives, negatives)
    return math.log(w0 / w1)
