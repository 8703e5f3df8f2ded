from __future__ import annotations

import numpy as np
import pytest

from ich_ray.statistics.aggregation import most_probable, patients_by_label


@pytest.mark.parametrize(
    ("groups", "probabilities", "positions"),
    [
        ([], [], []),
        ([4], [0.0], [0]),
        ([0, 0, 0], [0.2, 0.9, 0.5], [1]),
        ([1, 0, 1, 0], [0.3, 0.1, 0.2, 0.4], [3, 0]),
        ([0, 0, 1, 1], [0.5, 0.5, 0.0, 0.0], [0, 2]),  # of equals the first
        ([2, 7, 2], [0.1, 1.0, 0.1], [0, 1]),  # numbers need not follow each other
    ],
)
def test_the_most_probable_slice_of_each_group(
    groups: list[int], probabilities: list[float], positions: list[int]
) -> None:
    found = most_probable(np.array(groups, np.int64), np.array(probabilities, np.float64))
    assert found.tolist() == positions


def test_patients_are_counted_by_each_label_they_have() -> None:
    labels = np.array([1, 1, 0, 0, 0, np.nan], np.float32)
    assert patients_by_label(labels, np.array(["a", "a", "a", "b", "c", "d"], object)) == {0: 3, 1: 1}
    assert patients_by_label(labels[:2], np.array(["a", "b"], object)) == {0: 0, 1: 2}
