from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from ich_ray.data.series_order import SeriesOrder, order_of_slices, ordered_series

CASES = {
    "one slice": ([0], [10], [0], [0, 1], [10]),
    "two": ([0, 0], [10, 5], [1, 0], [0, 2], [5, 10]),
    "duplicate positions": ([0, 0, 0, 0], [5, 10, 5.005, 15], [0, 1, 0, 2], [0, 3], [5, 10, 15]),
    "a gap": ([0, 0, 0, 0], [50, 0, 5, 55], [2, 0, 1, 3], [0, 4], [0, 5, 50, 55]),
    "two series interleaved": ([1, 0, 1, 0], [5, 0, 0, 5], [3, 0, 2, 1], [0, 2, 4], [0, 5, 0, 5]),
    "a place that is not known": ([0, 0, 0], [5, math.nan, 0], [1, 2, 0], [0, 2, 3], [0, 5, math.nan]),
    "none has a series": ([-1, -1], [5, 0], [0, 1], [0, 1, 2], [math.nan, math.nan]),
    "no slice": ([], [], [], [0], []),
}


def order(series: list[int], places: list[float]) -> SeriesOrder:
    return ordered_series(np.array(series, np.int64), np.array(places, np.float64))


@pytest.mark.parametrize("case", CASES)
def test_places_are_in_order(case: str) -> None:
    series, places, place, starts, places_mm = CASES[case]
    found = order(series, places)
    assert found.place.tolist() == place
    assert found.starts.tolist() == starts
    assert found.places_mm.tolist() == pytest.approx(places_mm, nan_ok=True)
    assert len(found) == len(starts) - 1


def test_rows_know_their_series() -> None:
    found = order([1, 0, 1, -1, 0, 0], [5, 0, 0, 7, 5, 5])
    assert found.series.tolist() == [1, 0, 1, 2, 0, 0]
    assert found.lengths.tolist() == [2, 2, 1]


def test_the_order_of_rows_changes_nothing() -> None:
    random = np.random.default_rng(0)
    series, places = random.integers(0, 5, 60), random.integers(0, 9, 60) * 5.0
    shuffled = random.permutation(60)
    first, second = ordered_series(series, places), ordered_series(series[shuffled], places[shuffled])
    assert np.array_equal(first.place[shuffled], second.place)
    assert np.array_equal(first.places_mm, second.places_mm)


def test_series_lie_side_by_side() -> None:
    index, mask = order([0, 0, 0, 1, 2, 2], [0, 5, 10, 0, 0, 5]).padded(np.array([2, 0, 1]))
    assert index.tolist() == [[4, 5, 0], [0, 1, 2], [3, 0, 0]]
    assert mask.tolist() == [[True, True, False], [True] * 3, [True, False, False]]


def test_columns_of_a_dataset_say_it() -> None:
    slices = pa.table(
        {
            "patient": ["p", "p", "p", "q"],
            "study": ["s", "s", "s", "s"],
            "series": ["a", "a", "", "a"],
            "position_mm": [5.0, 0.0, 0.0, 0.0],
        }
    )
    found = order_of_slices(slices)
    assert found.lengths.tolist() == [2, 1, 1]
    assert found.place.tolist() == [1, 0, 3, 2]
    assert order_of_slices(slices.select(["patient", "study"])).lengths.tolist() == [1, 1, 1, 1]
