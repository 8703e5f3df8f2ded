"""Thresholds on calibrated probabilities: which one, and what it gives on the slices that chose it.

Knows labels, probabilities and patients of the calibration role; whoever calls it has no others at hand. A threshold
that calls every slice positive reaches any sensitivity and is no operating point: where nothing else reaches it, the
answer is an error that says what can be reached. The highest F-beta may be that of such a threshold; a note says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import betaincinv

from ich_ray.bundle.card import OperatingPoint
from ich_ray.errors import ConfigError, SensitivityError
from ich_ray.statistics.bootstrap import effective_count
from ich_ray.statistics.metrics import Ranking, best_f_beta, confusion

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CONFIDENCE",
    "SENSITIVITIES",
    "OperatingPointSpec",
    "effective_positives",
    "operating_points",
    "sensitivity_bound",
    "sensitivity_threshold",
]

SENSITIVITIES = (0.90, 0.95, 0.98)
CONFIDENCE = 0.95  # of a conservative bound, one-sided


@dataclass(frozen=True)
class OperatingPointSpec:
    """Which operating points to look for, besides the F2-optimal one.

    Attributes:
        beta: also the threshold with the highest F-beta of this beta.
        sensitivity: also this one; an error if it cannot be reached.
        conservative: the lower bound of the sensitivity must reach its target, not the sensitivity itself.
    """

    beta: float | None = None
    sensitivity: float | None = None
    conservative: bool = False

    def __post_init__(self) -> None:
        if self.beta is not None and not 0 < self.beta < math.inf:
            raise ConfigError(f"--beta: a number above 0 must be given, got {self.beta:g}; 2 weighs sensitivity twice")
        if self.sensitivity is not None and not 0 < self.sensitivity < 1:
            raise ConfigError(f"--sensitivity: 0 < sensitivity < 1 must hold, got {self.sensitivity:g}; try 0.95")


def effective_positives(labels: NDArray[Any], patients: NDArray[Any]) -> float:
    """How many independent positives the positive slices are worth; see `effective_count`."""
    return effective_count(np.asarray(patients, dtype=str)[np.asarray(labels) > 0.5])


def sensitivity_bound(sensitivity: NDArray[Any] | float, positives: float) -> NDArray[np.float64]:
    """The one-sided lower 95 % bound of Clopper & Pearson (1934) for a share of `positives` independent slices.

    `positives` may be a fraction, as `effective_positives` gives it (Korn & Graubard 1998).
    """
    found = np.asarray(sensitivity, np.float64) * positives
    bound = betaincinv(np.maximum(found, 1e-300), positives - found + 1, 1 - CONFIDENCE)
    return np.where(found > 0, bound, 0.0)


def sensitivity_threshold(
    labels: NDArray[Any], probabilities: NDArray[Any], patients: NDArray[Any], target: float, conservative: bool = False
) -> float:
    """The highest threshold whose sensitivity, or its lower bound, is at least `target`.

    Raises:
        SensitivityError: none that leaves a slice out reaches it; carries the best that can be reached, and the highest
            threshold that reaches it (NaN where all probabilities are equal).
    """
    ranking = Ranking(labels, probabilities)
    tp, fp = ranking.counts()
    sensitivity = tp / tp[-1]
    reached = sensitivity
    if conservative:
        reached = sensitivity_bound(sensitivity, effective_positives(labels, patients))
    leaves_out = tp + fp < len(np.asarray(labels))
    good = np.flatnonzero(leaves_out & (reached >= target - 1e-12))
    if len(good):
        return ranking.threshold(int(good[0]))
    name = f"lower {100 * CONFIDENCE:.0f} % bound of the sensitivity" if conservative else "sensitivity"
    rule = (
        f"operating point: a {name} of at least {target:g} must be reached by a threshold that does not call every "
        "slice positive"
    )
    if not leaves_out.any():
        found = f"got a probability of {ranking.thresholds[0]:.4f} for every slice, which no threshold can part"
        raise SensitivityError(f"{rule}, {found}; train longer, or choose another trial", 0.0, math.nan)
    best = int(np.argmax(reached[leaves_out]))  # of equals the first, which is the highest threshold
    value, threshold = float(reached[best]), ranking.threshold(best)
    raise SensitivityError(
        f"{rule}, got at most {value:.4f}, at threshold {threshold:.4f}; ask for less or calibrate on more patients",
        value,
        threshold,
    )


def operating_points(
    labels: NDArray[Any], probabilities: NDArray[Any], patients: NDArray[Any], wanted: OperatingPointSpec
) -> tuple[dict[str, OperatingPoint], tuple[str, ...]]:
    """The F2-optimal threshold, those of `SENSITIVITIES` that can be reached, and what `wanted` adds.

    Returns:
        The points by name, such as `f2` and `sensitivity_95`, and a note for each usual one that cannot be reached, and
        for each F-beta that is highest when every slice is called positive.

    Raises:
        SensitivityError: the sensitivity of `wanted` cannot be reached.
    """
    data = (labels, probabilities, patients)
    points, notes = {}, []
    for beta in [2.0] if wanted.beta is None else [2.0, wanted.beta]:
        threshold, _ = best_f_beta(labels, probabilities, beta)
        points[f"f{beta:g}"] = point = _point(*data, threshold, f"highest F{beta:g}")
        if point.specificity == 0 and point.sensitivity == 1:
            notes.append(
                f"operating point f{beta:g}: a threshold must leave a slice out to decide anything, got the highest "
                f"F{beta:g} by calling every slice positive, at threshold {threshold:.4f}; decide by a sensitivity, "
                "train longer, or choose another trial"
            )
    targets = {*SENSITIVITIES, *([] if wanted.sensitivity is None else [wanted.sensitivity])}
    for target in sorted(targets):
        try:
            threshold = sensitivity_threshold(*data, target, wanted.conservative)
        except SensitivityError as error:
            if target == wanted.sensitivity:
                raise
            notes.append(str(error))
            continue
        bound = f", by its lower {100 * CONFIDENCE:.0f} % bound" if wanted.conservative else ""
        points[f"sensitivity_{100 * target:g}"] = _point(*data, threshold, f"sensitivity at least {target:g}{bound}")
    return points, tuple(notes)


def _point(
    labels: NDArray[Any], probabilities: NDArray[Any], patients: NDArray[Any], threshold: float, rule: str
) -> OperatingPoint:
    found = confusion(labels, probabilities, threshold)
    figures = {
        "sensitivity": found.sensitivity,
        "sensitivity_bound": float(sensitivity_bound(found.sensitivity, effective_positives(labels, patients))),
        "specificity": found.specificity,
        "ppv": found.ppv,
        "f2": found.f_beta(2),
    }
    defined = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    return OperatingPoint(threshold=threshold, rule=rule, **defined)
