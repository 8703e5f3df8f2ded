"""What a report repeats of a file, in the character set and encoding of any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ich_ray.ct.patient_module import SourceInstance, read_source_instance
from ich_ray.errors import Rejection
from tests.ct.files import ABSENT, SYNTAXES, make

UIDS = {"SOPInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.4", "StudyInstanceUID": "1.2.5"}
NAMED = {"PatientID": "P 7", "PatientName": "Doe^Jane", "PatientBirthDate": "19500131", "PatientSex": "O",
         "AccessionNumber": "A7", "StudyID": "S", "StudyDate": "20240229", "StudyTime": "1015",
         "ReferringPhysicianName": "Roe^R"}  # fmt: skip


def read(tmp_path: Path, **tags: Any) -> SourceInstance:
    (tmp_path / "a.dcm").write_bytes(make(**{**UIDS, **NAMED, **tags}))
    return read_source_instance(str(tmp_path / "a.dcm"))


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_identifiers_are_read_in_every_encoding(tmp_path: Path, syntax: str) -> None:
    found = read(tmp_path, syntax=syntax)
    assert found == SourceInstance(
        "1.2.840.10008.5.1.4.1.1.2", "1.2.3", "1.2.4", "1.2.5",
        "P 7", "Doe^Jane", "19500131", "O", "A7", "S", "20240229", "1015", "Roe^R",
    )  # fmt: skip
    assert found.uids_are_valid


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "Müller^Åke"),
        ("ISO_IR 192", "山田^太郎"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("ISO_IR 144", "Люкceмбypг"),
    ],
)
def test_names_are_read_in_their_character_set(tmp_path: Path, character_set: Any, name: str) -> None:
    assert read(tmp_path, SpecificCharacterSet=character_set, PatientName=name).patient_name == name


@pytest.mark.parametrize(
    ("tags", "field"),
    [
        ({"PatientBirthDate": "1950"}, "birth_date"),
        ({"PatientSex": "X"}, "sex"),
        ({"StudyDate": "2024.02.29"}, "study_date"),
        ({"StudyTime": "10:15"}, "study_time"),
        ({"PatientBirthDate": "19000229"}, "birth_date"),
        ({"StudyDate": "20241301"}, "study_date"),
        ({"StudyDate": "20240230"}, "study_date"),
        ({"StudyDate": "00000000"}, "study_date"),
        ({"StudyTime": "246161"}, "study_time"),
        ({"StudyTime": "2400"}, "study_time"),
        ({"AccessionNumber": "A" * 17}, "accession_number"),
        ({"StudyID": ["A", "B"]}, "study_id"),
        ({"PatientName": "A" * 193}, "patient_name"),
        ({"ReferringPhysicianName": "A\x1b[2J"}, "referring_physician"),
        ({"StudyDate": ABSENT}, "study_date"),
        ({"PatientID": ABSENT}, "patient_id"),
    ],
)
def test_what_no_report_may_hold_is_empty(tmp_path: Path, tags: dict[str, Any], field: str) -> None:
    assert getattr(read(tmp_path, **tags), field) == ""


@pytest.mark.parametrize("uid", ["ID_1", "1.02", "1..2", "1." * 32 + "1"])
@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SOPInstanceUID"])
def test_an_identifier_that_is_no_uid_cannot_be_referred_to(tmp_path: Path, keyword: str, uid: str) -> None:
    assert not read(tmp_path, **{keyword: uid}).uids_are_valid


def test_a_file_that_is_no_dicom_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "page").write_text("<html>")
    with pytest.raises(Rejection, match="not_dicom"):
        read_source_instance(str(tmp_path / "page"))
