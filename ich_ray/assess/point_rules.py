"""Rules for operating points by name: the threshold that each finds on calibrated probabilities.

A threshold that calls every slice positive reaches any sensitivity and is no operating point: where nothing else
reaches it, the answer is an error that says what can be reached. A rule from outside is a class, registered by
`POINT_RULES.register("its_name", ItsClass())`; `--point its_name` asks for it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from ich_ray.errors import SensitivityError
from ich_ray.registry import Registry
from ich_ray.statistics.bootstrap import effective_count, lower_bound
from ich_ray.statistics.metrics import Ranking, best_f_beta

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CONFIDENCE",
    "POINT_RULES",
    "PointRule",
    "ScoredSlices",
    "effective_positives",
    "sensitivity_bound",
    "sensitivity_threshold",
]

CONFIDENCE = 0.95  # of a conservative bound, one-sided


class ScoredSlices(NamedTuple):
    """What a rule sees: labels, calibrated probabilities and patients `[n]`.

    Both kinds of labels are among them.

    Attributes:
        conservative: the lower bound of a sensitivity must reach its target, not the sensitivity itself.
        unit: what is scored: slices, or studies.
    """

    labels: NDArray[Any]
    probabilities: NDArray[Any]
    patients: NDArray[Any]
    conservative: bool = False
    unit: str = "slice"


class PointRule(ABC):
    """Finds the threshold of an operating point.

    Attributes:
        takes_number: whether it is asked for with one, as `--point sensitivity=0.93`; `number` is 0 without.
        can_be_conservative: whether a bound may have to reach the number in place of the figure itself.
    """

    takes_number: ClassVar[bool] = False
    can_be_conservative: ClassVar[bool] = False

    @abstractmethod
    def threshold(self, slices: ScoredSlices, number: float) -> float:
        """Slices of this probability and above are called positive."""

    @abstractmethod
    def words(self, number: float) -> str:
        """The rule as the card and a sentence have it, such as `highest F2`."""

    def name(self, rule: str, number: float) -> str:
        """Of the operating point, by the name that the rule is registered by."""
        return f"{rule}_{number:g}" if self.takes_number else rule

    def problem(self, number: float) -> str:  # noqa: ARG002  (of rules that take one)
        """Why a number is none of this rule, with what to do; empty if it is one."""
        return ""


class FBeta(PointRule):
    """The highest F-beta."""

    takes_number = True

    def threshold(self, slices: ScoredSlices, number: float) -> float:
        return best_f_beta(slices.labels, slices.probabilities, number)[0]

    def words(self, number: float) -> str:
        return f"highest F{number:g}"

    def name(self, rule: str, number: float) -> str:  # noqa: ARG002  (the field's own name)
        return f"f{number:g}"

    def problem(self, number: float) -> str:
        if 0 < number < math.inf:
            return ""
        return f"a number above 0 must be given, got {number:g}; 2 weighs sensitivity twice"


class Sensitivity(PointRule):
    """At least a sensitivity, with the fewest slices called positive."""

    takes_number = True
    can_be_conservative = True

    def threshold(self, slices: ScoredSlices, number: float) -> float:
        return sensitivity_threshold(*slices[:3], number, slices.conservative, slices.unit)

    def words(self, number: float) -> str:
        return f"sensitivity at least {number:g}"

    def name(self, rule: str, number: float) -> str:
        return f"{rule}_{100 * number:g}"

    def problem(self, number: float) -> str:
        return "" if 0 < number < 1 else f"0 < sensitivity < 1 must hold, got {number:g}; try 0.95"


POINT_RULES: Registry[PointRule] = Registry(
    "point_rules", {"f_beta": f"{__name__}:_F_BETA", "sensitivity": f"{__name__}:_SENSITIVITY"}, home=__name__
)
_F_BETA, _SENSITIVITY = FBeta(), Sensitivity()


def effective_positives(labels: NDArray[Any], patients: NDArray[Any]) -> float:
    """How many independent positives the positive slices are worth; see `effective_count`."""
    return effective_count(np.asarray(patients, dtype=str)[np.asarray(labels) > 0.5])


def sensitivity_bound(sensitivity: NDArray[Any] | float, positives: float) -> NDArray[np.float64]:
    """The one-sided lower 95 % bound of the sensitivity among `positives`; see `lower_bound`."""
    return lower_bound(sensitivity, positives, 1 - CONFIDENCE)


def sensitivity_threshold(
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    patients: NDArray[Any],
    target: float,
    conservative: bool = False,
    unit: str = "slice",
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
        f"{unit} positive"
    )
    if not leaves_out.any():
        found = f"got a probability of {ranking.thresholds[0]:.4f} for every {unit}, which no threshold can part"
        raise SensitivityError(f"{rule}, {found}; train longer, or choose another trial", 0.0, math.nan)
    best = int(np.argmax(reached[leaves_out]))  # of equals the first, which is the highest threshold
    value, threshold = float(reached[best]), ranking.threshold(best)
    raise SensitivityError(
        f"{rule}, got at most {value:.4f}, at threshold {threshold:.4f}; ask for less or calibrate on more patients",
        value,
        threshold,
    )
