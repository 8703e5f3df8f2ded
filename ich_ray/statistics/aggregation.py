"""Slices by group, patients by label, and the probability of a study or patient from its slices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["members", "most_probable", "partners", "patients_by_label"]


def members(groups: NDArray[np.integer[Any]]) -> list[NDArray[np.int64]]:
    """The positions of the slices of each group, in their order; those of the lowest number first."""
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1) if len(order) else []


def partners(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.int64]:
    """For each element of `one`, with how many distinct elements of `other` its value stands."""
    _, of_one = np.unique(one, return_inverse=True)
    names, of_other = np.unique(other, return_inverse=True)
    pairs = np.unique(of_one.astype(np.int64) * max(len(names), 1) + of_other)
    return np.bincount(pairs // max(len(names), 1), minlength=1)[of_one]


def patients_by_label(labels: NDArray[Any], patients: NDArray[Any]) -> dict[int, int]:
    """How many patients have a slice, or study, of each label, 0 and 1; NaN is neither."""
    return {label: len(set(patients[labels == label])) for label in (0, 1)}


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
