"""Rules by which a search may look at what an image of a network costs, for the quick searches of quick.py.

A rule weighs what TPE expects of a candidate, log l(x) - log g(x), by the logarithm of the seconds an image; they
differ in how much and when. TPE's first ten random draws are left alone by all but `cheap first`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.efficiency.computed import PACES
from benchmarks.efficiency.quick import Quick

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.efficiency.course import Method
    from benchmarks.efficiency.quick import Numbers, Weigh

__all__ = ["RULES"]

COOLED = 200, 50  # trials
CHEAP_FIRST = 30  # trials
NEAR = math.log(2)  # of what TPE expects of the best candidate
_PACES = np.array(list(PACES.values()))


def _cooled(expected: Numbers, cost: Numbers, number: int, trials: int) -> Numbers:
    """The power of the cost falls as the budget is spent: Lee et al., Cost-aware Bayesian Optimization, 2020."""
    return expected - max(0.0, 1 - number / trials) * cost


def _cheapest_of_near(expected: Numbers, cost: Numbers, number: int) -> Numbers:
    del number
    near: Numbers = np.where(expected >= expected.max() - NEAR, -cost, -np.inf)
    return near


def _by(weigh: Weigh) -> Callable[..., Method]:
    return partial(Quick, weigh=weigh, pace=_PACES)


RULES: dict[str, Callable[..., Method]] = {
    "ours": Quick,
    "per cost": _by(lambda expected, cost, _: expected - cost),
    "per root of cost": _by(lambda expected, cost, _: expected - 0.5 * cost),
    "per cost, cooled by 200 trials": _by(partial(_cooled, trials=COOLED[0])),
    "per cost, cooled by 50 trials": _by(partial(_cooled, trials=COOLED[1])),
    "per cost, every second": _by(lambda expected, cost, number: expected - number % 2 * cost),
    "per cost, two of three": _by(lambda expected, cost, number: expected - min(number % 3, 1) * cost),
    "cheapest of near": _by(_cheapest_of_near),
    "cheap first": partial(Quick, first=(CHEAP_FIRST, 1 / _PACES / (1 / _PACES).sum())),
}
