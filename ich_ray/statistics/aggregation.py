"""The probability of a study or patient from those of its slices, by one rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["most_probable"]


def most_probable(groups: NDArray[np.int64], probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """The position of the most probable slice of each group, the first of equals.

    Args:
        groups: of each slice, `[n]`, whole numbers.
        probabilities: of each slice, finite, `[n]`.

    Returns:
        One position for each group that has a slice, in the order of the groups.
    """
    order = np.lexsort((-probabilities, groups))  # stable
    _, first = np.unique(groups[order], return_index=True)
    return order[first]
