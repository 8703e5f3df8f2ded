"""What an adaptation changed for patients who neither taught nor chose it, with intervals.

Before and after are each scaled or blended by what the other folds of these patients fit, so that the difference is
that of the sequence model and not of its calibration. Knows arrays; nothing of files or networks.

Array shapes: targets are `[n]`, 0 or 1; logits `[n, k]`, of `any`; patients `[n]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit

from ich_ray.assess.cross_fitting import cross_fitted, fold_count
from ich_ray.assess.paired_changes import Change, format_change, paired_changes
from ich_ray.bundle.adaptation_note import AdaptationFigure
from ich_ray.refit.sequence_figures import fit_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

__all__ = ["changed_figures", "format_figures"]


def changed_figures(
    targets: NDArray[np.float32],
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    patients: NDArray[np.object_],
    prefix: str = "",
) -> dict[str, AdaptationFigure]:
    """Figures of `any` by name, behind a prefix; none where fewer than two patients are of either kind."""
    known = np.isfinite(targets)
    truth, whose = targets[known].astype(np.float64), patients[known]
    folds = fold_count(truth, whose)
    if folds < 2:
        return {}
    one, other = (cross_fitted(truth, logits[known], whose, folds, _fitted) for logits in (before, after))
    return {
        f"{prefix}{name}": AdaptationFigure(**change._asdict())
        for name, change in paired_changes(truth, one, other, whose).items()
    }


def _fitted(
    truth: NDArray[np.float64], logits: NDArray[np.float32]
) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
    weights = fit_weights(truth, logits)
    return lambda others: np.asarray(expit(weights(others)))


def format_figures(figures: Mapping[str, AdaptationFigure]) -> list[str]:
    """A line for each: before, after, and the difference with its interval."""
    return [f"{name.replace('_', ' ')} {format_change(Change(**one.model_dump()))}" for name, one in figures.items()]
