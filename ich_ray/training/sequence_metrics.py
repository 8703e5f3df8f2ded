"""Validation metrics of a sequence model: those of a network on slices, and those of studies.

They choose among trials, and are below the bundle: a study has the mean logit of its series. What the card and
`evaluate` say of a study is by another rule, as only the bundle knows which series is most like those that trained it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from ich_ray.statistics.metrics import Ranking, log_loss
from ich_ray.training.validation import label_metrics, validation_metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.training.sequence_set import SequenceSet

__all__ = ["of_studies", "sequence_metrics", "study_metrics"]

_OF_SLICES = ("average_precision", "roc_auc", "f2", "f2_threshold", "log_loss")


def sequence_metrics(given: SequenceSet, slices: NDArray[np.float32], study: NDArray[np.float32]) -> dict[str, float]:
    """Metrics of a report, train_loss excepted; NaN where undefined.

    Those of slices are a network's, by the same names: of `any` where it is known, and of subtypes.

    Args:
        given: what is measured on.
        slices: finite logits of its slices, `[n, labels]`.
        study: finite logits of the examination of each series, `[series, labels]`.
    """
    labels = given.targets[:, -1]
    known = ~np.isnan(labels)
    found = dict.fromkeys(_OF_SLICES, math.nan)
    if known.any():
        found = validation_metrics(labels[known], slices[known, -1], 0.0)
        if len(given.labels) > 1:
            told = ~np.isnan(given.targets).all(1)
            found |= label_metrics(given.targets[told], slices[told], (0.0,) * len(given.labels), given.labels)
    return found | study_metrics(*of_studies(given, study))


def of_studies(given: SequenceSet, study: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Targets and logits of studies, `[studies, labels]`: of several series the mean logit."""
    _, which, counts = np.unique(given.studies, return_inverse=True, return_counts=True)
    logits = np.zeros((len(counts), study.shape[1]))
    np.add.at(logits, which, study)
    targets = np.full(logits.shape, np.nan, np.float32)
    np.fmax.at(targets, which, given.study_targets)
    return targets, (logits / counts[:, None]).astype(np.float32)


def study_metrics(targets: NDArray[np.float32], logits: NDArray[np.float32]) -> dict[str, float]:
    """Metrics of `any` on the studies of which it is known; NaN where undefined."""
    known = ~np.isnan(targets[:, -1])
    if not known.any():
        return dict.fromkeys(("study_average_precision", "study_roc_auc", "study_log_loss"), math.nan)
    labels, scores = targets[known, -1], logits[known, -1]
    ap, auc = Ranking(labels, scores).statistics()
    probabilities = torch.from_numpy(scores.astype("float64")).sigmoid().numpy()
    return {
        "study_average_precision": ap,
        "study_roc_auc": auc,
        "study_log_loss": log_loss(labels, probabilities),
    }
