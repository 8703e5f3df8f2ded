"""Which slices lie beside a slice: places along the normal, in one series, without gaps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ich_ray.data.neighbors import neighbor_rows, placed_rows, series_neighbors
from tests.prepared import make_dataset

NAN = float("nan")


def beside(places_mm: list[float], series: list[int] | None = None, ids: str = "") -> list[list[int]]:
    """Of each row: two below, one below, itself, one above, two above."""
    names = np.array([*(ids or "abcdefghijklmnop"[: len(places_mm)])], object)
    numbers = np.zeros(len(places_mm), np.int64) if series is None else np.array(series)
    return neighbor_rows(numbers, np.array(places_mm), names).tolist()


def test_a_slice_stands_between_those_below_and_above() -> None:
    assert beside([0, 5, 10, 15, 20]) == [
        [0, 0, 0, 1, 2],
        [1, 0, 1, 2, 3],
        [0, 1, 2, 3, 4],
        [1, 2, 3, 4, 3],
        [2, 3, 4, 4, 4],
    ]


@pytest.mark.parametrize(
    ("places_mm", "expected"),
    [
        ([], []),
        ([7.0], [[0, 0, 0, 0, 0]]),
        ([0.0, 5.0], [[0, 0, 0, 1, 0], [1, 0, 1, 1, 1]]),
        ([5.0, 0.0], [[0, 1, 0, 0, 0], [1, 1, 1, 0, 1]]),
        ([0.0, 5.0, 50.0], [[0, 0, 0, 1, 2], [1, 0, 1, 2, 1], [0, 1, 2, 2, 2]]),  # too few for a median step
    ],
    ids=["none", "one slice", "two", "two reversed", "three"],
)
def test_short_series_have_themselves_at_their_ends(places_mm: list[float], expected: list[list[int]]) -> None:
    assert beside(places_mm) == expected


def test_rows_may_lie_in_any_order() -> None:
    order = [3, 0, 4, 1, 2]
    found = beside([5.0 * place for place in order])
    assert [[order[row] for row in rows] for rows in found] == [
        [1, 2, 3, 4, 3],
        [0, 0, 0, 1, 2],
        [2, 3, 4, 4, 4],
        [1, 0, 1, 2, 3],
        [0, 1, 2, 3, 4],
    ]


def test_of_slices_at_one_place_the_first_by_its_id_is_a_neighbor() -> None:
    """A repeated scan: both have the same neighbors, never each other."""
    found = beside([0, 5, 5.004, 10, 15], ids="acbde")
    assert [rows[2:4] for rows in found] == [[0, 2], [1, 3], [2, 3], [3, 4], [4, 4]]
    assert [rows[1] for rows in found] == [0, 0, 0, 2, 3]
    assert beside([0, 5, 5.004, 10, 15], ids="abcde")[0] == [0, 0, 0, 1, 3]
    assert beside([0, 0, 0]) == [[row] * 5 for row in range(3)]


def test_a_slice_without_a_place_or_a_series_is_alone() -> None:
    found = beside([0, NAN, 5, float("inf"), 10], [0, 0, 0, 0, 0])
    assert [rows[1:4] for rows in found] == [[0, 0, 2], [1, 1, 1], [0, 2, 4], [3, 3, 3], [2, 4, 4]]
    assert beside([0, 5, 10], [-1, -1, -1]) == [[row] * 5 for row in range(3)]


def test_the_next_place_may_be_asked_for_however_far_it_is() -> None:
    places_mm, names = np.array([0.0, 5, 10, 60, 65]), np.array([*"abcde"], object)
    found = neighbor_rows(np.array([0, 0, 0, 0, 1]), places_mm, names, across_gaps=True)
    assert found[:, 2:].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 2], [3, 3, 3], [4, 4, 4]]
    assert neighbor_rows(np.zeros(5, np.int64), places_mm, names)[2].tolist() == [0, 1, 2, 2, 2]


@pytest.mark.parametrize(("step", "reaches"), [(10.0, True), (10.1, False)])
def test_a_gap_of_more_than_twice_the_median_parts_a_series(step: float, reaches: bool) -> None:
    found = beside([0, 5, 10, 10 + step, 15 + step, 20 + step])
    assert found[2] == ([0, 1, 2, 3, 4] if reaches else [0, 1, 2, 2, 2])
    assert found[3] == ([1, 2, 3, 4, 5] if reaches else [3, 3, 3, 4, 5])
    assert found[1][4] == (3 if reaches else 1)


def test_series_of_one_study_do_not_mix() -> None:
    """A thin and a thick reconstruction of one head, interleaved in the table and in space."""
    found = beside([0, 0, 1, 5, 2, 10, 3, 15], [4, 2, 4, 2, 4, 2, 4, 2])
    assert [rows[1:4] for rows in found] == [
        [0, 0, 2], [1, 1, 3], [0, 2, 4], [1, 3, 5], [2, 4, 6], [3, 5, 7], [4, 6, 6], [5, 7, 7],
    ]  # fmt: skip


def test_the_table_of_a_dataset_names_them(tmp_path: Path) -> None:
    """Its `position_mm` is along the normal, so that a tilted gantry changes nothing."""
    dataset = make_dataset(tmp_path, patients=16)
    assert dataset.neighbors[:5].tolist() == [
        [0, 0, 0, 1, 2], [1, 0, 1, 2, 3], [0, 1, 2, 3, 2], [1, 2, 3, 3, 3], [4, 4, 4, 5, 6],
    ]  # fmt: skip
    assert len(placed_rows(dataset.slices)) == len(dataset)


@pytest.mark.parametrize("left_out", ["series", "position_mm", "slice_id"])
def test_without_a_column_there_are_none(left_out: str) -> None:
    columns = {"series": ["a", "a"], "position_mm": [0.0, 5.0], "slice_id": ["x", "y"]}
    del columns[left_out]
    assert series_neighbors(pa.table(columns)).tolist() == [[0] * 5, [1] * 5]


def test_rows_with_a_known_place_are_counted() -> None:
    table = pa.table({"series": ["a", "", "a", "b"], "position_mm": [0.0, 5.0, None, 1.0]})
    assert placed_rows(table).tolist() == [0, 3]
    assert placed_rows(table.select(["series"])).tolist() == []


def spaced(places_mm: list[float], distance_mm: float, series: list[int] | None = None) -> list[list[int]]:
    """Of each row those beside it at a distance, as in `beside`."""
    names = np.array([f"n{row:03d}" for row in range(len(places_mm))], object)
    numbers = np.zeros(len(places_mm), np.int64) if series is None else np.array(series)
    distances = np.where(numbers == 0, distance_mm, 0.0)
    return neighbor_rows(numbers, np.array(places_mm), names, distances).tolist()


def test_in_a_series_of_slabs_neighbors_lie_at_their_distance() -> None:
    found = spaced([0.625 * row for row in range(40)], 5.0)
    assert found[20] == [4, 12, 20, 28, 36]
    assert found[7] == [7, 7, 7, 15, 23]
    assert found[39] == [23, 31, 39, 39, 39]


def test_the_nearest_place_is_taken_and_none_behind_one_that_is_missing() -> None:
    found = spaced([0.8 * row for row in range(20)], 5.0)  # 6.25 steps
    assert found[6] == [6, 0, 6, 12, 18]
    assert found[0] == [0, 0, 0, 6, 12]
    places = [0.0, 1, 2, 3, 4, 5, 10, 11]  # 9 is a step from 10
    assert [rows[3] for rows in spaced(places, 5.0)] == [5, 1, 2, 3, 4, 6, 6, 7]
    assert spaced(places, 5.0)[0] == [0, 0, 0, 5, 6]
    assert spaced([0.0, 1, 2, 20, 21, 22, 10], 10.0)[0] == [0, 0, 0, 6, 3]
    assert spaced([0.0, 1, 2, 20, 21, 22], 10.0)[0] == [0, 0, 0, 0, 0]


def test_at_one_place_of_a_series_of_slabs_the_first_by_its_id_stands_for_it() -> None:
    found = spaced([0.0, 1, 2, 3, 4, 5, 5.004, 6], 5.0)
    assert found[0] == [0, 0, 0, 5, 0]
    assert found[6] == [6, 0, 6, 6, 6]


def test_other_series_have_the_next_places_beside_one_of_slabs() -> None:
    places, series = [0.0, 1, 2, 3, 4, 0, 1, 2], [0, 0, 0, 0, 0, 4, 4, 4]
    found = spaced(places, 3.0, series)
    assert found[0] == [0, 0, 0, 3, 0]
    assert found[5:] == [[5, 5, 5, 6, 7], [6, 5, 6, 7, 6], [5, 6, 7, 7, 7]]


def test_across_gaps_the_next_place_at_a_distance_or_beyond_is_a_neighbor() -> None:
    places = np.array([0.0, 1, 2, 3, 20, 21, 22, 23])
    ids, series = np.array([*"abcdefgh"], object), np.zeros(8, np.int64)
    found = neighbor_rows(series, places, ids, np.full(8, 3.0), across_gaps=True)
    assert found[3].tolist() == [3, 0, 3, 4, 4]
    assert found[4].tolist() == [3, 3, 4, 7, 4]
    assert found[2].tolist() == [2, 2, 2, 4, 4]
