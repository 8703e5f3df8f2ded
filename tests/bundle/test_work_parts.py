"""The inputs of `predict` in parts, and their rows in order again."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa

from ich_ray.bundle.input_survey import Input, SeriesTable, read_facts
from ich_ray.bundle.work_parts import Part, as_item, in_order, part_of, single_slices, whole_series


def table(series: str, ids: str, places_mm: list[float] | None = None) -> SeriesTable:
    """Of inputs by a letter of their series, `-` without a header, and one of their SOPInstanceUID."""
    facts = read_facts([Input("", "path_escape")] * len(series))
    columns = {
        "known": [name != "-" for name in series],
        "study": ["study"] * len(series),
        "series": [name.strip("-.") for name in series],
        "slice_id": [*ids],
        "position_mm": pa.array(places_mm or range(len(series)), pa.float32()),
    }
    for name, values in columns.items():
        facts = facts.set_column(facts.schema.get_field_index(name), facts.schema.field(name), pa.array(values))
    return SeriesTable.of_facts([facts])


def parts(series: str, ids: str, length: int) -> list[Part]:
    return whole_series([Input(f"{number}") for number in range(len(series))], table(series, ids), length)


def told(found: list[Part]) -> list[tuple[list[int], list[int]]]:
    return [(part.numbers, part.lengths) for part in found]


def test_series_stay_together_and_begin_in_the_order_of_their_first_inputs() -> None:
    """Two series that are interleaved, two inputs without a header, two without a series."""
    found = parts("ab-a.b-.a", "ihgfedcba", 4)
    assert told(found) == [([8, 3, 0], [3]), ([5, 1, 2, 4], [2, 1, 1]), ([6, 7], [1, 1])]
    assert [given.file for given in found[0].inputs] == ["8", "3", "0"]
    assert found[0].places_mm == [8, 3, 0]


def test_a_series_longer_than_a_part_is_one_by_itself() -> None:
    assert told(parts("abbbbac", "abcdefg", 3)) == [([0, 5], [2]), ([1, 2, 3, 4], [4]), ([6], [1])]


def test_of_equal_ids_the_first_input_is_first() -> None:
    assert told(parts("aaaa", "bbaa", 4)) == [([2, 3, 0, 1], [4])]


def test_a_part_has_its_series_one_after_another() -> None:
    (part,) = parts("aba", "abc", 9)
    first, second = part.series()
    assert [given.file for given in first.inputs] == ["0", "2"]
    assert first.places_mm.tolist() == [0, 2]
    assert [given.file for given in second.inputs] == ["1"]


def test_slices_that_are_seen_alone_stand_as_they_were_given() -> None:
    found = single_slices([Input(name) for name in "abcde"], 2)
    assert told(found) == [([0, 1], [1, 1]), ([2, 3], [1, 1]), ([4], [1])]
    assert all(math.isnan(place) for part in found for place in part.places_mm)
    assert [len(series.inputs) for series in found[0].series()] == [1, 1]


def test_a_part_is_the_same_behind_plain_values() -> None:
    (part,) = whole_series([Input("f", "", "thin", 3), Input("g", "not_ct")], table("aa", "ba"), 4)
    assert part_of(as_item(part)) == part


def test_rows_come_in_the_order_of_the_inputs_as_soon_as_they_can() -> None:
    held = [Part([8, 0, 3], [], [], []), Part([1, 2], [], [], []), Part([5], [], [], []), Part([4, 6, 7], [], [], [])]
    rows = [["8", "0", "3"], ["1", "2"], ["5"], ["4", "6", "7"]]
    assert [*in_order(held, rows)] == [["0"], ["1", "2", "3"], ["4", "5", "6", "7", "8"]]
    assert [*in_order([], [])] == []


def test_every_slice_of_a_shuffled_archive_is_in_one_part() -> None:
    """Wherever their slices stand."""
    series = np.arange(2000).repeat(3)
    order = np.random.default_rng(0).permutation(6000)
    letters = [f"{number}" for number in series[order]]
    facts = read_facts([Input("", "path_escape")] * 6000)
    for name, values in {"known": [True] * 6000, "series": letters, "slice_id": [*map(str, order)]}.items():
        facts = facts.set_column(facts.schema.get_field_index(name), facts.schema.field(name), pa.array(values))
    found = whole_series([Input("")] * 6000, SeriesTable.of_facts([facts]), 128)
    assert sorted(number for part in found for number in part.numbers) == [*range(6000)]
    assert {*map(len, (part.numbers for part in found))} == {126, 6000 % 126}
    assert {length for part in found for length in part.lengths} == {3}
