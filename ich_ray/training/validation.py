"""Validation metrics of a report; others add theirs with `VALIDATION_METRICS.register`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from numpy.typing import NDArray

from ich_ray.registry import Registry
from ich_ray.statistics.metrics import Ranking, best_f_beta, log_loss

if TYPE_CHECKING:
    import numpy as np

__all__ = ["VALIDATION_METRICS", "ValidationMetric", "validation_metrics"]

# (labels, logits) as below; NaN where undefined
ValidationMetric: TypeAlias = Callable[[NDArray[Any], NDArray[Any]], float]

VALIDATION_METRICS: Registry[ValidationMetric] = Registry("validation_metrics", {}, __name__)


def validation_metrics(labels: NDArray[np.float32], logits: NDArray[np.float32], shift: float) -> dict[str, float]:
    """The metrics of `Progress`, train_loss excepted, and then those that others add under other names.

    Args:
        labels: 0 or 1, `[n]`.
        logits: finite, `[n]`.
        shift: what to add to a logit so that it means a probability.
    """
    probabilities = torch.from_numpy(logits.astype("float64") + shift).sigmoid().numpy()
    ap, auc = Ranking(labels, logits).statistics()
    threshold, f2 = best_f_beta(labels, probabilities)
    own = {
        "average_precision": ap,
        "roc_auc": auc,
        "f2": f2,
        "f2_threshold": threshold,
        "log_loss": log_loss(labels, probabilities),
    }
    added = {name: VALIDATION_METRICS[name](labels, logits) for name in VALIDATION_METRICS.names()}
    return own | added | own  # these first, and no other under their names
