from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ich_ray.data.dataset import PreparedDataset, SliceSet
from ich_ray.data.study_labels import number_studies, one_each, studies_of
from ich_ray.errors import ConfigError
from ich_ray.vocabulary import LABELS
from tests.examined import with_columns, with_examinations
from tests.prepared import make_dataset

STUDIES = ["a", "a", "b", "b", "c", "c", "c", "", "d", "d", "e", "e"]
PATIENTS = ["p"] * 4 + ["q"] * 4 + ["r"] * 4
ANY = [0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]
SUBDURAL = [None, 1, None, None, None, None, None, None, None, None, None, None]


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    """Studies a and b of patient p, c of q with a slice beside it, d and e of r."""
    made = make_dataset(tmp_path / "dataset", patients=3, blocks=1)
    none = {name: [0 if value == 0 else None for value in ANY] for name in LABELS[:-1]}
    return with_columns(made, study=STUDIES, patient=PATIENTS, any=ANY, **{**none, "subdural": SUBDURAL})


def everything(dataset: PreparedDataset) -> SliceSet:
    return SliceSet(dataset, np.arange(len(dataset)))


def any_of(dataset: PreparedDataset) -> dict[str, float | None]:
    studies = studies_of(everything(dataset))
    told = zip(studies.names, studies.label("any").tolist(), strict=True)
    return {name: None if np.isnan(value) else value for name, value in told}


def test_a_study_shows_what_any_of_its_slices_shows(dataset: PreparedDataset) -> None:
    studies = studies_of(everything(dataset))
    assert studies.names.tolist() == ["a", "b", "c", "d", "e"]
    assert studies.patients.tolist() == ["p", "p", "q", "r", "r"]
    assert studies.of_slice.tolist() == [0, 0, 1, 1, 2, 2, 2, -1, 3, 3, 4, 4]
    assert studies.first.tolist() == [0, 2, 4, 8, 10]
    assert studies.label("any").tolist() == [1, 0, 0, 0, 1]
    assert studies.label("subdural").tolist() == pytest.approx([1, 0, 0, 0, np.nan], nan_ok=True)
    assert (studies.unknown, studies.unnamed) == (0, 1)


def test_studies_of_some_slices_are_numbered_as_they_are_met(dataset: PreparedDataset) -> None:
    studies = studies_of(SliceSet(dataset, np.array([11, 7, 2, 10])))
    assert studies.names.tolist() == ["e", "b"]
    assert (studies.of_slice.tolist(), studies.first.tolist()) == ([0, -1, 1, 0], [0, 2])


def test_one_name_in_two_patients_is_two_studies(dataset: PreparedDataset) -> None:
    studies = studies_of(everything(with_columns(dataset, study=["a"] * 12)))
    assert (studies.names.tolist(), studies.patients.tolist()) == (["a", "a", "a"], ["p", "q", "r"])


def test_a_label_of_its_own_comes_before_those_of_slices(dataset: PreparedDataset) -> None:
    known = {"a": {"any": 0}, "b": {"any": 1, "epidural": 1}, "e": {"any": None}}
    studies = studies_of(everything(with_examinations(dataset, "study", known)))
    assert studies.label("any").tolist() == [0, 1, 0, 0, 1]
    assert studies.label("epidural").tolist() == pytest.approx([0, 1, 0, 0, np.nan], nan_ok=True)


def test_without_labels_of_slices_a_study_without_one_is_unknown(dataset: PreparedDataset) -> None:
    alone = with_examinations(dataset, "study", {"a": {"any": 1}, "c": {"any": 0}}, alone=True)
    assert any_of(alone) == {"a": 1, "b": None, "c": 0, "d": None, "e": None}
    assert studies_of(everything(alone)).unknown == 3
    with pytest.raises(ConfigError, match="slices must have labels of their own, got labels of a study each"):
        _ = everything(alone).labels


def test_all_series_of_a_negative_study_are_known_to_be(dataset: PreparedDataset) -> None:
    series = ["a1", "a2", "b1", "b2", "c1", "c1", "c1", "c9", "d1", "d2", "e1", "e2"]
    known = {"a1": {"any": 0}, "a2": {"any": 1}, "b1": {"any": 0}, "c1": {"any": 0}, "d1": {"any": 0}, "d2": {"any": 0}}
    alone = with_examinations(with_columns(dataset, series=series), "series", known, alone=True)
    assert any_of(alone) == {"a": 1, "b": None, "c": 0, "d": 0, "e": None}


def test_that_a_patient_bleeds_says_of_one_of_two_studies_nothing(dataset: PreparedDataset) -> None:
    known = {"p": {"any": 1}, "q": {"any": 1}, "r": {"any": 0}}
    one = with_columns(dataset, study=["c" if name == "" else name for name in STUDIES])
    alone = with_examinations(one, "patient", known, alone=True)
    assert any_of(alone) == {"a": None, "b": None, "c": 1, "d": 0, "e": 0}


def test_a_dataset_without_studies_has_none(dataset: PreparedDataset) -> None:
    assert len(studies_of(everything(with_columns(dataset, study=[""] * 12)))) == 0


def test_a_study_that_is_null_is_none(dataset: PreparedDataset) -> None:
    found = with_columns(dataset, study=[None if name in ("", "c") else name for name in STUDIES])
    of_slice, first = number_studies(SliceSet(found, np.arange(12)[::-1]))
    assert of_slice.tolist() == [0, 0, 1, 1, -1, -1, -1, -1, 2, 2, 3, 3]
    assert first.tolist() == [0, 2, 8, 10]
    assert one_each(of_slice).tolist() == [0, 0, 1, 1, 8, 9, 10, 11, 2, 2, 3, 3]


def test_without_a_column_of_studies_there_is_none(dataset: PreparedDataset) -> None:
    pq.write_table(dataset.slices.drop_columns(["study"]), str(dataset.files.slices))
    of_slice, first = number_studies(everything(PreparedDataset.open(dataset.files.root)))
    assert (of_slice.tolist(), first.tolist()) == ([-1] * 12, [])
    assert one_each(of_slice).tolist() == list(range(12))
