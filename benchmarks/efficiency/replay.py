"""Curves of real networks, trained once (benchmarks/curves.py), as a problem that every contestant replays.

Methods are free to ask for any parameters; they are given the curve of the draw that is nearest in the space: the
distance in each number is the share of its range (of its logarithm, where it is drawn so), and 1 for another choice or
a parameter that only one of them has. So the landscape is flat around each draw, for every contestant alike, and the
best of the draws is all there is to find. A draw that is asked for again comes with the next of its seeds.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.efficiency.phantom import SPACE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.efficiency.course import Parameters

TABLE = Path(__file__).parent / "curves" / "phantom.npz"
LOGITS = TABLE.with_name("phantom_logits.npz")


class _Curves:
    """The table: draws that were trained with every seed of it."""

    def __init__(self) -> None:
        with np.load(TABLE) as file:
            reports: NDArray[np.int16] = file["reports"]
            all_drawn = json.loads(str(file["parameters"]))
            # A draw of which a seed is missing, when the table was stopped in mid-course, has fewer of them.
            self.parameters = [one for one, done in zip(all_drawn, reports[:, 0] >= 0, strict=True) if done]
            self.values: NDArray[np.float32] = file["values"][reports[:, 0] >= 0]
            self.reports: NDArray[np.int16] = reports[reports[:, 0] >= 0]
        self._places = np.array([_place(one) for one in self.parameters])

    def nearest(self, parameters: Parameters) -> int:
        apart = np.abs(self._places - np.array(_place(parameters)))
        return int(np.argmin(np.minimum(apart, 1.0).sum(axis=1)))


def _place(parameters: Parameters) -> list[float]:
    """Coordinates in which distances add up; a choice has one for each value, which together make 1."""
    place: list[float] = []
    for one in SPACE.parameters:
        value: Any = parameters.get(one.name)
        if one.kind == "choice":
            place += [0.5 * (value == choice) for choice in one.values]
        elif one.kind != "fixed":
            low, high = map(float, one.values)  # type: ignore[arg-type]
            logarithmic = one.kind == "loguniform"
            share = math.log(value / low) / math.log(high / low) if logarithmic else (value - low) / (high - low)
            place.append(share)
    return place


@cache
def _curves() -> _Curves:
    return _Curves()


class Table:
    """The problem; another `number` has other seeds first.

    Attributes:
        best: the highest mean over seeds of the best report of a draw.
    """

    space = SPACE

    def __init__(self, number: int = 0) -> None:
        self._number, self._curves = number, _curves()
        self._asked: dict[int, int] = {}
        best = np.nanmax(np.where(np.isnan(self._curves.values), -np.inf, self._curves.values), axis=2)
        trained = self._curves.reports >= 0
        self.worth = [float(np.mean(one[there])) for one, there in zip(best, trained, strict=True)]
        self.best = max(self.worth)

    def begin(self, parameters: Parameters, seed: tuple[int, ...]) -> ReplayedTraining:
        del seed
        draw = self._curves.nearest(parameters)
        there = np.flatnonzero(self._curves.reports[draw] >= 0)
        turn = self._asked[draw] = self._asked.get(draw, self._number - 1) + 1
        chosen = int(there[turn % len(there)])
        return ReplayedTraining(parameters, self._curves.values[draw, chosen], int(self._curves.reports[draw, chosen]))

    def pace(self, parameters: Parameters) -> float:
        """As if all trained equally fast."""
        del parameters
        return 1.0


class ReplayedTraining:
    """A curve from the table; NaN after its last report, if it diverged before the end."""

    def __init__(self, parameters: Parameters, curve: NDArray[np.float32], reports: int) -> None:
        self.parameters, self.images = parameters, 0
        self.values: list[float] = []
        self._curve, self._reports = curve, reports

    def report(self) -> float:
        self.images += SPACE.budget.report_every
        if len(self.values) == self._reports:
            return math.nan
        self.values.append(float(self._curve[len(self.values)]))
        return self.values[-1]

    @property
    def value(self) -> float:
        return self.values[-1] if self.values else 0.0
