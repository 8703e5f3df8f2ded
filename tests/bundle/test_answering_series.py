"""Which series of a study answers for it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ich_ray.bundle.answering_series import StudySeries, answering, answering_series
from ich_ray.bundle.training_data import Names, SeriesLook, TrainingData
from ich_ray.data.dataset import PreparedDataset, SliceSet
from tests.bundle.test_training_data import THICK, USUAL
from tests.prepared import make_dataset

HEAD = StudySeries(USUAL, slices=30, length_mm=145, uid="1.2")
THIN = replace(HEAD, look=replace(USUAL, thickness_mm=0.625, slice_spacing_mm=0.625), slices=240, uid="1.1")
BONE = replace(HEAD, look=replace(USUAL, kernel="H60s"), slices=60, uid="1.0")
MIXED = THICK.model_copy(update={"kernels": Names(counts={"H30s": 600, "H40s": 395, "H60s": 5})})


def like(**changes: Any) -> StudySeries:
    return replace(HEAD, look=replace(USUAL, **changes), slices=100, uid="1.1")


@pytest.mark.parametrize(
    ("other", "known", "answers"),
    [
        (THIN, THICK, HEAD),
        (THIN, None, THIN),
        (THIN, TrainingData(slices=9), THIN),
        (BONE, THICK, HEAD),
        (BONE, None, BONE),
        (like(kernel="H31s"), THICK, HEAD),
        (like(kernel=""), THICK, HEAD),
        (like(kernel="h40S", thickness_mm=4.9), MIXED, "other"),
        (like(thickness_mm=4), THICK, HEAD),
        (like(thickness_mm=math.nan), THICK, HEAD),
        (like(slice_spacing_mm=math.nan), THICK, HEAD),
        (like(pixel_spacing_mm=0.2, matrix="768x768"), THICK, "other"),
        (replace(HEAD, slices=31, uid="9"), THICK, "other"),
        (replace(HEAD, uid="1.1"), THICK, "other"),
        (replace(HEAD, uid="9"), THICK, HEAD),
        (replace(HEAD, length_mm=0, slices=90), THICK, HEAD),
        (replace(HEAD, length_mm=70, slices=90), None, HEAD),
        (replace(HEAD, length_mm=75, slices=90), None, "other"),
        (replace(HEAD, length_mm=math.nan, slices=90), None, "other"),
    ],
)
def test_the_series_most_like_the_training_data_answers(other: Any, known: TrainingData | None, answers: Any) -> None:
    wanted = other if answers == "other" else answers
    assert [HEAD, other][answering([HEAD, other], known)] == wanted
    assert [other, HEAD][answering([other, HEAD], known)] == wanted


def test_a_rare_kernel_comes_behind_one_that_is_not_told() -> None:
    rare, untold = like(kernel="H60s"), replace(like(kernel="", thickness_mm=2), slices=3)
    assert answering([rare, untold], THICK) == 1


def test_one_series_answers_whatever_it_is() -> None:
    unlike = StudySeries(SeriesLook(math.nan, math.nan, math.nan, "", ""), 1, math.nan, "")
    assert answering([unlike], THICK) == 0


def dataset_with(folder: Path, patients: int = 4, **columns: Any) -> PreparedDataset:
    """Four slices of each patient, in the series and kernels that are given."""
    dataset = make_dataset(folder, patients)
    table = pq.read_table(dataset.files.slices)
    for name, values in columns.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        if values is not None:
            table = table.append_column(name, pa.array(values))
    pq.write_table(table, str(dataset.files.slices))
    return PreparedDataset.open(folder)


def chosen(dataset: PreparedDataset, known: TrainingData | None, rows: Any = slice(None)) -> list[int]:
    slices = SliceSet(dataset, np.arange(len(dataset))[rows])
    return [*map(int, answering_series(slices, known))]


@pytest.mark.parametrize(
    ("columns", "known", "answers"),
    [
        ({"series": [*"abbb"], "kernel": ["H30s", *["H60s"] * 3]}, THICK, [1, 0, 0, 0]),
        ({"series": [*"abbb"], "kernel": ["H30s", *["H60s"] * 3]}, None, [0, 1, 1, 1]),
        ({"series": [*"aabb"], "thickness_mm": [1.0, 1.0, 5.0, 5.0]}, THICK, [0, 0, 1, 1]),
        ({"series": [*"aabb"]}, THICK, [1, 1, 0, 0]),
        ({"series": [*"abab"], "position_mm": [0.0, 0.0, 5.0, 1.0]}, THICK, [1, 0, 1, 0]),
        ({"series": ["a", "", "", ""]}, None, [0, 1, 1, 1]),
        ({"series": ["", "", "", ""]}, None, [1, 1, 1, 1]),
        ({"series": None}, None, [1, 1, 1, 1]),
        ({"series": [*"abbb"], "study": [""] * 4}, None, [1, 1, 1, 1]),
        ({"series": [*"abbb"], "study": pa.nulls(4, pa.string())}, None, [1, 1, 1, 1]),
        ({"series": [*"abbb"], "study": None}, None, [1, 1, 1, 1]),
        ({"series": [*"abcd"], "study": [*"xxyy"]}, None, [1, 0, 1, 0]),
    ],
)
def test_the_slices_of_a_dataset_that_answer(tmp_path: Path, columns: Any, known: Any, answers: list[int]) -> None:
    """Of one patient's four slices; equal series are told apart by what they are called."""
    unplaced = {"position_mm": [math.nan] * 4, **columns} if "position_mm" not in columns else columns
    assert chosen(dataset_with(tmp_path, 1, **unplaced), known) == answers


def test_some_slices_of_a_dataset_answer_as_they_lie_and_a_study_is_of_one_patient(tmp_path: Path) -> None:
    dataset = dataset_with(
        tmp_path, 2, study=["x"] * 8, series=[*"abbbaaab"], position_mm=np.tile(np.nan, 8).astype(np.float32)
    )
    assert chosen(dataset, None) == [0, 1, 1, 1, 1, 1, 1, 0]
    assert chosen(dataset, None, [7, 4, 0, 1]) == [0, 1, 1, 0]
