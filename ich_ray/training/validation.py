"""Validation metrics of a report; others add theirs with `VALIDATION_METRICS.register`.

Those of single labels are there for networks that answer several.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from numpy.typing import NDArray

from ich_ray.registry import Registry
from ich_ray.statistics.metrics import Ranking, best_f_beta, log_loss, mean_or_nan, weighted_log_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

__all__ = ["VALIDATION_METRICS", "ValidationMetric", "label_metrics", "own_metrics", "validation_metrics"]

# (labels, logits) as below, the logits being the network's own, not corrected for class weights; NaN where undefined.
# Not asked where trials are judged by folds, whose pooled logits are corrected: each network has weights of its own.
ValidationMetric: TypeAlias = Callable[[NDArray[Any], NDArray[Any]], float]

VALIDATION_METRICS: Registry[ValidationMetric] = Registry("validation_metrics", {}, __name__)


def validation_metrics(labels: NDArray[np.float32], logits: NDArray[np.float32], shift: float) -> dict[str, float]:
    """The metrics of `Progress`, train_loss excepted, and then those that others add under other names.

    Args: as `own_metrics`.
    """
    own = own_metrics(labels, logits, shift)
    added = {name: VALIDATION_METRICS[name](labels, logits) for name in VALIDATION_METRICS.names()}
    return own | added | own  # these first, and no other under their names


def own_metrics(labels: NDArray[np.float32], logits: NDArray[np.float32], shift: float) -> dict[str, float]:
    """The metrics of `Progress`, train_loss excepted, and none that others add.

    Args:
        labels: 0 or 1, `[n]`.
        logits: finite, `[n]`.
        shift: what to add to a logit so that it means a probability.
    """
    probabilities = torch.from_numpy(logits.astype("float64") + shift).sigmoid().numpy()
    ap, auc = Ranking(labels, logits).statistics()
    threshold, f2 = best_f_beta(labels, probabilities)
    return {
        "average_precision": ap,
        "roc_auc": auc,
        "f2": f2,
        "f2_threshold": threshold,
        "log_loss": log_loss(labels, probabilities),
    }


def label_metrics(
    targets: NDArray[np.float32], logits: NDArray[np.float32], shifts: Sequence[float], labels: Sequence[str]
) -> dict[str, float]:
    """The metrics of subtypes, each on the slices where it is known; NaN where undefined.

    Args:
        targets: 0 or 1, NaN where unknown, `[n, labels]`.
        logits: finite, `[n, labels]`.
        shifts: what to add to the logits of each label so that they mean probabilities.
        labels: names, `any` last.
    """
    probabilities = torch.from_numpy(logits.astype("float64") + list(shifts)).sigmoid().numpy()
    found = {"weighted_log_loss": weighted_log_loss(targets, probabilities)}
    of_subtypes = []
    for label, name in enumerate(labels[:-1]):
        known = targets[:, label] >= 0
        statistics = Ranking(targets[known, label], logits[known, label]).statistics()
        found[f"average_precision_{name}"], found[f"roc_auc_{name}"] = statistics
        of_subtypes.append(statistics)
    for name, values in zip(("average_precision", "roc_auc"), zip(*of_subtypes, strict=True), strict=True):
        found[f"{name}_subtypes"] = mean_or_nan(values)
    found["subtypes_measured"] = float(sum(not math.isnan(auc) for _, auc in of_subtypes))
    return found
