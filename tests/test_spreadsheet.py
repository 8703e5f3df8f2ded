from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_ray.bundle.prediction import Prediction
from ich_ray.bundle.table_writer import writing_rows
from ich_ray.spreadsheet import inert
from ich_ray.storage import locate, read_json


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\rx", "'\rx"),
        ("\tx", "'\tx"),
        ("  =1", "'  =1"),
        ('"=1', "'\"=1"),
        ("'=1", "''=1"),
        ("'\t", "''\t"),
        ("\uff1d1", "'\uff1d1"),
        ("\xa0=1", "'\xa0=1"),
        ("ID_0123", "ID_0123"),
        ("1.2.840.113619", "1.2.840.113619"),
        ("new_scans/a=b.dcm", "new_scans/a=b.dcm"),
        ("'quoted'", "'quoted'"),
        ("", ""),
        (-0.5, -0.5),
        (-3, -3),
        (None, None),
    ],
)
def test_text_that_would_be_computed_is_quoted_and_nothing_else(cell: object, written: object) -> None:
    assert inert(cell) == written
    assert type(inert(cell)) is type(cell)


@given(st.text(alphabet="=+-@'\" \tx1", max_size=8), st.text(alphabet="=+-@'\" \tx1", max_size=8))
def test_two_texts_never_become_one_cell(one: str, other: str) -> None:
    assert (inert(one) == inert(other)) == (one == other)


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_a_table_of_predictions_computes_nothing_and_json_and_parquet_are_exact(suffix: str, tmp_path: Path) -> None:
    hostile = '=HYPERLINK("http://x").dcm'
    row = Prediction(hostile, slice_id="ID_1", study="1.2.3", probability=0.5, decision="positive", threshold=0.25)
    path = locate(tmp_path / f"out{suffix}")
    with writing_rows(path, Prediction) as append:
        append([row, replace(row, file="a.dcm", reason="uid_invalid")])
    if suffix == ".csv":
        (first, second) = csv.DictReader(io.StringIO(path.read_text()))
        assert first["file"] == f"'{hostile}"
        assert (second["file"], second["slice_id"], second["study"]) == ("a.dcm", "ID_1", "1.2.3")
        assert (second["probability"], second["threshold"]) == ("0.5", "0.25")
    elif suffix == ".json":
        assert [found["file"] for found in read_json(path)] == [hostile, "a.dcm"]
    else:
        assert pq.read_table(str(path))["file"].to_pylist() == [hostile, "a.dcm"]
