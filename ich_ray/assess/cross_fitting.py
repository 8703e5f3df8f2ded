"""Probabilities of patients who calibrate, each fitted on others of them.

What was fitted on the patients who are measured would flatter whatever is measured. Knows arrays; nothing of files or
networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ich_ray.data.roles import FOLDS, assign_folds
from ich_ray.statistics.aggregation import patients_by_label

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["cross_fitted", "fold_count"]


def fold_count(labels: NDArray[Any], patients: NDArray[Any]) -> int:
    """Folds of which each has patients of both labels, 5 at most; below 2 there is nothing to fit on.

    Args:
        labels: of slices or studies, 0 or 1, `[n]`.
        patients: whose each is, `[n]`.
    """
    return min(FOLDS, *patients_by_label(labels, patients).values())


def cross_fitted(
    labels: NDArray[np.float64],
    logits: NDArray[np.float32],
    patients: NDArray[Any],
    folds: int,
    fit: Callable[[NDArray[np.float64], NDArray[np.float32]], Callable[[NDArray[np.float32]], NDArray[np.float64]]],
) -> NDArray[np.float64]:
    """Probabilities `[n]`, those of each fold by what was fitted on the others.

    Args:
        labels: 0 or 1, `[n]`; patients are divided by who has a 1.
        logits: `[n]` or `[n, k]`.
        patients: whose each is, `[n]`.
        folds: at most `fold_count`.
        fit: of labels and logits, what makes probabilities `[m]` of logits.
    """
    fold = assign_folds(patients, labels, np.full(len(labels), "calibration", object), 0, folds)
    found = np.empty(len(labels))
    for number in range(folds):
        held = fold == number
        found[held] = fit(labels[~held], logits[~held])(logits[held])
    return found
