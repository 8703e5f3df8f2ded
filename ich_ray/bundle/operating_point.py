"""The record of an operating point: a threshold, how it was chosen, and what it gave."""

from __future__ import annotations

from ich_ray.storage import Line, Record, Share

__all__ = ["OperatingPoint"]


class OperatingPoint(Record):
    """A threshold on the calibrated probability, with its figures on the calibration patients.

    A figure is None where it is undefined.

    Attributes:
        rule: how the threshold was chosen.
        sensitivity_bound: a one-sided lower 95 % bound that takes the slices, or studies, of a patient as one.
    """

    threshold: Share
    rule: Line = ""
    sensitivity: float | None
    sensitivity_bound: float | None = None
    specificity: float | None
    ppv: float | None
    f2: float | None
