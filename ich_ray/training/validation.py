"""Validation metrics of a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ich_ray.statistics.metrics import Ranking, best_f_beta, confusion, log_loss

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["validation_metrics"]


def validation_metrics(labels: NDArray[np.float32], logits: NDArray[np.float32], shift: float) -> dict[str, float]:
    """The metrics of `Progress`, train_loss excepted.

    Args:
        labels: 0 or 1, `[n]`.
        logits: finite, `[n]`.
        shift: what to add to a logit so that it means a probability.
    """
    probabilities = torch.from_numpy(logits.astype("float64") + shift).sigmoid().numpy()
    ap, auc = Ranking(labels, logits).statistics()
    threshold, f2 = best_f_beta(labels, probabilities)
    decided = confusion(labels, logits, 0.0)
    return {
        "average_precision": ap,
        "roc_auc": auc,
        "f2": f2,
        "f2_threshold": threshold,
        "log_loss": log_loss(labels, probabilities),
        "sensitivity_at_half": decided.sensitivity,
        "specificity_at_half": decided.specificity,
    }
