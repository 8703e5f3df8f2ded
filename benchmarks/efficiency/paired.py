"""What a contest says: ratios of sums with intervals, paired tests, and the largest ratio that it cannot exclude."""

from __future__ import annotations

from itertools import product
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

DRAWS = 4000
EXACT = 12  # searches, up to which every change of signs is counted


def ratio_of_sums(
    numerator: Sequence[Sequence[float]], denominator: Sequence[Sequence[float]]
) -> tuple[float, float, float]:
    """The ratio and its 95 % interval: problems are drawn again, and then the searches of each, in pairs."""
    random = np.random.default_rng(0)
    above, below = np.empty((2, len(numerator), DRAWS))  # means of the searches of a problem, drawn again so often
    for problem, (top, bottom) in enumerate(zip(numerator, denominator, strict=True)):
        searches = random.integers(len(top), size=(DRAWS, len(top)))
        above[problem], below[problem] = (np.array(one)[searches].mean(axis=1) for one in (top, bottom))
    drawn = random.integers(len(above), size=(DRAWS, len(above))), random.integers(DRAWS, size=(DRAWS, len(above)))
    low, high = np.percentile(above[drawn].sum(axis=1) / below[drawn].sum(axis=1), [2.5, 97.5])
    ratio = sum(map(fmean, numerator)) / sum(map(fmean, denominator))
    return ratio, float(low), float(high)


def chance_of_more(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """One-sided p of a paired test: how often signs by chance give as large a sum of log ratios as there is."""
    apart: NDArray[np.float64] = np.log(np.array(ours)) - np.log(np.array(theirs))
    if len(apart) <= EXACT:
        signs = np.array(list(product((-1, 1), repeat=len(apart))))
    else:
        signs = np.random.default_rng(0).choice((-1, 1), size=(20_000, len(apart)))
    return float(np.mean(signs @ apart >= apart.sum() - 1e-12))


def holm(chances: Mapping[object, float]) -> dict[object, float]:
    """Each p, corrected so that all of them together err in 5 % where 0.05 is the limit."""
    corrected: dict[object, float] = {}
    worst = 0.0
    for done, key in enumerate(sorted(chances, key=lambda one: chances[one])):
        worst = max(worst, min(1.0, chances[key] * (len(chances) - done)))
        corrected[key] = worst
    return corrected
