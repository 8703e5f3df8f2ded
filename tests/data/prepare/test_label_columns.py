"""Columns of a hospital's table, mapped by flag or file to what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ich_ray.data.prepare.label_columns import read_columns
from ich_ray.data.prepare.label_table import LabelTable, read_labels
from ich_ray.errors import ConfigError, LabelError

HOSPITAL = """\
id,slice_id,File,hemorrhage,No_Hemorrhage,SDH,R1:ICH,R2:ICH,R3:ICH
7,x,a.dcm,Yes,0,TRUE,1,1,0
7,x,b.dcm,no,1,false,0,0,0
7,x,c.dcm,,,,1,,0
"""


def read(folder: Path, columns: dict[str, Any], text: str = HOSPITAL) -> LabelTable:
    (folder / "labels.csv").write_text(text)
    return read_labels(folder / "labels.csv", {"id": "file", **columns})


@pytest.mark.parametrize(
    ("asked", "any_values", "reasons"),
    [
        ("hemorrhage", [1, 0, -1], ["", "", "label_incomplete"]),
        ("not No_Hemorrhage", [1, 0, -1], ["", "", "label_incomplete"]),
        ("R1:ICH,R2:ICH, R3:ICH", [1, 0, -1], ["", "", "label_incomplete"]),
        (["R1:ICH", "not No_Hemorrhage", "r2:ich"], [1, 0, 1], ["", "", ""]),
    ],
)
def test_a_label_is_a_column_its_opposite_or_the_majority_of_several(
    tmp_path: Path, asked: Any, any_values: list[int], reasons: list[str]
) -> None:
    table = read(tmp_path, {"any": asked})
    assert table.slice_ids.to_pylist() == ["a.dcm", "b.dcm", "c.dcm"]
    assert table.values[:, -1].tolist() == any_values
    assert table.reasons.tolist() == reasons


def test_labels_that_are_not_mapped_are_recognized_beside_those_that_are(tmp_path: Path) -> None:
    text = "slice_id,any,epidural,bleed,SDH,role\na,0,1,1,0,train\nb,1,0,0,0,test\n"
    table = read(tmp_path, {"id": "slice_id", "any": "bleed", "subdural": "sdh"}, text)
    assert table.values.tolist() == [[1, -1, -1, -1, 0, 1], [0, -1, -1, -1, 0, 0]]
    assert table.roles is not None
    assert table.roles.tolist() == ["train", "test"]
    assert (
        read(tmp_path, {"id": "slice_id", "any": "subdural, all"}, 'slice_id,"subdural, all"\na,1\n').values[0, -1] == 1
    )  # a name with a comma is no two readers


@pytest.mark.parametrize(
    ("header", "columns", "any_values", "level"),
    [
        ("id,label", {"any": "label"}, [1, 0], "slice"),
        ("file,label", {"id": "file", "any": "label"}, [1, 0], "slice"),
        ("file,label", {"id": "file", "any": "not label"}, [0, 1], "slice"),
        ("StudyInstanceUID,label", {"any": "label"}, [1, 0], "study"),
        ("patient_id,label", {"patient": "patient_id", "any": "label"}, [1, 0], "patient"),
    ],
)
def test_a_column_label_that_is_mapped_makes_no_table_of_the_competition(
    tmp_path: Path, header: str, columns: dict[str, Any], any_values: list[int], level: str
) -> None:
    (tmp_path / "labels.csv").write_text(f"{header}\na,1\nb,0\n")
    table = read_labels(tmp_path / "labels.csv", columns)
    assert table.slice_ids.to_pylist() == ["a", "b"]
    assert (table.values[:, -1].tolist(), table.level) == (any_values, level)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("id,any,,\na,1,,\nb,0,,\n", {}),
        ("id,any,note,Note\na,1,x,y\nb,0,,\n", {}),
        ("id,label,any,label\na,x,1,y\nb,,0,\n", {}),
        ("file,any,bleed,any\na,x,1,\nb,,0,y\n", {"id": "file", "any": "bleed"}),
        ("ID,Label,,\na_any,1,,\nb_any,0,,\n,,,\n", {}),
    ],
)
def test_columns_that_nobody_reads_may_have_one_name(tmp_path: Path, text: str, columns: dict[str, str]) -> None:
    (tmp_path / "labels.csv").write_text(text)
    table = read_labels(tmp_path / "labels.csv", columns)
    assert (table.slice_ids.to_pylist(), table.values[:, -1].tolist()) == (["a", "b"], [1, 0])


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("id,any,any", {}),
        ("id,id,any", {}),
        ("id,any,role,role", {}),
        ("ID,Label,Label", {}),
        ("id,note,note", {"any": "note"}),
    ],
)
def test_columns_that_are_read_stand_there_once(tmp_path: Path, header: str, columns: dict[str, str]) -> None:
    (tmp_path / "labels.csv").write_text(f"{header}\n{','.join('1' for _ in header.split(','))}\n")
    with pytest.raises(LabelError, match="each once; got"):
        read_labels(tmp_path / "labels.csv", columns)


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        (
            {"any": "hemorhage"},
            LabelError,
            r"--column any: .* got 'hemorhage' \(did you mean 'hemorrhage'\?\); there are",
        ),
        ({"any": "not there"}, LabelError, "got 'there'"),
        ({"ani": "hemorrhage"}, ConfigError, r"one of id, role, .* got 'ani' \(did you mean 'any'\?\)"),
        ({"any": "sdh, SDH"}, ConfigError, "--column any: each reader must be a column, got one twice"),
        ({"any": ["sdh", ""]}, ConfigError, "must be a column or a list of columns"),
        ({"any": True}, ConfigError, "got True; quote what is text"),
        ({"any": []}, ConfigError, r"got \[\]"),
        ({"id": "file, hemorrhage"}, ConfigError, "--column id: must be one column as it is"),
        ({"id": "not file"}, ConfigError, "--column id: must be one column as it is"),
        ({"any": "file"}, LabelError, "row 2: id must be 0 or 1, got 'a.dcm'"),
        ({"any": "R1:ICH, not R1:ICH"}, LabelError, "any: readers must agree on some row, got a tie in each of 3"),
    ],
)
def test_what_cannot_be_mapped(tmp_path: Path, columns: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read(tmp_path, columns)


def test_a_table_without_known_columns_says_how_to_name_them(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,hemorrhage\na,1\n")
    with pytest.raises(LabelError, match="name yours with --column, such as any=hemorrhage, id=file or study=case"):
        read_labels(tmp_path / "labels.csv")


@pytest.mark.parametrize(
    ("flags", "text", "expected"),
    [
        (["any=hemorrhage", " id = file "], None, {"any": "hemorrhage", "id": "file"}),
        (["any=a=b"], None, {"any": "a=b"}),
        ([], "any: not No_Hemorrhage\nsubdural: SDH\n", {"any": "not No_Hemorrhage", "subdural": "SDH"}),
        ([], "any: R1:ICH, R2:ICH, R3:ICH", {"any": "R1:ICH, R2:ICH, R3:ICH"}),
        (["id=file"], "any: [R1:ICH, R2:ICH]", {"any": ["R1:ICH", "R2:ICH"], "id": "file"}),
    ],
)
def test_flags_and_files_ask_alike(
    tmp_path: Path, flags: Sequence[str], text: str | None, expected: dict[str, Any]
) -> None:
    if text is not None:
        (tmp_path / "columns.yaml").write_text(text)
    assert read_columns(flags, None if text is None else tmp_path / "columns.yaml") == expected


@pytest.mark.parametrize(
    ("flags", "text", "message"),
    [
        (["any"], None, "--column: must be NAME=COLUMN, got 'any'"),
        (["any="], None, "--column: must be NAME=COLUMN"),
        (["any=a", "any=b"], None, "--column any: must be given once"),
        (["any=a"], "any: b", "--column any: must be given once"),
        ([], "any", "columns.yaml: --columns must be a mapping"),
        ([], "any: [a", "columns.yaml: --columns must be a readable YAML file"),
        ([], "any: a\nid: b\nany: c", "a readable YAML file, got the key 'any' twice in line 3"),
    ],
)
def test_what_cannot_be_asked(tmp_path: Path, flags: Sequence[str], text: str | None, message: str) -> None:
    (tmp_path / "columns.yaml").write_text(text or "")
    with pytest.raises(ConfigError, match=message):
        read_columns(flags, None if text is None else tmp_path / "columns.yaml")
    with pytest.raises(ConfigError, match=r"none\.yaml: --columns must be a readable YAML file, got"):
        read_columns([], tmp_path / "none.yaml")
