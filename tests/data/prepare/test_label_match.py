"""Tables that name files find their slices by one rule; what is ambiguous or of other files is refused in seconds."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ich_ray.data.prepare import label_match
from ich_ray.data.prepare.label_match import check_one_way, file_keys, find_labels, settle_rule, share_labels
from ich_ray.data.prepare.label_table import LabelTable
from ich_ray.errors import ConfigError
from ich_ray.storage import locate
from ich_ray.vocabulary import MatchRule
from tests.ct.files import head, make
from tests.data.folders import write

OTHERS = ("series", "study", "patient", "accession")  # identifiers of a header


def table(*ids: str, rule: MatchRule = "uid") -> LabelTable:
    values = np.tile(np.arange(len(ids), dtype=np.int8)[:, None] % 2, 6)
    return LabelTable(pa.array(ids, pa.string()), values, np.full(len(ids), "", object), None, 0, rule)


def slices(*rows: tuple[str, int, str | None]) -> pa.Table:
    """File, frame and slice_id of each."""
    kinds = (("file", pa.string()), ("frame", pa.int32()), ("slice_id", pa.string()))
    return pa.table({name: pa.array(values, kind) for (name, kind), values in zip(kinds, zip(*rows, strict=True),
                    strict=True)})  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slices of each of two patients."""
    root = tmp_path_factory.mktemp("study") / "images"
    for patient, number in itertools.product((1, 2), (1, 2)):
        path = root / f"P{patient}" / f"{patient}-{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, f"1.2.{patient}.{number}", patient, SeriesInstanceUID=f"se{patient}")
    return root


FILES = ("P1/1-1.dcm", "P1/1-2.dcm", "P2/2-1.dcm", "P2/2-2.dcm")


def settled(folder: Path, *ids: str) -> LabelTable:
    return settle_rule(table(*ids), locate(folder), FILES, without_preamble=False)


@pytest.mark.parametrize(
    ("ids", "rule"),
    [
        (("1.2.1.1", "nowhere"), "uid"),
        (("1.2.1.1", "2-1.dcm", "2-2.dcm"), "uid"),
        (("P1/1-1.dcm", "nowhere"), "path"),
        (("./P1/1-1.dcm", "P1\\1-2.dcm"), "path"),
        (("images/P1/1-1.dcm",), "path"),
        (("P1/1-1", "P2/2-2"), "path_stem"),
        (("1-1.dcm", "1-2.dcm", "P1/1-2.dcm"), "name"),
        (("1-1", "nowhere"), "stem"),
        (("1-1#1", "1-1#2"), "stem"),
        (("1-1.dcm#1",), "name"),
    ],
)
def test_one_rule_is_found_for_a_table(folder: Path, ids: tuple[str, ...], rule: MatchRule) -> None:
    assert settled(folder, *ids).rule == rule


def test_paths_from_the_root_are_cut_at_the_folder(folder: Path) -> None:
    found = settled(folder, f"{folder}/P1/1-1.dcm", "images/P2/2-1.dcm", "P2/2-2.dcm")
    assert found.slice_ids.to_pylist() == ["P1/1-1.dcm", "P2/2-1.dcm", "P2/2-2.dcm"]
    same = settled(folder, "./P1/1-1.dcm", "P1/1-1.dcm")  # two ids of one file are not made one
    assert same.slice_ids.to_pylist() == ["./P1/1-1.dcm", "P1/1-1.dcm"]


@pytest.mark.parametrize(
    ("rule", "keys"),
    [
        ("path", ["a/b.c/x.dcm", "1.2.840.5", "IM.0001", "a/.hidden", "y"]),
        ("path_stem", ["a/b.c/x", "1.2.840.5", "IM.0001", "a/", "y"]),
        ("name", ["x.dcm", "1.2.840.5", "IM.0001", ".hidden", "y"]),
        ("stem", ["x", "1.2.840.5", "IM.0001", "", "y"]),
    ],
)
def test_the_last_number_of_a_uid_is_no_suffix(rule: MatchRule, keys: list[str]) -> None:
    files = pa.array(["a/b.c/x.dcm", "1.2.840.5", "IM.0001", "a/.hidden", "y"])
    assert file_keys(files, rule).to_pylist() == keys


def test_frames_are_found_behind_the_name_of_their_file() -> None:
    rows = slices(("a/x.dcm", 1, "9#1"), ("a/x.dcm", 2, "9#2"), ("b/y.dcm", 0, "8"), ("z.dcm", 0, None))
    assert find_labels(table("x#2", "y", rule="stem"), rows).tolist() == [-1, 0, 1, -1]
    assert find_labels(table("9#1", "8"), rows).tolist() == [0, -1, 1, -1]


def test_an_id_that_names_two_files_is_refused_and_others_may_be_ambiguous(folder: Path) -> None:
    again = folder.parent / "again"
    for part in ("1", "2"):
        (again / part).mkdir(parents=True)
        for name in ("x.dcm", "x.ima", f"y{part}.dcm"):
            (again / part / name).write_bytes(make(head(32, 32), SOPInstanceUID=f"1.9.{part}", PatientID=part))
    files = [f"{part}/{name}" for part in ("1", "2") for name in ("x.dcm", "x.ima", f"y{part}.dcm")]
    with pytest.raises(ConfigError) as refused:
        settle_rule(table("x.dcm", "y1.dcm"), locate(again), files, without_preamble=False)
    assert str(refused.value) == (
        "labels: an id must name one file, got 'x.dcm', the file name of 1/x.dcm and of 2/x.dcm; give paths below the "
        "folder, or SOPInstanceUIDs"
    )
    with pytest.raises(ConfigError, match=r"'1/x', the path without its suffix of 1/x\.dcm and of 1/x\.ima;"):
        settle_rule(table("1/x"), locate(again), files, without_preamble=False)
    found = settle_rule(table("y1.dcm", "y2.dcm"), locate(again), files, without_preamble=False)
    assert found.rule == "name"


def test_an_id_that_is_the_uid_of_one_file_and_the_name_of_another_is_refused() -> None:
    swapped = slices(("a/1.3.dcm", 0, "1.2"), ("a/1.2.dcm", 0, "1.3"))
    with pytest.raises(ConfigError, match=r"got '1\.3', the SOPInstanceUID of a/1\.2\.dcm and the file name without"):
        check_one_way(table("1.3"), swapped)
    check_one_way(table("1.4"), swapped)
    check_one_way(table("1.2"), slices(("a/1.2.dcm", 0, "1.2"), ("b/1.2.dcm", 0, "1.3"), ("c/1.2.dcm", 0, None)))


def test_a_duplicate_gives_its_label_to_the_file_that_is_kept() -> None:
    rows = slices(
        *((f"{name}.dcm", 0, uid) for name, uid in zip("abcdef", ("1", "1", "2", "2", "3", "3"), strict=True))
    )
    reasons = np.array(["", "duplicate"] * 3, object)
    labels = table("b", "c", "d", "e", rule="stem")  # of c and d, and of nobody else, the values differ
    places = find_labels(labels, rows)
    share_labels(rows, reasons, labels, places)
    assert places[[0, 2, 4]].tolist() == [0, 1, 3]
    assert reasons[[0, 2, 4]].tolist() == ["", "label_conflict", ""]


def test_labels_of_other_files_are_refused_with_an_example_of_both(folder: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        settled(folder, "ID_other")
    assert str(refused.value).startswith(
        "labels: ids of the table must be SOPInstanceUIDs, paths or names of the files, got none in common: the table "
        "has 'ID_other', the files '1.2."
    )
    assert str(refused.value).endswith(".dcm'; give the table of these files")


@pytest.mark.parametrize(("uid", "keyword"), [("se1", "SeriesInstanceUID"), ("st2", "StudyInstanceUID"),
                                              ("CANARY-1", "PatientID")])  # fmt: skip
def test_labels_of_series_studies_and_patients_are_told_apart(folder: Path, uid: str, keyword: str) -> None:
    with pytest.raises(ConfigError, match=f"ids of the table must name slices, got the {keyword} of files") as refused:
        settled(folder, uid)
    assert uid not in str(refused.value)


def looked_at(monkeypatch: pytest.MonkeyPatch, files: int, labels: int) -> tuple[int, bool]:
    """How many of so many files are read where nothing matches, and whether the table is refused."""
    read: list[str] = []

    def header(file: Path, without_preamble: bool) -> list[object]:
        read.append(str(file))
        return [type("Header", (), {"slice_id": f"1.{len(read)}", **dict.fromkeys(OTHERS, "")})]

    monkeypatch.setattr(label_match, "_headers", header)
    ids = table(*(f"9.{number}" for number in range(labels)))
    try:
        settle_rule(ids, locate("/nowhere"), [f"{number}.dcm" for number in range(files)], without_preamble=False)
    except ConfigError:
        return len(read), True
    assert len(set(read)) == len(read)
    return len(read), False


@pytest.mark.parametrize(
    ("files", "labels", "read", "refused"),
    [
        (50, 1, 50, True),  # all were looked at
        (4000, 1, 4000, True),
        (20_000, 20_000, 200, True),
        (20_000, 2_000, 200, True),  # 20 of 200 would have matched
        (20_000, 400, 1000, True),
        (20_000, 90, 4000, False),  # 18 of 4,000 would have
        (20_000, 1, 4000, False),
    ],
)
def test_a_table_is_refused_only_where_chance_cannot_have_missed_it(
    monkeypatch: pytest.MonkeyPatch, files: int, labels: int, read: int, refused: bool
) -> None:
    assert looked_at(monkeypatch, files, labels) == (read, refused)


def test_a_good_table_of_few_labels_is_found_wherever_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """A twentieth of the files: every 20th, a block of them, or any; a regular sample could miss the first kind."""
    files = [f"{number}.dcm" for number in range(20_000)]
    uids = {f"/there/{file}": f"1.{number}" for number, file in enumerate(files)}

    def header(file: Path, without_preamble: bool) -> list[object]:
        return [type("Header", (), {"slice_id": uids[str(file)], **dict.fromkeys(OTHERS, "")})]

    monkeypatch.setattr(label_match, "_headers", header)
    rng = np.random.default_rng(1)
    for labeled in (range(7, 20_000, 20), range(9_000, 10_000), rng.choice(20_000, 1000, replace=False)):
        labels = table(*(f"1.{number}" for number in labeled))
        assert settle_rule(labels, locate("/there"), files, without_preamble=False).rule == "uid"
