"""Labels by accession number: the same dataset as by StudyInstanceUID, and no number in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ich_ray.data.prepare.accession_numbers import by_study
from ich_ray.data.prepare.label_table import LabelTable, read_labels
from ich_ray.errors import ConfigError
from ich_ray.storage import locate
from tests.ct.files import ABSENT, make


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Slices of three studies, one of which has no number."""
    told = [("A1", "st1"), ("A1 ", "st1"), ("A2", "st2"), (ABSENT, "st3"), ("A4", ABSENT)]
    for place, (accession, study) in enumerate(told):
        tags = {"AccessionNumber": accession, "StudyInstanceUID": study, "SOPInstanceUID": f"ID_{place}"}
        (tmp_path / f"{place}.dcm").write_bytes(make(**tags))
    (tmp_path / "page").write_text("<html>")
    return [*(f"{place}.dcm" for place in range(len(told))), "page"]


def table(folder: Path, *numbers: str) -> LabelTable:
    (folder / "labels.csv").write_text("\n".join(["AccessionNumber,any", *(f"{number},1" for number in numbers)]))
    return read_labels(folder / "labels.csv")


def test_numbers_become_the_studies_of_their_files(tmp_path: Path, files: list[str]) -> None:
    labels = table(tmp_path, "A2", "A1", "A4", "gone")
    assert (labels.level, labels.by_accession, labels.said()) == (
        "study",
        True,
        "a row a study, by its accession number",
    )
    found = by_study(labels, locate(tmp_path), files, False)
    assert found.slice_ids.to_pylist() == ["st2", "st1", "A4", "gone"]
    assert found.unfound == {"A4", "gone"}
    assert found.values.tolist() == labels.values.tolist()


def test_a_number_of_two_studies_is_refused(tmp_path: Path, files: list[str]) -> None:
    (tmp_path / "more.dcm").write_bytes(make(AccessionNumber="A1", StudyInstanceUID="st9"))
    both = [*files, "more.dcm"]
    with pytest.raises(ConfigError, match=r"must be of one study, got one of 2 \(number 2 of the table\)") as refused:
        by_study(table(tmp_path, "A2", "A1"), locate(tmp_path), both, False)
    assert "A1" not in str(refused.value)
    assert by_study(table(tmp_path, "A2"), locate(tmp_path), both, False).slice_ids.to_pylist() == ["st2"]


def test_two_numbers_of_one_study_are_refused(tmp_path: Path, files: list[str]) -> None:
    (tmp_path / "more.dcm").write_bytes(make(AccessionNumber="A9", StudyInstanceUID="st1"))
    with pytest.raises(ConfigError, match="a study must have one accession number of the table, got numbers 1 and 3"):
        by_study(table(tmp_path, "A1", "A2", "A9"), locate(tmp_path), [*files, "more.dcm"], False)
