"""Label tables in both layouts, with every defect that real ones have."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ich_ray.data.prepare.label_table import LabelTable, read_labels
from ich_ray.errors import LabelError
from ich_ray.vocabulary import LABELS
from tests.data.real import real_data


def long(rows: dict[str, str], newline: str = "\n") -> str:
    """An RSNA table: six digits per slice, in the order of LABELS."""
    lines = [
        f"{slice_id}_{name},{value}" for slice_id, six in rows.items() for name, value in zip(LABELS, six, strict=True)
    ]
    return newline.join(["ID,Label", *lines]) + newline


def read(folder: Path, text: str | bytes) -> LabelTable:
    path = folder / "labels.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_labels(path)


def as_dict(table: LabelTable) -> dict[str, list[int]]:
    return dict(zip(table.slice_ids.to_pylist(), table.values.tolist(), strict=True))


TWO = {"ID_a_b": "100001", "ID_c": "000000"}
TWO_READ = {"ID_a_b": [1, 0, 0, 0, 0, 1], "ID_c": [0, 0, 0, 0, 0, 0]}
WIDE_HEADER = ",".join(["id", *LABELS])


@pytest.mark.parametrize(
    "text",
    [
        long(TWO),
        long(TWO, "\r\n"),
        "\ufeff" + long(TWO),
        long(TWO).replace(",", ";"),
        long(TWO).replace(",", "\t"),
        long(TWO).replace("ID,Label", " ID, Label").replace(",", ", "),
        long(TWO).replace(",1", ",1.0"),
        long(TWO).replace(",1", ",YES").replace(",0", ",No"),
        long(TWO).replace(",1", ",True").replace(",0", ",false"),
        "\n" + long(TWO) + "\n\n",
        f"{WIDE_HEADER}\nID_a_b,1,0,0,0,0,1\nID_c,0,0,0,0,0,0\n",
        f"{WIDE_HEADER},patient,source\nID_a_b,1,0,0,0,0,1,x,\nID_c,0,0,0,0,0,0,,y\n",
        f"slice_id,any,{','.join(LABELS[:5])}\nID_a_b,1,1,0,0,0,0\nID_c,0,0,0,0,0,0\n",
        f'"Id","{LABELS[0]}",{",".join(LABELS[1:])}\nID_a_b,1,0,0,0,0,1\nID_c,0,0,0,0,0,0\n',
    ],
    ids=[
        "plain",
        "crlf",
        "bom",
        "semicolon",
        "tab",
        "spaces",
        "1.0",
        "yes",
        "true",
        "blank lines",
        "wide",
        "extra",
        "order",
        "quoted",
    ],
)
def test_both_layouts_however_they_are_written(tmp_path: Path, text: str) -> None:
    table = read(tmp_path, text)
    assert as_dict(table) == TWO_READ
    assert set(table.reasons) == {""}
    assert table.collapsed == 0


def test_a_compressed_table(tmp_path: Path) -> None:
    (tmp_path / "labels.csv.gz").write_bytes(gzip.compress(long(TWO).encode()))
    assert as_dict(read_labels(tmp_path / "labels.csv.gz")) == TWO_READ


def test_rows_in_any_order(tmp_path: Path) -> None:
    header, *rows = long(TWO).splitlines()
    assert as_dict(read(tmp_path, "\n".join([header, *sorted(rows, reverse=True)]))) == TWO_READ


def test_duplicates_that_agree_collapse_and_others_conflict(tmp_path: Path) -> None:
    rows = long(TWO) + "ID_c_any,0\nID_c_any,0\nID_a_b_epidural,0\n"
    table = read(tmp_path, rows)
    assert table.collapsed == 2
    assert dict(zip(table.slice_ids.to_pylist(), table.reasons, strict=True)) == {
        "ID_a_b": "label_conflict",
        "ID_c": "",
    }
    wide = read(tmp_path, f"{WIDE_HEADER}\nx,0,0,0,0,0,0\nx,0,0,0,0,0,0\ny,0,0,0,0,0,0\ny,0,1,0,0,0,1\n")
    assert wide.collapsed == 6 + 4
    assert wide.reasons.tolist() == ["", "label_conflict"]


@pytest.mark.parametrize(
    ("six", "expected"), [("000001", "label_inconsistent"), ("010000", "label_inconsistent"), ("010001", "")]
)
def test_any_must_be_the_or_of_the_subtypes(tmp_path: Path, six: str, expected: str) -> None:
    assert read(tmp_path, long({"x": six})).reasons.tolist() == [expected]


def test_a_missing_row_is_derived_or_named(tmp_path: Path) -> None:
    def without(label: str, six: str) -> tuple[list[int], str]:
        rows = [row for row in long({"x": six}).splitlines() if not row.startswith(f"x_{label}")]
        table = read(tmp_path, "\n".join(rows))
        return table.values[0].tolist(), table.reasons[0]

    assert without("any", "000100") == ([0, 0, 0, 1, 0, 1], "")
    assert without("any", "000000") == ([0, 0, 0, 0, 0, 0], "")
    assert without("epidural", "000101") == ([-1, 0, 0, 1, 0, 1], "")
    assert without("epidural", "000000") == ([-1, 0, 0, 0, 0, 0], "")
    assert without("epidural", "000001") == ([-1, 0, 0, 0, 0, 1], "")
    assert read(tmp_path, "ID,Label\nx_subdural,0\n").reasons.tolist() == ["label_incomplete"]


def test_unknown_subtypes_beside_a_known_any(tmp_path: Path) -> None:
    table = read(tmp_path, f"{WIDE_HEADER}\nx,,,,,,1\ny,0,,0,0,0,0\n")
    assert table.values.tolist() == [[-1, -1, -1, -1, -1, 1], [0, -1, 0, 0, 0, 0]]
    assert table.reasons.tolist() == ["", ""]
    assert read(tmp_path, "slice_id,any\nx,1\n").values.tolist() == [[-1, -1, -1, -1, -1, 1]]


@pytest.mark.parametrize("value", ["2", "-1", "", "NaN", "0.5", "maybe"])
def test_a_value_that_is_no_label_is_an_error_with_its_row(tmp_path: Path, value: str) -> None:
    with pytest.raises(LabelError, match=rf"labels.csv: row 9: Label must be 0 or 1, got '{value}'"):
        read(tmp_path, long({"x": "000000"}) + f"y_epidural,1\ny_any,{value}\n")
    with pytest.raises(LabelError, match=r"labels.csv: row 3: any must be 0 or 1"):
        read(tmp_path, f"{WIDE_HEADER}\nx,0,0,0,0,0,0\ny,0,0,0,0,0,{value}\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the columns must be .* got none"),
        ("name,score\nx,1\n", "the columns must be .* got name, score"),
        ("ID,Label\n", "must have rows"),
        ("ID,Label\nx,1\n", "row 2: an ID must end in one of _epidural, .* got 'x'"),
        ("\n\nID,Label\nx_any,0\n\ny_any,2\n", "row 6: Label must be 0 or 1, got '2'"),
        ("ID,Label\nx_any,0\n\n\nx,1\n", "row 5: an ID must end in one of"),
        ("ID,Label\n\nx_any\n", "row 3: 2 columns must be there, got 1"),
        ("id,any,role\n,,\n,1,train\n", "row 3: a slice must be named"),
        ("ID,Label\n\n,\n", "must have rows"),
        ("ID,Label\nx_any\n", "row 2: 2 columns must be there, got 1"),
        ("ID,Label\nx_any,1\ny_any,1,1\n", "row 3: 2 columns must be there, got 3"),
        ("id,any\n,1\n", "row 2: a slice must be named"),
        ("id,any,any\nx,1,1\n", "each once"),
        ("id,any,role\nx,1,trian\n", "row 2: role must be one of train, validation, calibration, test, got 'trian'"),
        ("id,any,role\nx,1,train\nx,1,test\n", "row 3: a slice has one role, got two"),
        ("id,any,roles\nx,1,train\n", "a column must not be almost role, got 'roles'; rename it"),
        ("id,any,Subdual\nx,1,1\n", "almost subdural, got 'subdual'"),
        (long(TWO).encode("utf-16"), "must be a CSV file in UTF-8, or one as .gz, got other bytes"),
        (gzip.compress(long(TWO).encode()), "or one as .gz, got other bytes"),
        ("\x1b[31mID,Label\nx_any,1\n", "got other bytes"),
        (b"ID,Label\nx\xff_any,1\n", "must be a CSV file in UTF-8"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        read(tmp_path, text)


def test_a_table_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "labels.csv.gz").write_text(long(TWO))
    with pytest.raises(LabelError, match="must be a CSV file that can be read, got zlib inflate failed"):
        read_labels(tmp_path / "labels.csv.gz")

    def refuse(path: str) -> None:
        raise PermissionError(13, f"Failed to open local file {path!r}. Detail: [errno 13] Permission denied")

    monkeypatch.setattr(pa, "OSFile", refuse)
    with pytest.raises(LabelError, match=r"labels.csv.gz: must be .*, got permission denied; correct --labels"):
        read_labels(tmp_path / "labels.csv.gz")


def test_columns_that_are_like_others_beside_them(tmp_path: Path) -> None:
    assert len(read(tmp_path, "id,any,subdural,subdurals,subdural_left,many,rule,company\nx,1,1,?,?,?,?,?\n")) == 1


def test_a_missing_table(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="check --labels"):
        read_labels(tmp_path / "none.csv")
    with pytest.raises(LabelError, match="check --labels"):
        read_labels(tmp_path)


def test_roles_come_along(tmp_path: Path) -> None:
    table = read(tmp_path, "id,any,Role\nx,1,train\ny,0, Test \nx,1,train\n")
    assert table.roles is not None
    assert table.roles.tolist() == ["train", "test"]
    assert read(tmp_path, "id,any\nx,1\n").roles is None


def test_find(tmp_path: Path) -> None:
    assert read(tmp_path, long(TWO)).find(pa.array(["ID_c", "none", "ID_a_b"])).tolist() == [1, -1, 0]


def test_half_a_million_rows_in_seconds(tmp_path: Path) -> None:
    body = "".join(f"ID_{number:09x}_{name},{number % 7 == 0:d}\n" for number in range(80_000) for name in LABELS)
    started = time.perf_counter()
    table = read(tmp_path, "ID,Label\n" + body)
    assert time.perf_counter() - started < 5
    assert table.values[:, -1].sum() == np.ceil(80_000 / 7)


def test_real_tables() -> None:
    table = read_labels(real_data() / "rsna-mini" / "stage_2_train.csv")
    assert len(table) == 277
    assert table.values.sum(axis=0).tolist() == [2, 26, 21, 18, 16, 63]
    assert set(table.reasons) == {""}
    wide = read_labels(real_data() / "rsna-labels" / "rsna_labels_wide.csv.gz")
    assert len(wide) == 332_649
    assert int(wide.values[:, -1].sum()) == 102_765
