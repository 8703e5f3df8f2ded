"""Draw the values that a space believes in: the first trials often, later ones ever less.

A belief may be wrong. So it decides the first draws and then ever fewer, whatever they show (the idea of PriorBand,
Mallik et al., NeurIPS 2023, without its brackets), and nothing of what is drawn without it.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from ich_ray.search.space.space import same

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ich_ray.search.space.space import ParameterSpec, Prior
    from ich_ray.trial_records import Parameter

__all__ = ["believed", "share_of_beliefs"]

_HALVED_AFTER = 10  # trials


def share_of_beliefs(number: int) -> float:
    """The share of draws that come from the beliefs, of trials of this number.

    All at first, half after 10 trials, a quarter after 30. By the number alone, so that a search that goes on draws as
    one that was never stopped.
    """
    return _HALVED_AFTER / (_HALVED_AFTER + number)


def believed(parameters: Iterable[ParameterSpec], number: int, seed: int) -> dict[str, Parameter]:
    """The values that trial `number` takes from the beliefs of the space; empty where it takes none."""
    source = random.Random(seed)
    if source.random() >= share_of_beliefs(number):
        return {}
    return {spec.name: _drawn(spec, spec.prior, source) for spec in parameters if spec.prior is not None}


def _drawn(spec: ParameterSpec, prior: Prior, source: random.Random) -> Parameter:
    if spec.kind == "choice":
        others = [value for value in spec.values if not same(value, prior.value)]
        return prior.value if source.random() < prior.spread else source.choice(others)
    low, high = (float(value) for value in spec.values)
    middle, log = float(prior.value), spec.kind == "loguniform"
    if log:
        low, high, middle = math.log10(low), math.log10(high), math.log10(middle)
    at = math.inf
    while not low <= at <= high:  # the middle lies within, and is no wider than the range: every other draw does
        at = source.gauss(middle, prior.spread / 2)
    if spec.kind == "int":
        return min(max(round(at), round(low)), round(high))
    return min(max(10**at if log else at, float(spec.values[0])), float(spec.values[1]))
