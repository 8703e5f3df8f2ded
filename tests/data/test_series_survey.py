"""Counts of what is odd about the series of a dataset."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ich_ray.data.series_survey import SeriesSurvey, number_series, survey_series

LEVELS = [float(5 * level) for level in range(12)]


def table(*series: tuple[str, str, list[float]], tilts_deg: list[float] | None = None) -> pa.Table:
    """Rows of slices.parquet: study, series and the places of each."""
    columns: dict[str, Any] = {
        "patient": ["p1" for _, _, places in series for _ in places],
        "study": [study for study, _, places in series for _ in places],
        "series": [name for _, name, places in series for _ in places],
        "position_mm": pa.array([place for *_, places in series for place in places], pa.float32()),
    }
    if tilts_deg is not None:
        columns["tilt_deg"] = pa.array(tilts_deg, pa.float32())
    return pa.table(columns)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (LEVELS, {}),
        (LEVELS[::-1], {}),
        ([*LEVELS, LEVELS[3]], {"repeating": 1}),
        ([place for place in LEVELS for _ in range(3)], {"repeating": 1}),
        ([*LEVELS, 66.0], {"gaping": 1}),  # 11 after steps of 5
        ([*LEVELS, 65.0], {}),  # exactly twice the median
        ([*LEVELS[:6], *(30 + 8 * step for step in range(6))], {}),  # thin at the base, thicker above
        ([*LEVELS, float("nan")], {"unplaced": 1}),
        (LEVELS[:9], {"short": 1}),
        ([0.0, 5.0, 50.0], {"short": 1}),  # too few for a median step
    ],
)
def test_what_is_odd_about_a_series_is_counted(places: list[float], expected: dict[str, int]) -> None:
    assert survey_series(table(("t1", "s1", places))) == SeriesSurvey(series=1, **expected)


@pytest.mark.parametrize("step_mm", [0.6, 0.625, 1.25, 3.0, 4.5, 4.8])
def test_one_missing_slice_is_no_gap_however_places_were_rounded_and_two_are(step_mm: float) -> None:
    for start_mm in (-211.7, 0.0, 83.33):
        places = [round(start_mm + step_mm * level, 4) for level in range(32)]
        assert survey_series(table(("t1", "s1", [*places[:15], *places[16:]]))) == SeriesSurvey(series=1)
        assert survey_series(table(("t1", "s1", [*places[:15], *places[17:]]))) == SeriesSurvey(series=1, gaping=1)


def test_studies_with_several_series_are_counted_and_a_slice_without_a_series_is_in_none() -> None:
    slices = table(("t1", "s1", LEVELS), ("t1", "s2", LEVELS), ("t1", "s3", LEVELS), ("t2", "s4", LEVELS),
                   ("t3", "", LEVELS), ("", "s5", LEVELS), ("", "s6", LEVELS))  # fmt: skip
    assert survey_series(slices) == SeriesSurvey(series=6, several=1)


def test_tilts_that_differ_within_a_series_are_counted() -> None:
    slices = table(("t1", "s1", LEVELS), ("t2", "s2", LEVELS), ("t3", "s3", LEVELS),
                   tilts_deg=[*[10.0] * 6, *[20.0] * 6, *[0.0, 0.9] * 6, *[float("nan")] * 12])  # fmt: skip
    assert survey_series(slices) == SeriesSurvey(series=3, tilting=1)


def test_one_series_uid_for_all_patients_is_a_series_of_each() -> None:
    slices = table(("t1", "same", LEVELS), ("t2", "same", LEVELS))
    assert len(np.unique(number_series(slices))) == 2
    assert survey_series(slices) == SeriesSurvey(series=2)


def test_an_older_or_empty_table_is_surveyed_for_what_it_has() -> None:
    assert survey_series(table()) == SeriesSurvey()
    assert survey_series(pa.table({"any": [0, 1]})) == SeriesSurvey()
    assert survey_series(table(("t1", "s1", LEVELS)).select(["series"])) == SeriesSurvey(series=1)


def test_each_count_is_a_note_and_none_where_nothing_is_odd() -> None:
    assert SeriesSurvey(series=40).notes == ()
    assert SeriesSurvey(series=40, several=1, repeating=2, gaping=3, unplaced=4, tilting=5, short=6).notes == (
        "1 study has several series: a lesion is a positive slice in each",
        "2 series have two slices at one place",
        "3 series have a gap of more than twice their median one",
        "4 series have slices whose place is not known",
        "5 series have slices of different tilts",
        "6 series have fewer than 10 slices",
    )
