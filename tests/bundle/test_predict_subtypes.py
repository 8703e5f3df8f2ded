"""What `predict` writes of a bundle that answers the subtypes."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ich_ray.bundle.batch_predict import predict
from ich_ray.bundle.bundle import Bundle, load_bundle
from ich_ray.bundle.prediction import SUBTYPE_COLUMNS, LabelledPrediction, Prediction, Predictor, list_inputs
from ich_ray.bundle.study_prediction import LabelledStudyPrediction, StudyPrediction
from ich_ray.bundle.table_writer import as_table
from tests.data.folders import spoil, write_cohort
from tests.searched import PARAMETERS, calibrated_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated_bundle(tmp_path_factory.mktemp("six"), PARAMETERS.model_copy(update={"labels": "all"}))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    write_cohort(tmp_path / "scans", patients=3)
    spoil(tmp_path / "scans", tmp_path / "labels.csv")
    return tmp_path / "scans"


def names(kind: type[Prediction | StudyPrediction]) -> list[str]:
    return [field.name for field in fields(kind)]


def test_subtypes_stand_behind_the_columns_of_any() -> None:
    assert names(LabelledPrediction) == [*names(Prediction), *SUBTYPE_COLUMNS]
    assert names(LabelledStudyPrediction) == [*names(StudyPrediction), *SUBTYPE_COLUMNS]
    assert SUBTYPE_COLUMNS[0] == "probability_epidural"


def test_each_slice_has_the_probabilities_of_the_bundle(bundle: Path, scans: Path, tmp_path: Path) -> None:
    predict(bundle, [scans], tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == names(LabelledPrediction)
    predictor = Predictor(load_bundle(bundle), "f2")
    (part,) = predictor.parts(list_inputs([scans]))
    ((_, rows, images, _),) = predictor.read(part)
    expected = load_bundle(bundle).label_probabilities(np.stack([image for (image,) in images]))
    read = table.filter(np.array([not reason for reason in table["reason"].to_pylist()]))
    found = np.stack([read[name].to_numpy() for name in (*SUBTYPE_COLUMNS, "probability")], 1)
    by_file = dict(zip(read["file"].to_pylist(), found, strict=True))
    assert by_file
    assert {*by_file} <= {row.file for row in rows}
    told = iter(expected)
    for row in rows:
        if not row.reason:
            probabilities = next(told)
            if row.file in by_file:  # what its series excludes is known to the whole command alone
                assert by_file[row.file] == pytest.approx(probabilities, abs=1e-6)
    rejected = table.filter(np.array([bool(reason) for reason in table["reason"].to_pylist()]))
    assert len(rejected)
    assert [value for name in SUBTYPE_COLUMNS for value in rejected[name].to_pylist() if value is not None] == []


def test_a_study_has_the_highest_of_its_slices(bundle: Path, scans: Path, tmp_path: Path) -> None:
    for by in ("slice", "study"):
        predict(bundle, [scans], tmp_path / f"{by}.parquet", by=by)  # type: ignore[arg-type]
    slices, studies = (pq.read_table(tmp_path / f"{by}.parquet").to_pylist() for by in ("slice", "study"))
    several = [row for row in studies if row["slices"] > 1]
    assert several
    for study in several:
        own = [row for row in slices if row["study"] == study["study"] and not row["reason"]]
        for name in (*SUBTYPE_COLUMNS, "probability"):
            assert study[name] == max(row[name] for row in own), name


def test_rows_come_back_from_a_worker_as_they_were(bundle: Path, scans: Path) -> None:
    predictor = Predictor(load_bundle(bundle), "f2")
    rows = [row for batch in predictor.stream(list_inputs([scans])) for row in batch]
    table = as_table(rows, predictor.kind)
    assert [predictor.kind(**row) for row in table.to_pylist()] == rows


def test_a_slice_with_a_subtype_that_is_no_number_is_not_decided(
    bundle: Path, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Bundle, logits: np.ndarray) -> np.ndarray:
        found = np.full((len(logits), 6), 0.5)
        found[0, 2] = np.nan
        return found

    monkeypatch.setattr(Bundle, "label_calibrated", broken)
    predictor = Predictor(load_bundle(bundle), "f2")
    rows = predictor.predict(*predictor.parts(list_inputs([scans])))
    assert [row.reason for row in rows].count("not_finite") == 1
