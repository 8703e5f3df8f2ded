from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ich_ray.data.dataset import PreparedDataset
from ich_ray.training.sequence_metrics import of_studies, sequence_metrics, study_metrics
from ich_ray.training.sequence_set import SequenceSet
from ich_ray.vocabulary import LABELS
from tests.examined import with_columns, with_examinations
from tests.prepared import make_dataset
from tests.sequences import make_series

ANY = ("any",)


def of(dataset: PreparedDataset, rows: list[int], labels: tuple[str, ...] = ANY) -> SequenceSet:
    return SequenceSet.of(dataset, np.array(rows), np.zeros((len(rows), 2), np.float16), labels, "key")


def test_a_set_of_a_dataset_knows_its_series_and_their_labels(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", patients=20)
    role = dataset.role("train")
    found = of(dataset, role.rows.tolist(), LABELS)
    assert len(found) == len(role) // 4
    assert found.order.lengths.tolist() == [4] * len(found)
    assert np.array_equal(found.targets, role.targets(LABELS))
    assert np.array_equal(found.study_targets, role.targets(LABELS).reshape(-1, 4, len(LABELS)).max(1))
    assert np.array_equal(found.patients, role.patients)
    assert len(set(found.studies)) == len(found)
    again, other = of(dataset, role.rows.tolist(), LABELS), of(dataset, role.rows.tolist()[::-1], LABELS)
    assert found.fingerprint == again.fingerprint != other.fingerprint


def test_two_series_of_a_study_have_its_label(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", patients=20)
    table = dataset.slices.set_column(
        dataset.slices.column_names.index("series"), "series", [[f"s{row % 2}" for row in range(80)]]
    ).set_column(dataset.slices.column_names.index("any"), "any", [pa.array([1, 0, 0, 0, *[0] * 76], pa.int8())])
    pq.write_table(table, str(dataset.files.slices))
    found = of(PreparedDataset.open(dataset.files.root), [0, 1, 2, 3, 4, 5])
    assert found.order.lengths.tolist() == [2, 2, 1, 1]
    assert found.order.series.tolist() == [0, 1, 0, 1, 2, 3]
    assert found.study_targets.tolist() == [[1], [1], [0], [0]]
    assert found.studies.tolist() == [0, 0, 1, 1]


def test_a_study_is_negative_only_if_all_its_slices_are(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", patients=20)
    labels = pa.array([None, 0, 0, 0, None, 1, 0, 0, *[0] * 72], pa.int8())
    table = dataset.slices.set_column(dataset.slices.column_names.index("subdural"), "subdural", [labels])
    pq.write_table(table.set_column(table.column_names.index("any"), "any", [pa.array([1] * 80, pa.int8())]),
                   str(dataset.files.slices))  # fmt: skip
    found = of(PreparedDataset.open(dataset.files.root), list(range(12)), ("subdural", "any"))
    assert np.array_equal(found.study_targets, [[math.nan, 1], [1, 1], [0, 1]], equal_nan=True)


@pytest.mark.parametrize("slices", [True, False])
def test_the_label_of_a_study_goes_before_what_its_slices_say(tmp_path: Path, slices: bool) -> None:
    plain = make_dataset(tmp_path / "data", patients=20)
    own = of(plain, list(range(16)), ("subdural", "any")).study_targets
    known = {"t0000": {"any": 1}, "t0001": {"any": 0}, "t0002": {"any": None}}
    dataset = with_examinations(plain, "study", known, alone=not slices)
    found = of(dataset, list(range(16)), ("subdural", "any"))
    assert found.study_targets[:2, 1].tolist() == [1, 0]
    assert found.study_targets[1, 0] == 0  # no haemorrhage of any kind
    if slices:
        assert np.array_equal(found.study_targets[2:], own[2:])
    else:
        assert np.isnan(found.study_targets[2:]).all()
        assert np.isnan(found.targets).all()


def test_the_label_of_a_series_is_its_own_and_that_of_a_patient_of_one_study(tmp_path: Path) -> None:
    plain = make_dataset(tmp_path / "data", patients=20)
    by_series = with_examinations(plain, "series", {"s0000": {"any": 1}, "s0001": {"any": 0}}, alone=True)
    assert of(by_series, list(range(8))).study_targets.tolist() == [[1], [0]]
    two_each = with_columns(plain, study=[f"t{row // 2}" for row in range(80)])
    by_patient = with_examinations(two_each, "patient", {"p00000": {"any": 1}, "p00001": {"any": 0}}, alone=True)
    found = of(by_patient, list(range(8))).study_targets[:, 0]
    assert np.isnan(found[:2]).all()
    assert found[2:].tolist() == [0, 0]


@pytest.mark.parametrize("study", ["null", "empty", "no column"])
def test_what_names_no_study_is_one_by_itself(tmp_path: Path, study: str) -> None:
    plain = make_dataset(tmp_path / "data", patients=20)
    names = {"null": pa.nulls(80, pa.string()), "empty": pa.array([""] * 80)}
    if study == "no column":
        pq.write_table(plain.slices.drop_columns(["study"]), str(plain.files.slices))
        dataset = PreparedDataset.open(plain.files.root)
    else:
        dataset = with_columns(plain, study=names[study], any=[1, *[0] * 79])
    found = of(dataset, list(range(8)))
    assert found.order.lengths.tolist() == [4, 4]
    assert len(set(found.studies)) == 2
    assert np.array_equal(found.study_targets[:, 0], found.targets.reshape(2, 4).max(1))


def test_that_a_patient_bleeds_says_nothing_of_slices_that_name_no_study(tmp_path: Path) -> None:
    plain = with_columns(make_dataset(tmp_path / "data", patients=20), study=["", "", *["t"] * 2, *["u"] * 76])
    dataset = with_examinations(plain, "patient", {"p00000": {"any": 1}, "p00001": {"any": 1}}, alone=True)
    found = of(dataset, [0, 1, 4, 5]).study_targets[:, 0]
    assert np.array_equal(found, [math.nan, 1], equal_nan=True)


def test_of_several_series_of_a_study_the_mean_counts() -> None:
    given = make_series(4)
    two = SequenceSet(**{**vars(given), "studies": np.array([0, 0, 1, 2])})
    logits = np.array([[0, 1], [2, 5], [0, 0], [1, 1]], np.float32)
    targets, found = of_studies(two, logits)
    assert found.tolist() == [[1, 3], [0, 0], [1, 1]]
    assert np.array_equal(targets[0], given.study_targets[:2].max(0))


def test_metrics_of_studies_are_of_those_that_are_known() -> None:
    targets = np.array([[1], [0], [math.nan], [0]], np.float32)
    found = study_metrics(targets, np.array([[2], [1], [9], [3]], np.float32))
    assert found["study_average_precision"] == pytest.approx(0.5)
    assert found["study_roc_auc"] == pytest.approx(0.5)
    sigmoid = [1 / (1 + math.exp(-logit)) for logit in (2, 1, 3)]
    expected = -(math.log(sigmoid[0]) + math.log(1 - sigmoid[1]) + math.log(1 - sigmoid[2])) / 3
    assert found["study_log_loss"] == pytest.approx(expected)
    assert all(math.isnan(value) for value in study_metrics(targets[2:3], np.zeros((1, 1), np.float32)).values())


def test_metrics_of_slices_are_of_those_that_are_known() -> None:
    given = make_series(6)
    logits = np.where(given.targets == 1, 3.0, -3.0).astype(np.float32)
    hidden = np.array(given.targets)
    hidden[::2, 1] = math.nan
    hidden[::4] = math.nan
    logits[::2, 1] *= -1  # wrong where nobody knows
    found = sequence_metrics(SequenceSet(**{**vars(given), "targets": hidden}), logits, np.zeros((6, 2), np.float32))
    assert found["average_precision"] == found["roc_auc"] == found["roc_auc_subdural"] == 1
    assert found["study_roc_auc"] == 0.5
    assert found["weighted_log_loss"] == pytest.approx(math.log(1 + math.exp(-3)))
