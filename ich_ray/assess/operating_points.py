"""Thresholds on calibrated probabilities by named rules, with their figures on the slices used.

Knows labels, probabilities and patients of the calibration role; whoever calls it has no others at hand. The rules are
in point_rules.py. The highest F-beta may be that of a threshold that calls every slice positive; a note says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ich_ray.assess.point_rules import (
    CONFIDENCE,
    POINT_RULES,
    ScoredSlices,
    effective_positives,
    sensitivity_bound,
)
from ich_ray.bundle.operating_point import OperatingPoint
from ich_ray.errors import ConfigError, SensitivityError, nearest
from ich_ray.statistics.metrics import confusion

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SENSITIVITIES", "OperatingPointSpec", "operating_points"]

SENSITIVITIES = (0.90, 0.95, 0.98)


class _Asked(NamedTuple):
    rule: str
    number: float = 0.0


@dataclass(frozen=True)
class OperatingPointSpec:
    """The operating points to look for besides the F2-optimal one.

    Attributes:
        beta: also the threshold with the highest F-beta of this beta.
        sensitivity: also this one.
        conservative: the lower bound of the sensitivity must reach its target, not the sensitivity itself.
        points: also these, by rule: `youden`, or `sensitivity=0.93` where it takes a number.
        strict: whether one of these that cannot be reached is an error, or else a note, as of the usual ones.
    """

    beta: float | None = None
    sensitivity: float | None = None
    conservative: bool = False
    points: tuple[str, ...] = ()
    strict: bool = True

    def __post_init__(self) -> None:
        for flag, rule, number in (("--beta", "f_beta", self.beta), ("--sensitivity", "sensitivity", self.sensitivity)):
            if number is not None and (problem := POINT_RULES[rule].problem(number)):
                raise ConfigError(f"{flag}: {problem}")
        _ = self.asked

    @property
    def asked(self) -> list[_Asked]:
        """All of them."""
        numbers = {"f_beta": self.beta, "sensitivity": self.sensitivity}
        flags = [_Asked(rule, number) for rule, number in numbers.items() if number is not None]
        return [*flags, *map(_parsed, self.points)]


def _parsed(text: str) -> _Asked:
    """`youden` or `sensitivity=0.93`."""
    name, given, number = text.partition("=")
    if name not in POINT_RULES:
        known = POINT_RULES.names()
        raise ConfigError(
            f"--point: must be one of {', '.join(known)}, got {name!r}{nearest(name, known)}; import the module that "
            "registers it first"
        )
    rule = POINT_RULES[name]
    if bool(given) != rule.takes_number:
        how = f"{name}=NUMBER" if rule.takes_number else f"{name} alone"
        raise ConfigError(f"--point: {how} must be given, got {text!r}")
    if not given:
        return _Asked(name)
    try:
        asked = _Asked(name, float(number))
    except ValueError:
        raise ConfigError(f"--point {name}: a number must be given, got {number!r}") from None
    if problem := rule.problem(asked.number):
        raise ConfigError(f"--point {name}: {problem}")
    return asked


def operating_points(
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    patients: NDArray[Any],
    wanted: OperatingPointSpec,
    unit: str = "slice",
) -> tuple[dict[str, OperatingPoint], tuple[str, ...]]:
    """The F2-optimal threshold, those of `SENSITIVITIES` that can be reached, and what `wanted` adds.

    Args:
        labels: 0 or 1, `[n]`.
        probabilities: calibrated, `[n]`.
        patients: whose each is, `[n]`.
        wanted: besides the usual ones.
        unit: what is called positive, for words.

    Returns:
        The points by name, such as `f2` and `sensitivity_95`, and a note for each that cannot be reached, and for each
        that is found by calling every slice positive.

    Raises:
        SensitivityError: a sensitivity of a strict `wanted` cannot be reached.
        ConfigError: a rule gives no threshold.
    """
    slices = ScoredSlices(labels, probabilities, patients, wanted.conservative, unit)
    points, notes = {}, []
    for asked in _in_order(wanted.asked):
        rule = POINT_RULES[asked.rule]
        try:
            threshold = rule.threshold(slices, asked.number)
        except SensitivityError as error:
            if wanted.strict and asked in wanted.asked:
                raise
            notes.append(str(error))
            continue
        name, words = rule.name(*asked), rule.words(asked.number)
        if not 0 <= threshold <= 1:
            raise ConfigError(
                f"operating point {name}: its rule must give a threshold from 0 to 1, got {threshold}; correct the rule"
            )
        bound = f", by its lower {100 * CONFIDENCE:.0f} % bound"
        is_conservative = rule.can_be_conservative and wanted.conservative
        points[name] = point = _point(slices, threshold, words + bound * is_conservative)
        if point.specificity == 0 and point.sensitivity == 1:
            notes.append(
                f"operating point {name}: a threshold must leave a {unit} out to decide anything, got the {words} by "
                f"calling every {unit} positive, at threshold {threshold:.4f}; decide by a sensitivity, train longer, "
                "or choose another trial"
            )
    return points, tuple(notes)


def _in_order(asked: list[_Asked]) -> list[_Asked]:
    """The usual points and those asked for, each once: F-betas, sensitivities from low to high, others."""
    betas = [one for one in asked if one.rule == "f_beta"]
    sensitivities = {one for one in asked if one.rule == "sensitivity"}
    usual = {_Asked("sensitivity", target) for target in SENSITIVITIES}
    others = [one for one in asked if one.rule not in {"f_beta", "sensitivity"}]
    return list(dict.fromkeys([_Asked("f_beta", 2.0), *betas, *sorted(usual | sensitivities), *others]))


def _point(slices: ScoredSlices, threshold: float, rule: str) -> OperatingPoint:
    found = confusion(slices.labels, slices.probabilities, threshold)
    positives = effective_positives(slices.labels, slices.patients)
    figures = {
        "sensitivity": found.sensitivity,
        "sensitivity_bound": float(sensitivity_bound(found.sensitivity, positives)),
        "specificity": found.specificity,
        "ppv": found.ppv,
        "f2": found.f_beta(2),
    }
    defined = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    return OperatingPoint(threshold=threshold, rule=rule, **defined)
