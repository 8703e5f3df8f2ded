"""A dataset without the names of its files, and the table beside the key that leads back to them."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ich_ray import cli
from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.identities import identities_file, read_identities
from ich_ray.data.prepare.decode_chunk import run_chunk
from ich_ray.data.prepare.run import prepare
from ich_ray.errors import ConfigError
from tests.data.folders import PATIENTS, SLICES, spoil, write_cohort
from tests.prepared import make_dataset

PSEUDONYM = re.compile(r"[if][0-9a-f]{16}")


def mode(path: os.PathLike[str]) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cohort with files that are refused, and `out`, prepared in this process."""
    folder = tmp_path_factory.mktemp("identities")
    patch = pytest.MonkeyPatch()
    patch.setenv("ICH_RAY_KEY_FILE", str(folder / "config" / "key"))
    patch.setattr(
        "ich_ray.data.prepare.run._mapped",
        lambda job, chunks, *_: (run_chunk(job, number, files) for number, files in chunks.items()),
    )
    labels = write_cohort(folder / "images")
    spoil(folder / "images", labels)
    prepare(folder / "images", labels, folder / "out", size=16, limit_rejected=1)
    yield folder
    patch.undo()


@pytest.fixture
def dataset(folder: Path) -> PreparedDataset:
    return PreparedDataset.open(folder / "out")


def test_neither_a_file_name_nor_a_slice_id_stands_in_a_dataset(folder: Path, dataset: PreparedDataset) -> None:
    names = {path.stem for path in (folder / "images").rglob("ID_*.dcm")} | {"ID_nowhere", "torn_1", "same_uid_2"}
    assert len(names) == PATIENTS * SLICES + 5
    tables = [pq.read_table(str(path)).to_pylist() for path in (dataset.files.slices, dataset.files.rejected)]
    assert not [name for name in names if name in str(tables)]
    assert all(PSEUDONYM.fullmatch(row[name]) for row in tables[0] for name in ("slice_id", "file"))
    assert all(PSEUDONYM.fullmatch(row["file"]) for row in tables[1])
    written = [path for path in (folder / "out").rglob("*") if path.is_file()]
    assert len(written) > 6
    for path in written:
        assert not [name for name in names if name.encode() in path.read_bytes()], path


def test_the_way_back_has_every_file_and_is_for_its_owner_only(folder: Path, dataset: PreparedDataset) -> None:
    rows = read_identities(dataset)
    listed = {row.path for row in rows if row.path}
    assert len(rows) == dataset.manifest.listed + 1
    assert len(listed) == dataset.manifest.listed
    accepted = [row for row in rows if not row.reason]
    assert [(row.slice_id, row.file) for row in accepted] == list(
        zip(dataset.column("slice_id"), dataset.column("file"), strict=True)
    )
    assert all(row.path == f"{row.uid}.dcm" for row in accepted)
    (label,) = [row for row in rows if not row.path]
    assert (label.uid, label.file, label.reason) == ("ID_nowhere", label.slice_id, "file_missing")
    twice = {row.path: row.slice_id for row in rows if row.uid == "ID_000"}
    assert set(twice) == {"ID_000.dcm", "more/deeper/copy.dcm"}
    assert len(set(twice.values())) == 1, "two files of one slice have one pseudonym"
    path = identities_file(dataset.manifest.identities)
    assert path.parent == folder / "config" / "identities"
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)


def test_another_preparation_of_the_same_slices_keeps_a_table_of_its_own(folder: Path, tmp_path: Path) -> None:
    """Its fingerprint is the same, its refused files are not."""
    images = tmp_path / "clean"
    labels = write_cohort(images)
    clean = prepare(images, labels, tmp_path / "out", size=16)
    spoiled = PreparedDataset.open(folder / "out")
    assert clean.manifest.fingerprint == spoiled.manifest.fingerprint
    assert clean.manifest.identities != spoiled.manifest.identities
    assert len(read_identities(clean)) == PATIENTS * SLICES
    assert clean.column("slice_id").tolist() == spoiled.column("slice_id").tolist(), "one key, one pseudonym"


def test_identify_names_the_files_that_were_not_accepted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["identify", str(folder / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["reason", "path", "detail"]
    assert len(lines) == 1 + 16
    found = {tuple(line.split()[:2]) for line in lines[1:]}
    assert {("not_dicom", "more/deeper/page.dcm"), ("duplicate", "more/deeper/copy.dcm")} < found
    assert ("file_missing", "label") in found
    assert cli.call(["identify", str(folder / "out"), "--json"]) == 0
    assert {row["reason"] for row in json.loads(capsys.readouterr().out)} == {reason for reason, _ in found}


def test_identify_names_the_file_behind_a_pseudonym(
    folder: Path, dataset: PreparedDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    slice_id, file = str(dataset.column("slice_id")[0]), str(dataset.column("file")[1])
    assert cli.call(["identify", str(folder / "out"), slice_id, file, "--json"]) == 0
    assert {row["path"] for row in json.loads(capsys.readouterr().out)} == {
        "ID_000.dcm",
        "more/deeper/copy.dcm",
        "ID_001.dcm",
    }
    assert cli.call(["identify", str(folder / "out"), file]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[1:] == ["ID_001", file, "ID_001.dcm", "accepted"]
    assert cli.call(["identify", str(folder / "out"), "ID_001"]) == 2
    assert "must hold the pseudonym, got no 'ID_001'; give a slice_id or a file" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_identify_writes_a_table_that_nobody_else_may_read(
    folder: Path, tmp_path: Path, suffix: str, dataset: PreparedDataset
) -> None:
    out = tmp_path / f"files{suffix}"
    out.write_text("")
    out.chmod(0o644)
    assert cli.call(["identify", str(folder / "out"), "--out", str(out)]) == 0
    assert mode(out) == 0o600
    if suffix == ".parquet":
        assert pq.read_table(str(out)).to_pylist() == [asdict(row) for row in read_identities(dataset)]
    assert cli.call(["identify", str(folder / "out"), "--out", str(tmp_path / "files.txt")]) == 2


def test_a_table_that_is_not_here_or_damaged_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_dataset(tmp_path / "old", patients=4)
    assert cli.call(["identify", str(tmp_path / "old")]) == 2
    assert "got an older dataset with both in the clear; read its slices.parquet" in capsys.readouterr().err
    monkeypatch.setenv("ICH_RAY_IDENTITIES", str(tmp_path))
    assert cli.call(["identify", str(folder / "out")]) == 2
    assert "must be there, got none; ask who prepared it, or set ICH_RAY_IDENTITIES" in capsys.readouterr().err
    table = identities_file(PreparedDataset.open(folder / "out").manifest.identities)
    table.write_text("torn")
    assert cli.call(["identify", str(folder / "out")]) == 5
    pq.write_table(pa.table({"file": ["f"]}), table)
    assert cli.call(["identify", str(folder / "out")]) == 5
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "must have the columns of identities" in errors[1]


@pytest.mark.parametrize("name", ["../x", "A" * 32, "0" * 31, "/etc/passwd"])
def test_the_name_of_the_table_cannot_lead_elsewhere(tmp_path: Path, name: str) -> None:
    make_dataset(tmp_path / "out", patients=4)
    manifest = tmp_path / "out" / "dataset.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "identities": name}))
    assert cli.call(["identify", str(tmp_path / "out")]) == 5


def test_where_no_table_can_be_written_nothing_is_decoded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ICH_RAY_IDENTITIES", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"^ICH_RAY_IDENTITIES .*/file: must be a folder, got a file"):
        prepare(folder / "images", folder / "labels.csv", tmp_path / "out", size=16)
    assert not (tmp_path / "out").exists()


def test_the_names_of_a_killed_run_are_its_owners_and_go_with_the_next(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (folder / "images", folder / "labels.csv", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(
            "ich_ray.data.prepare.write.remove_leftovers", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            prepare(*arguments, size=16, limit_rejected=1)
    rows = sorted((tmp_path / "out" / "blocks").glob("*.rows"))
    assert [mode(path) for path in rows] == [0o600] * 3
    assert b"ID_000" in rows[0].read_bytes()
    (tmp_path / "out" / ".dataset.json.0123abcd.tmp").write_text("")
    whole = prepare(*arguments, size=16, limit_rejected=1)
    left = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")}
    assert not [name for name in left if name.endswith((".rows", ".tmp"))]
    assert {record.file for record in whole.manifest.blocks} < left
