"""Labels of series, studies and patients: whose they are, what they contradict, and that no slice gets one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ich_ray import cli
from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.dataset_audit import audit_dataset
from ich_ray.data.identities import read_identities
from ich_ray.data.prepare.examinations import find_folders, gather_examinations
from ich_ray.data.prepare.label_table import LabelTable, read_labels
from ich_ray.data.prepare.run import prepare
from ich_ray.errors import ConfigError, IntegrityError, LabelError
from ich_ray.search.run import run_search
from ich_ray.search.space.builtin_spaces import builtin_space
from ich_ray.vocabulary import LABELS, Level
from tests.ct.files import head
from tests.data.folders import refusals, write
from tests.test_house import REPOSITORY

STUDIES = 12
CANARY = "CANARY"


pytestmark = pytest.mark.usefixtures("own_ray")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A study a patient, two slices each, in a folder of its own."""
    for study in range(STUDIES):
        folder = tmp_path / "images" / f"{CANARY}-case{study}" / "series"
        folder.mkdir(parents=True)
        for number in range(2):
            write(folder / f"{number}.dcm", f"ID_{study:02d}{number}", study, hu=head(32, 32, seed=study * 2 + number),
                  SeriesInstanceUID=f"se{study}", AccessionNumber=f"{CANARY}-a{study}",
                  ImagePositionPatient=[-125, -100, 40 + 5 * number])  # fmt: skip
    return tmp_path / "images"


def table(folder: Path, column: str, name: str, *more: str) -> Path:
    """A row a study, every second positive; `name` with its number."""
    rows = [f"{name.format(study)},{(study + 1) % 2},{(study + 1) % 2}" for study in range(STUDIES)]
    (folder / "studies.csv").write_text("\n".join([f"{column},any,subdural", *rows, *more]))
    return folder / "studies.csv"


@pytest.mark.parametrize(
    ("header", "columns", "asked", "level"),
    [
        ("id,any", {}, None, "slice"),
        ("SOPInstanceUID,StudyInstanceUID,any", {}, None, "slice"),
        ("StudyInstanceUID,any", {}, None, "study"),
        ("PatientID,StudyInstanceUID,any", {}, None, "study"),
        ("StudyInstanceUID,SeriesInstanceUID,any", {}, None, "series"),
        ("PatientID,any", {}, None, "patient"),
        ("folder,PatientID,any", {}, None, "study"),
        ("id,any", {}, "study", "study"),
        ("id,StudyInstanceUID,any", {}, None, "slice"),
        ("id,Case,any", {"study": "Case"}, None, "study"),
        ("PatientID,AccessionNumber,any", {}, None, "study"),
        ("AccessionNumber,StudyInstanceUID,any", {}, None, "study"),
        ("folder,AccessionNumber,any", {}, None, "study"),
        ("AccessionNumber,PatientID,any", {}, "patient", "patient"),
        ("AccessionNumber,any", {}, "study", "study"),
        ("id,AccessionNumber,any", {}, None, "slice"),
        ("Order,any", {"accession": "Order"}, None, "study"),
        ("PatientID,StudyInstanceUID,any", {}, "patient", "patient"),
        ("ID,Label", {}, "series", "series"),
    ],
)
def test_what_a_row_is_about_is_told_by_its_columns(
    tmp_path: Path, header: str, columns: dict[str, str], asked: Level | None, level: Level
) -> None:
    row = ",".join("1" if name == "any" else f"x-{name}" for name in header.split(","))
    (tmp_path / "labels.csv").write_text(f"{header}\n{row if 'any' in header else 'x-ID_any,1'}\n")
    found = read_labels(tmp_path / "labels.csv", columns, asked)
    assert (found.level, len(found), found.values[0, -1]) == (level, 1, 1)
    assert (found.rule == "path") == header.startswith("folder")
    by_accession = {"PatientID,AccessionNumber,any", "AccessionNumber,any", "Order,any"}
    assert found.by_accession == (header in by_accession)


def test_a_table_of_studies_is_none_of_slices(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"a row must be about a slice .* got studyinstanceuid; what holds for"):
        read_labels(table(tmp_path, "StudyInstanceUID", "st{}"), level="slice")
    (tmp_path / "labels.csv").write_text("case,any\nx,1\n")
    with pytest.raises(LabelError, match=r"the columns must be `ID,Label`, or `id` .* or StudyInstanceUID"):
        read_labels(tmp_path / "labels.csv")


def labels(*ids: str, any_: tuple[int, ...] = (), level: Level = "study") -> LabelTable:
    values = np.full((len(ids), len(LABELS)), -1, np.int8)
    values[:, -1] = any_ or 0
    rule: Any = "path" if level == "study" and not any_ else "uid"
    return LabelTable(pa.array(ids), values, np.full(len(ids), "", object), None, 0, rule, level)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (("a/x", "b"), [0, 0, 1, -1]),
        (("./a\\x/", "b/"), [0, 0, 1, -1]),
        (("x", "y"), [0, 0, 1, -1]),
        (("none",), [-1, -1, -1, -1]),
    ],
)
def test_folders_go_by_their_path_or_by_their_name(ids: tuple[str, ...], expected: list[int]) -> None:
    files = ["a/x/1.dcm", "a/x/deep/2.dcm", "b/y/3.dcm", "4.dcm"]
    assert find_folders(labels(*ids), files).tolist() == expected


def test_two_folders_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be the only one of its name, got a/x and b/x; give their paths"):
        find_folders(labels("x"), ["a/x/1.dcm", "b/x/1.dcm"])


def test_contradictions_are_told_by_kind() -> None:
    accepted = pa.table({"study": list("aabbccd"), "patient": list("PPQQRRS")})
    places = np.array([0, 0, 1, 1, 2, 2, -1])
    of_slices = np.array([0, 1, 0, 0, 0, -1, 1], np.int8)
    found = gather_examinations(
        labels("a", "b", "c", "gone", any_=(0, 1, 1, 0)), accepted, places, np.full(7, "train", object), of_slices
    )
    # Of c one slice is not known, so that it may be the positive one.
    assert found.table["contradiction"].to_pylist() == ["slice_positive", "slices_negative", ""]
    assert found.table["slices"].to_pylist() == [2, 2, 2]
    assert (found.positives, found.unmatched) == (2, 1)
    assert found.of_slices[:, -1].tolist() == [0, 0, 1, 1, 1, 1, -1]
    assert found.notes(of_slices=True) == [
        "3 labels are of a study, 2 with haemorrhage",
        "1 labels of a study have no accepted slice, or contradict themselves",
        "1 contradict their slices, negative with a positive slice: a",
        "1 contradict their slices, positive though all of its slices are negative: b",
    ]


def test_a_series_of_two_patients_is_of_neither() -> None:
    accepted = pa.table({"series": list("aabbb"), "patient": list("PQRRR")})
    roles = np.array(["train", "test", "train", "train", "train"], object)
    of_series = labels("a", "b", "gone", any_=(1, 1, 0), level="series")
    found = gather_examinations(of_series, accepted, np.array([0, 0, 1, 1, -1]), roles, np.ones(5, np.int8))
    assert [found.table[name].to_pylist() for name in ("examination", "patient", "slices")] == [["b"], ["R"], [2]]
    assert found.of_slices[:, -1].tolist() == [-1, -1, 1, 1, -1]
    assert found.notes(of_slices=True) == [
        "1 labels are of a series, 1 with haemorrhage",
        "1 labels of a series have no accepted slice, or contradict themselves",
        "1 labels of a series are left out: its slices are of several patients",
    ]


@pytest.mark.parametrize(
    ("column", "name", "level", "key"),
    [
        ("StudyInstanceUID", "st{}", "study", "study"),
        ("folder", f"{CANARY}-case{{}}", "study", "study"),
        ("AccessionNumber", f"{CANARY}-a{{}}", "study", "study"),
        ("PatientID", f"{CANARY}-{{}}", "patient", "patient"),
    ],
)
def test_no_slice_has_the_label_of_its_study(
    tmp_path: Path, images: Path, column: str, name: str, level: str, key: str
) -> None:
    dataset = prepare(images, table(tmp_path, column, name, f"{CANARY}-gone,0,0"), tmp_path / "out", size=16)
    manifest = dataset.manifest
    assert (manifest.level, manifest.accepted, manifest.labels["any"]) == (level, 2 * STUDIES, 0)
    assert dataset.slices["any"].null_count == 2 * STUDIES
    assert manifest.examinations is not None
    assert (manifest.examinations.rows, manifest.examinations.positives) == (STUDIES, STUDIES // 2)
    found = dataset.examinations
    role_of = dict(zip(dataset.column(key), dataset.column("role"), strict=True))
    assert dict(zip(found["examination"].to_pylist(), found["role"].to_pylist(), strict=True)) == role_of
    assert {role: counts.patients for role, counts in manifest.roles.items()} == {
        "train": 6, "validation": 2, "calibration": 2, "test": 2,
    }  # fmt: skip
    assert found["any"].to_pylist() == found["subdural"].to_pylist()
    assert {*found["slices"].to_pylist()} == {2}
    of_number = column == "AccessionNumber"
    assert refusals(dataset) == ({} if of_number else {f"{CANARY}-gone": ("file_missing", "a label without a file")})
    assert "1 labels have no file" in manifest.notes
    assert any(row.uid == f"{CANARY}-gone" for row in read_identities(dataset)) != of_number
    assert audit_dataset(dataset.files.root).state == "ok"
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes(), path
    assert CANARY not in str(found.to_pylist())
    dataset.files.examinations.write_bytes(b"")
    assert audit_dataset(dataset.files.root).breaches == (
        "examinations.parquet: SHA-256 must equal the manifest's, got another one",
    )
    dataset.files.examinations.unlink()
    assert audit_dataset(dataset.files.root).breaches[0].startswith("examinations.parquet: must be readable, got ")
    with pytest.raises(IntegrityError, match="a row per examination must be there, got no file"):
        _ = PreparedDataset.open(tmp_path / "out").examinations


def documented(file: str) -> list[str]:
    """The columns of a table, by the page of the files."""
    page = (REPOSITORY / "docs/reference/formats.md").read_text()
    rows = re.findall(r"^\| (`.*) \| \w+ \|", page.partition(f"## `DATASET/{file}`")[2].partition("\n## ")[0], re.M)
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def test_every_column_has_a_meaning_on_the_page_of_the_files(tmp_path: Path, images: Path) -> None:
    dataset = prepare(images, table(tmp_path, "StudyInstanceUID", "st{}"), tmp_path / "out", size=16, slab_mm=8)
    assert dataset.slices.schema.names == documented("slices.parquet")
    assert dataset.examinations.schema.names == documented("examinations.parquet")
    assert pq.read_schema(str(dataset.files.rejected)).names == documented("rejected.parquet")


def test_labels_of_studies_alone_train_no_network_of_slices(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = table(tmp_path, "StudyInstanceUID", "st{}")
    said = "slices must have labels of their own, got labels of a study each"
    dataset = prepare(images, studies, tmp_path / "out", size=16)
    with pytest.raises(ConfigError, match=said):
        _ = dataset.role("train").labels
    with pytest.raises(ConfigError, match=said):
        run_search(tmp_path / "out", builtin_space("demo"), tmp_path / "search", trials=1)
    assert not (tmp_path / "search").exists()
    arguments = [str(images), "--labels", str(studies), "--space", str(builtin_space("demo"))]
    assert cli.call(["run", *arguments, "--out", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run" / "dataset").exists()
    assert "a row must be about a slice" in capsys.readouterr().err


def test_both_kinds_of_labels_stand_beside_each_other(tmp_path: Path, images: Path) -> None:
    rows = [f"ID_{study:02d}{n},{int(study % 2 == 0 and n == 1 and study != 2)}" for study in range(STUDIES)
            for n in range(2)]  # fmt: skip
    (images / "slices.csv").write_text("\n".join(["id,any", *rows]))  # tables beside images are none of them
    studies = table(images, "Case", "st{}").read_text().replace("st4,1,1", "st4,0,0")
    (images / "studies.csv").write_text(studies)
    columns = {"examinations.study": "Case"}
    both: dict[str, Any] = {"examinations": images / "studies.csv", "columns": columns, "size": 16}
    dataset = prepare(images, images / "slices.csv", tmp_path / "both", **both)
    assert (dataset.manifest.listed, dataset.manifest.accepted) == (2 * STUDIES, 2 * STUDIES)
    both["examinations"] = (images / "studies.csv").rename(tmp_path / "studies.csv")
    (images / "slices.csv").rename(tmp_path / "slices.csv")
    assert (dataset.manifest.level, dataset.manifest.labels["any"]) == ("slice", STUDIES // 2 - 1)
    assert dataset.manifest.examinations is not None
    assert dataset.manifest.examinations.contradictions == {"slice_positive": 1, "slices_negative": 1}
    assert sum("contradict their slices" in note for note in dataset.manifest.notes) == 2
    alone = prepare(images, tmp_path / "slices.csv", tmp_path / "alone", size=16)
    columns_of_both = ["slice_id", "patient", "role", "fold", *LABELS]
    assert alone.slices.select(columns_of_both).equals(dataset.slices.select(columns_of_both))
    assert alone.manifest.fingerprint != dataset.manifest.fingerprint
    with pytest.raises(ConfigError, match="labels of examinations must be there, got none"):
        _ = alone.examinations
    with pytest.raises(ConfigError, match="got a difference in columns, examinations; choose another folder"):
        prepare(images, tmp_path / "slices.csv", tmp_path / "alone", **both)


@pytest.mark.parametrize(
    ("column", "name", "options", "message"),
    [
        ("StudyInstanceUID", "other{}", {}, "ids of the table must be StudyInstanceUID of the files, got none"),
        ("folder", "other{}", {}, "ids of the table must be folders of the files, got none in common"),
        ("folder", "images", {}, "got none in common"),
        ("AccessionNumber", "other{}", {}, "ids of the table must be AccessionNumber of the files, got none in common"),
        ("id", f"{CANARY}-a{{}}", {}, "got the AccessionNumber of files: .* or --column accession=id"),
        ("id", "st{}", {}, "got the StudyInstanceUID of files: .* or --level study"),
        ("id", f"{CANARY}-{{}}", {"level": "study"}, "ids of the table must be StudyInstanceUID"),
        ("StudyInstanceUID", "st{}", {"split": "slice"}, "--split slice: an examination must have one role"),
        ("StudyInstanceUID", "st{}", {"columns": {"examinations.any": "x"}}, "needs --examinations, got none"),
    ],
)
def test_tables_of_other_examinations_are_refused_before_anything_is_decoded(
    tmp_path: Path, images: Path, column: str, name: str, options: dict[str, Any], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("ich_ray.data.prepare.run._mapped", lambda *_: pytest.fail("files were decoded"))
    with pytest.raises(ConfigError, match=message) as refused:
        prepare(images, table(tmp_path, column, name), tmp_path / "out", size=16, **options)
    assert CANARY not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_folders_must_be_studies(tmp_path: Path, images: Path) -> None:
    first, second = (images / f"{CANARY}-case{study}" for study in (0, 1))
    (second / "series" / "0.dcm").rename(first / "more.dcm")
    with pytest.raises(ConfigError, match=r"a folder of the table must hold one study, got two in .*-case0; name"):
        prepare(images, table(tmp_path, "folder", f"{CANARY}-case{{}}"), tmp_path / "out", size=16)
    assert not (tmp_path / "out" / "dataset.json").exists()
