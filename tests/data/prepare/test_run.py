"""The road from a folder of files to a dataset, bad input included."""

from __future__ import annotations

import io
import logging
import shutil
import stat
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from ich_ray import cli, progress
from ich_ray.ct.dicom import read_slice
from ich_ray.ct.windowing import DEFAULT_WINDOWS, parse_windows, window_slice
from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.dataset_audit import audit_dataset
from ich_ray.data.prepare import decode_chunk
from ich_ray.data.prepare import write as write_module
from ich_ray.data.prepare.run import prepare
from ich_ray.errors import ConfigError, IchRayError, IntegrityError, LabelError, RejectionLimitError, RoleError
from ich_ray.vocabulary import LEAK, ROLES
from tests.ct.files import compressed_image, head, make
from tests.data.folders import (
    PATIENTS,
    SLICES,
    add_rows,
    label_rows,
    paths,
    refusals,
    spoil,
    uids,
    write,
    write_cohort,
)
from tests.data.real import real_data

WINDOWS = parse_windows(DEFAULT_WINDOWS)


pytestmark = pytest.mark.usefixtures("own_ray")


@pytest.fixture
def cohort(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "images", write_cohort(tmp_path / "images")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_complete(dataset: PreparedDataset) -> None:
    """Invariant I8: every file is one row, every row has its image, every block is what the manifest says."""
    manifest = dataset.manifest
    assert manifest.listed == manifest.accepted + manifest.rejected + manifest.duplicate + manifest.excluded
    assert sum(block.rows for block in manifest.blocks) == manifest.accepted == len(dataset.slices)
    PreparedDataset.open(dataset.files.root, verify=True)
    rejected = pq.read_table(io.BytesIO(dataset.files.rejected.read_bytes()))
    assert len(rejected) == sum(manifest.reasons.values())
    assert {path.name for path in dataset.files.blocks.iterdir()} == {b.file.split("/")[1] for b in manifest.blocks}


def test_a_clean_folder(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    dataset = prepare(*cohort, tmp_path / "out", size=16)
    check_complete(dataset)
    manifest = dataset.manifest
    assert (manifest.listed, manifest.accepted, manifest.rejected) == (PATIENTS * SLICES, PATIENTS * SLICES, 0)
    assert manifest.labels["any"] == manifest.labels["subdural"] == PATIENTS // 2
    assert {role: counts.patients for role, counts in manifest.roles.items()} == {
        "train": 6, "validation": 2, "calibration": 2, "test": 2,
    }  # fmt: skip
    images = dataset.gather(np.arange(len(dataset)))
    for row, file in enumerate(paths(dataset)):
        assert np.array_equal(images[row], window_slice(read_slice(cohort[0] / file), WINDOWS, 16))
    assert uids(dataset) == sorted(uids(dataset))
    assert dataset.slices.schema.names == [
        "slice_id", "file", "patient", "study", "series", "position_mm", "role", "fold", "epidural",
        "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any", "block", "row", "flags",
        "representation", "spacing_mm", "thickness_mm", "tilt_deg", "kernel",
        "side_mm", "head_top", "head_left", "head_bottom", "head_right",
    ]  # fmt: skip
    assert set(dataset.column("representation")) == {"int16"}


def test_every_bad_file_is_one_row_with_its_reason(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    expected = spoil(*cohort)
    dataset = prepare(*cohort, tmp_path / "out", size=16, limit_rejected=1)
    check_complete(dataset)
    found = {name: reason for name, (reason, _) in refusals(dataset).items()}
    assert found == {**expected, "ID_nowhere": "file_missing"}
    manifest = dataset.manifest
    assert (manifest.listed, manifest.accepted) == (PATIENTS * SLICES + len(expected), PATIENTS * SLICES)
    assert (manifest.duplicate, manifest.excluded, manifest.rejected) == (1, 1, len(expected) - 2)
    assert "1 labels have no file" in manifest.notes
    assert "1 label rows repeat others" in manifest.notes
    images = dataset.gather(np.arange(len(dataset)))
    for row, file in enumerate(paths(dataset)):
        assert np.array_equal(images[row], window_slice(read_slice(cohort[0] / file), WINDOWS, 16))


CANARY = "CANARY"
CANARIES = {
    keyword: f"{CANARY}-{keyword}"
    for keyword in ("PatientName", "PatientBirthDate", "StudyDate", "ContentDate", "AcquisitionDateTime", "StudyTime",
                    "InstitutionName", "InstitutionAddress", "ReferringPhysicianName", "AccessionNumber", "StudyID",
                    "StudyDescription", "OtherPatientIDs", "StationName", "ImageComments")
}  # fmt: skip


def with_private_tags(dataset: Dataset) -> None:
    block = dataset.private_block(0x0029, f"{CANARY} creator", create=True)
    block.add_new(1, "LO", f"{CANARY} private")


def test_no_identifier_leaves(
    tmp_path: Path, cohort: tuple[Path, Path], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Identifiers are in every file, in the values that a rejection is about too, and in none of what comes out."""
    spoil(*cohort)
    tags = {**CANARIES, "PatientID": f"{CANARY}-1", "StudyInstanceUID": f"{CANARY}.2", "SeriesInstanceUID": CANARY}
    for number, changes in enumerate(
        [{}, {}, {"Modality": CANARY}, {"SOPInstanceUID": f"{CANARY}/x"}, {"RescaleType": CANARY}, {"Rows": 0},
         {"PhotometricInterpretation": CANARY}, {"BitsAllocated": 12}, {"declared": f"1.2.{CANARY}"}]
    ):  # fmt: skip
        slice_id = f"ID_private{number}"
        data = make(head(32, 32, seed=90 + number), edit=with_private_tags, **{"SOPInstanceUID": slice_id, **tags,
                    **changes})  # fmt: skip
        (cohort[0] / f"private{number}.dcm").write_bytes(data if number != 1 else data[:-9] + CANARY.encode())
        add_rows(cohort[1], *label_rows(slice_id, False))
    cut = compressed_image(RLELossless, edit=with_private_tags, **{**tags, "SOPInstanceUID": "ID_cut"})[:-500]
    (cohort[0] / "cut.dcm").write_bytes(cut)
    progress.show()
    caplog.set_level(logging.DEBUG)
    arguments = ["prepare", str(cohort[0]), "--labels", str(cohort[1]), "--out", str(tmp_path / "out"), "--size", "16"]
    assert cli.call([*arguments, "--json"]) == 4
    assert cli.call([*arguments, "--limit-rejected", "100%"]) == 3
    assert cli.call([*arguments, "--seed", "1"]) == 2
    progress.show(False)
    dataset = PreparedDataset.open(tmp_path / "out")
    assert "ID_private0" in uids(dataset)
    assert len([file for file in paths(dataset) if "private" in file]) == 1
    out, err = capfd.readouterr()
    assert "rejected" in out
    assert CANARY not in out + err + caplog.text
    assert not [name for name, data in snapshot(tmp_path / "out").items() if CANARY.encode() in data]
    for path in (dataset.files.slices, dataset.files.rejected):  # their columns are compressed
        assert CANARY not in str(pq.read_table(str(path)).to_pylist())
    logs = snapshot(Path(ray._private.worker._global_node.get_session_dir_path()) / "logs")
    assert logs
    assert not [name for name, data in logs.items() if CANARY.encode() in data]


def test_the_fingerprint_depends_on_content_only(
    tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICH_RAY_IDENTITIES", str(tmp_path / "identities"))
    first = prepare(*cohort, tmp_path / "first", size=16)
    monkeypatch.setenv("ICH_RAY_KEY_FILE", str(tmp_path / "other" / "key"))
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in cohort[0].iterdir():
        shutil.copy(path, moved / f"x{path.name[::-1]}")
    second = prepare(moved, cohort[1], tmp_path / "second", size=16)
    assert first.manifest.fingerprint == second.manifest.fingerprint
    roles = [dict(zip(uids(d), d.column("role"), strict=True)) for d in (first, second)]
    assert roles[0] == roles[1]
    for column in ("patient", "slice_id", "file"):
        assert set(first.column(column)).isdisjoint(second.column(column))
    assert stat.S_IMODE((tmp_path / "other" / "key").stat().st_mode) == 0o600
    third = prepare(*cohort, tmp_path / "third", size=16, seed=1)
    assert third.manifest.fingerprint != first.manifest.fingerprint
    assert prepare(*cohort, tmp_path / "fourth", size=8).manifest.fingerprint != first.manifest.fingerprint


def test_a_finished_dataset_of_an_older_version_is_returned_and_said_to_be_one(
    tmp_path: Path, cohort: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, said = prepare(*cohort, tmp_path / "out", size=16), []
    progress.show()
    for columns in (dataset.slices.column_names, [name for name in dataset.slices.column_names if name != "tilt_deg"]):
        pq.write_table(dataset.slices.select(columns), str(dataset.files.slices))
        manifest = dataset.manifest.model_copy(update={"slices_sha256": ""})
        (tmp_path / "out" / "dataset.json").write_text(manifest.model_dump_json())
        assert len(prepare(*cohort, tmp_path / "out", size=16)) == PATIENTS * SLICES
        said.append("took reformats and projections for slices" in capsys.readouterr().err)
    progress.show(False)
    assert said == [False, True]


def test_a_finished_dataset_is_returned_and_another_one_refused(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    prepare(*cohort, tmp_path / "out", size=16)
    before = snapshot(tmp_path / "out")
    assert len(prepare(*cohort, tmp_path / "out", size=16)) == PATIENTS * SLICES
    for changes, named in [({"size": 8}, "size"), ({"seed": 1}, "seed"), ({"windows": "brain"}, "windows"),
                           ({"slab_mm": 5}, "slab_mm")]:  # fmt: skip
        with pytest.raises(ConfigError, match=f"got a difference in {named}; choose another folder"):
            prepare(*cohort, tmp_path / "out", **{"size": 16, **changes})  # type: ignore[arg-type]
    write(cohort[0] / "new.dcm", "ID_new", 70)
    with pytest.raises(ConfigError, match="got a difference in files"):
        prepare(*cohort, tmp_path / "out", size=16)
    assert snapshot(tmp_path / "out") == before
    (cohort[0] / "new.dcm").unlink()
    (tmp_path / "out" / "blocks" / "00000.arrow").unlink()
    with pytest.raises(IntegrityError, match=r"prepare the dataset again \(remove .*/out first: what is finished is"):
        prepare(*cohort, tmp_path / "out", size=16)
    (tmp_path / "out" / "prepare.json").write_text("[]")
    with pytest.raises(ConfigError, match="got a difference in files, format, labels, seed, size"):
        prepare(*cohort, tmp_path / "out", size=16)


def test_thin_series_are_averaged_through_ray_and_only_by_the_same_slabs(
    tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two slices at 5 mm, slabs of 11: each slice whole, and of the other the 3 of its 5 mm that lie within."""
    dataset = prepare(*cohort, tmp_path / "out", size=16, slab_mm=11)
    check_complete(dataset)
    assert f"{PATIENTS * SLICES} accepted slices are flagged slab" in dataset.manifest.notes
    assert {*dataset.column("slab_mm")} == {11.0}
    hu = [head(32, 32, seed=number).astype(np.float64) for number in range(2)]
    brain = np.clip((hu[0] + 0.6 * hu[1]) / 1.6 / 80, 0, 1).reshape(16, 2, 16, 2).mean((1, 3))
    (image,) = dataset.gather(np.array([uids(dataset).index("ID_000")]))
    assert np.abs(image[0] - 255 * brain).max() <= 0.5 + 1e-4
    with pytest.raises(ConfigError, match="got a difference in slab_mm; choose another folder"):
        prepare(*cohort, tmp_path / "out", size=16)
    monkeypatch.setattr("ich_ray.data.prepare.run.find_thin_series", lambda *_: pytest.fail("it was finished"))
    assert len(prepare(*cohort, tmp_path / "out", size=16, slab_mm=11)) == PATIENTS * SLICES


def test_what_cannot_be_asked(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    images, labels = cohort
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    (tmp_path / "link").symlink_to(images)
    out = tmp_path / "out"
    for arguments, message in [
        ((tmp_path / "none", labels, out), "a folder of DICOM files must be there, got nothing"),
        ((labels, labels, out), "a folder of DICOM files must be there, got a file"),
        ((tmp_path / "empty", labels, out), "a folder with DICOM files must be given"),
        ((images, tmp_path / "none.csv", out), "a label table must be there"),
        ((images, labels, images / "out"), "--out must lie outside"),
        ((images, labels, tmp_path / "link" / "out"), "--out must lie outside"),
        ((images, labels, labels), "--out must be a folder"),
        ((images, labels, tmp_path / "taken"), "got 'thesis.txt' in it; choose another folder"),
    ]:
        with pytest.raises(ConfigError, match=message):
            prepare(*arguments, size=16)
    for options, message in [({"size": 0}, "--size"), ({"windows": "brian"}, "did you mean 'brain'"),
                             ({"limit_rejected": 1.5}, "--limit-rejected")]:  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            prepare(images, labels, out, **options)  # type: ignore[arg-type]
    assert not out.exists()
    assert snapshot(tmp_path / "taken") == {"thesis.txt": b"mine"}


def test_from_inside_the_folder_of_the_images(cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cohort[0])
    assert len(prepare(".", "../labels.csv", "../out", size=16)) == PATIENTS * SLICES


def test_labels_that_match_nothing_after_all_name_an_example_and_can_be_corrected(
    tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = cohort[1].read_text()
    cohort[1].write_text("\n".join(["ID,Label", *label_rows("other", True)]))
    monkeypatch.setattr("ich_ray.data.prepare.label_match._FEWEST", 2)
    monkeypatch.setattr("ich_ray.data.prepare.label_match._MOST", 2)
    with pytest.raises(ConfigError, match="got none in common: the table has 'other', the files 'ID_000'"):
        prepare(*cohort, tmp_path / "out", size=16)
    assert not (tmp_path / "out" / "dataset.json").exists()
    cohort[1].write_text(good)
    monkeypatch.setattr("ich_ray.data.prepare.run._mapped", lambda *_: pytest.fail("the blocks were there"))
    check_complete(prepare(*cohort, tmp_path / "out", size=16))


@pytest.mark.parametrize(("rule", "prefix"), [("path", "P/"), ("stem", "")])
def test_a_table_that_names_files_makes_the_same_dataset(
    tmp_path: Path, cohort: tuple[Path, Path], rule: str, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    by_uid = prepare(*cohort, tmp_path / "by-uid", size=16)
    (tmp_path / "named" / "P").mkdir(parents=True)
    rows = ["id,any,subdural"]
    for number, path in enumerate(sorted(cohort[0].iterdir())):
        shutil.copy(path, tmp_path / "named" / "P" / f"{CANARY}{number:02d}.dcm")
        value = int(path.stem in {f"ID_{patient:02d}1" for patient in range(0, PATIENTS, 2)})
        rows.append(f"{prefix}{CANARY}{number:02d}{'.dcm' if prefix else ''},{value},{value}")
    rows.append(f"{prefix}{CANARY}-away.dcm,0,0")
    (tmp_path / "names.csv").write_text("\n".join(rows))
    progress.show()
    found = prepare(tmp_path / "named", tmp_path / "names.csv", tmp_path / "out", size=16)
    progress.show(False)
    check_complete(found)
    values = [dataset.slices.select(["any", "subdural", "role", "fold"]).to_pydict() for dataset in (by_uid, found)]
    assert values[0] == values[1]
    assert (by_uid.manifest.matched_by, found.manifest.matched_by) == ("uid", rule)
    assert "24 of 24 labels found their file by SOPInstanceUID" in by_uid.manifest.notes
    assert any(note.startswith("24 of 25 labels found their file by ") for note in found.manifest.notes)
    words = {"path": "path below the folder", "stem": "file name without its suffix"}
    assert f"labels: a row a slice, by its {words[rule]}" in capsys.readouterr().err
    assert refusals(found)[f"{prefix}{CANARY}-away.dcm"] == ("file_missing", "a label without a file")
    assert not [name for name, data in snapshot(tmp_path / "out").items() if CANARY.encode() in data]
    for path in (found.files.slices, found.files.rejected):
        assert CANARY not in str(pq.read_table(str(path)).to_pylist())


def test_columns_of_a_hospital_are_mapped_and_its_readers_counted(
    tmp_path: Path, cohort: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["dicom,Dr X,Dr Y,Dr Z,healthy"]
    for path in sorted(cohort[0].iterdir()):
        bleeds = path.stem in {f"ID_{patient:02d}1" for patient in range(0, PATIENTS, 2)}
        rows.append(f"{path.name},{int(bleeds)},{int(bleeds)},{int(path.stem < 'ID_02')},{'No' if bleeds else 'Yes'}")
    (tmp_path / "reads.csv").write_text("\n".join(rows))
    (tmp_path / "columns.yaml").write_text("id: dicom\nsubdural: not healthy\n")
    arguments = ["prepare", str(cohort[0]), "--labels", str(tmp_path / "reads.csv"), "--out", str(tmp_path / "out"),
                 "--size", "16", "--columns", str(tmp_path / "columns.yaml")]  # fmt: skip
    assert cli.call([*arguments, "--column", "any=Dr X, Dr Y, Dr Z"]) == 0
    said = "any: 3 readers of 24 rows: pairs agree 0.778, Fleiss' kappa 0.357; 0 ties are unknown"
    assert said in capsys.readouterr().out
    manifest = PreparedDataset.open(tmp_path / "out").manifest
    assert said in manifest.notes
    assert (manifest.labels["any"], manifest.labels["subdural"]) == (PATIENTS // 2, PATIENTS // 2)
    assert (manifest.agreement[0].readers, manifest.agreement[0].rows) == (3, 24)
    assert not [name for name, data in snapshot(tmp_path / "out").items() if b"Dr " in data]
    assert cli.call([*arguments, "--column", "any=Dr X, Dr Y, Dr Z"]) == 0
    assert cli.call([*arguments, "--column", "any=Dr X"]) == 2
    assert "got a difference in columns; choose another folder" in capsys.readouterr().err


def test_bad_labels_and_too_few_patients(tmp_path: Path) -> None:
    labels = write_cohort(tmp_path / "images", patients=6)
    with pytest.raises(RoleError, match="needs a patient with a positive slice, got 3 for 4 roles"):
        prepare(tmp_path / "images", labels, tmp_path / "out", size=16)
    for path in (tmp_path / "images").iterdir():
        path.write_text("no")
    with pytest.raises(RoleError, match=r"got 0 for 4 roles.*; 12 of 12 files were not accepted \(not_dicom 12\)"):
        prepare(tmp_path / "images", labels, tmp_path / "unread", size=16)
    add_rows(labels, "ID_000_any,2")
    with pytest.raises(LabelError, match="row 74: Label must be 0 or 1"):
        prepare(tmp_path / "images", labels, tmp_path / "other", size=16)


def test_the_limit_of_rejected_files(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    (cohort[0] / "x.dcm").write_text("no")
    (cohort[0] / "1.2.840.5").write_text("no")  # not without a file, though no reader gets as far as its id
    add_rows(cohort[1], *label_rows("1.2.840.5", False))
    for _ in range(2):  # a rerun says the same
        with pytest.raises(
            RejectionLimitError,
            match=r"5.0% .* got 2 of 26 \(not_dicom 2\); name them with `ich-ray identify .*",
        ):
            prepare(*cohort, tmp_path / "out", size=16)
    dataset = prepare(*cohort, tmp_path / "out", size=16, limit_rejected=0.1)
    assert dataset.manifest.accepted == PATIENTS * SLICES
    assert dataset.manifest.reasons == {"not_dicom": 2}
    check_complete(dataset)


def wide_table(path: Path, roles: dict[int, str]) -> Path:
    lines = ["slice_id,any,role"]
    for patient, role in roles.items():
        lines += [f"ID_{patient:02d}{n},{int(patient % 2 == 0 and n == SLICES - 1)},{role}" for n in range(SLICES)]
    path.write_text("\n".join(lines))
    return path


def test_a_role_column_is_honored(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    roles = {patient: ROLES[patient // 2 % 4] for patient in range(PATIENTS)}
    dataset = prepare(cohort[0], wide_table(tmp_path / "wide.csv", roles), tmp_path / "out", size=16)
    for uid, role in zip(uids(dataset), dataset.column("role"), strict=True):
        assert role == roles[int(uid[3:5])]
    assert dataset.slices["epidural"].null_count == len(dataset)
    text = (tmp_path / "wide.csv").read_text().replace("ID_001,1,train", "ID_001,1,test")
    (tmp_path / "wide.csv").write_text(text)
    with pytest.raises(RoleError, match=r"a patient must be in one role, got 1 in two, such as p[0-9a-f]{16}"):
        prepare(cohort[0], tmp_path / "wide.csv", tmp_path / "torn", size=16)


def test_equal_pixels_under_two_patients(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    write(cohort[0] / "twin.dcm", "ID_twin", 50, hu=read_slice(cohort[0] / "ID_000.dcm").hu())
    roles = {patient: ROLES[patient // 2 % 4] for patient in range(PATIENTS)}
    table = wide_table(tmp_path / "wide.csv", roles)
    add_rows(table, "", "ID_twin,0,train")
    dataset = prepare(cohort[0], table, tmp_path / "out", size=16)
    flags = zip(uids(dataset), dataset.column("flags"), strict=True)
    assert [uid for uid, flag in flags if "pixels_shared" in flag] == ["ID_000", "ID_twin"]
    table.write_text(table.read_text().replace("ID_twin,0,train", "ID_twin,0,test"))
    with pytest.raises(RoleError, match=r"equal pixels must not stand in two roles, .* in test and train"):
        prepare(cohort[0], table, tmp_path / "leak", size=16)


def test_a_file_that_goes_while_repeats_are_compared(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    shutil.copy(cohort[0] / "ID_000.dcm", cohort[0] / "copy.dcm")
    job = _job(cohort[0], tmp_path)
    assert decode_chunk.words_digest(job, "copy.dcm") == decode_chunk.words_digest(job, "ID_000.dcm")
    (cohort[0] / "copy.dcm").unlink()
    with pytest.raises(IchRayError, match=r"copy.dcm: must stay as it was .*, got io_error: No such file.*; run again"):
        decode_chunk.words_digest(job, "copy.dcm")


def test_windows_that_show_nothing_make_no_equal_pixels(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    dataset = prepare(*cohort, tmp_path / "out", size=16, windows="far=3000/100")
    assert set(dataset.column("flags")) == {"blank,not_512"}
    assert f"{PATIENTS * SLICES} accepted slices are flagged blank" in dataset.manifest.notes


def test_a_split_by_slice_leaks_and_says_so(
    tmp_path: Path, cohort: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write(cohort[0] / "twin.dcm", "ID_twin", 50, hu=read_slice(cohort[0] / "ID_000.dcm").hu())
    add_rows(cohort[1], *label_rows("ID_twin", False))
    arguments = ["prepare", *map(str, cohort), "--size", "16", "--out", str(tmp_path / "leaky")]
    arguments.insert(2, "--labels")
    progress.show()
    assert cli.call([*arguments, "--split", "slice"]) == 0
    progress.show(False)
    captured = capsys.readouterr()
    assert LEAK in captured.err
    assert LEAK in captured.out
    leaky = PreparedDataset.open(tmp_path / "leaky")
    assert leaky.manifest.split == "slice"
    assert leaky.manifest.notes[0] == LEAK
    roles = set(zip(leaky.column("patient"), leaky.column("role"), strict=True))
    assert len(roles) > len(set(leaky.column("patient")))
    assert all(counts.positives for counts in leaky.manifest.roles.values())
    check = audit_dataset(tmp_path / "leaky")
    assert check.state == "ok"
    assert check.found.endswith(LEAK)
    shutil.copytree(tmp_path / "leaky", tmp_path / "denied")
    denied = leaky.manifest.model_copy(update={"split": "patient"})
    (tmp_path / "denied" / "dataset.json").write_text(denied.model_dump_json())
    assert "a patient must be in one role" in audit_dataset(tmp_path / "denied").breaches[0]
    with pytest.raises(ConfigError, match="got a difference in split"):
        prepare(*cohort, tmp_path / "leaky", size=16)
    honest = prepare(*cohort, tmp_path / "honest", size=16)
    assert honest.manifest.leak == ""
    assert honest.manifest.fingerprint != leaky.manifest.fingerprint
    table = wide_table(tmp_path / "wide.csv", {patient: ROLES[patient // 2 % 4] for patient in range(PATIENTS)})
    with pytest.raises(RoleError, match="--split slice: it draws the roles, but the label table has its own"):
        prepare(cohort[0], table, tmp_path / "both", size=16, split="slice")


@pytest.mark.parametrize("step", ["slices", "rejected", "manifest", "kept"])
def test_killed_between_two_steps(
    tmp_path: Path, cohort: tuple[Path, Path], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(*cohort)
    name = {"slices": "slices.parquet", "rejected": "rejected.parquet", "manifest": "dataset.json",
            "kept": "00001-kept.arrow"}[step]  # fmt: skip
    undisturbed = prepare(*cohort, tmp_path / "undisturbed", size=16, limit_rejected=1)

    def dying(write: object) -> object:
        def guarded(path: Path, data: object) -> object:
            if path.name == name:
                raise KeyboardInterrupt
            return write(path, data)  # type: ignore[operator]

        return guarded

    with monkeypatch.context() as patch:
        for function in ("write_bytes", "write_json", "write_table"):
            patch.setattr(write_module, function, dying(getattr(write_module, function)))
        with pytest.raises(KeyboardInterrupt):
            prepare(*cohort, tmp_path / "out", size=16, limit_rejected=1)
    assert not (tmp_path / "out" / "dataset.json").exists()
    with pytest.raises(ConfigError, match=r"holds dataset\.json, got none"):
        PreparedDataset.open(tmp_path / "out")
    resumed = prepare(*cohort, tmp_path / "out", size=16, limit_rejected=1)
    check_complete(resumed)
    assert resumed.manifest.fingerprint == undisturbed.manifest.fingerprint


def test_only_missing_chunks_are_done_again(
    tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("ich_ray.data.prepare.run.finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(*cohort, tmp_path / "out", size=16)
    blocks = tmp_path / "out" / "blocks"
    assert sorted(path.name for path in blocks.iterdir()) == ["00000.arrow", "00000.rows", "00001.arrow", "00001.rows"]
    (blocks / "00001.arrow").write_bytes(b"torn")
    stamp = (blocks / "00000.arrow").stat().st_mtime_ns
    check_complete(prepare(*cohort, tmp_path / "out", size=16))
    assert (blocks / "00000.arrow").stat().st_mtime_ns == stamp


def test_chunks_of_other_files_are_done_again(
    tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("ich_ray.data.prepare.run.finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr("ich_ray.data.prepare.decode_chunk._BLOCK_BYTES", 10 * 3 * 16**2)
        with pytest.raises(KeyboardInterrupt):
            prepare(*cohort, tmp_path / "out", size=16)
    assert len(list((tmp_path / "out" / "blocks").glob("*.arrow"))) == 3
    check_complete(prepare(*cohort, tmp_path / "out", size=16))


def test_a_disk_that_cannot_be_written_is_one_line(
    tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "blocks").write_text("in the way")
    (out / "prepare.json").write_text("{}")
    with pytest.raises(ConfigError, match="got a difference in"):
        prepare(*cohort, out, size=16)

    def full(path: Path, data: bytes, private: bool = False) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decode_chunk, "write_bytes", full)
    with pytest.raises(IchRayError, match="a block must be written, got No space left on device"):
        decode_chunk.run_chunk(_job(cohort[0], tmp_path), 0, ["ID_000.dcm"])
    monkeypatch.setattr("ich_ray.data.prepare.run.write_json", full)
    with pytest.raises(IchRayError, match=r"/new: the dataset must be written, got No space left on device; free sp"):
        prepare(*cohort, tmp_path / "new", size=16)


def _job(images: Path, folder: Path) -> decode_chunk.ChunkJob:
    from ich_ray.data.prepare.pseudonyms import Pseudonyms
    from ich_ray.storage import locate

    return decode_chunk.ChunkJob(locate(images), locate(folder / "blocks"), WINDOWS, 16, Pseudonyms(b"k" * 32), "plan")


def test_errors_of_a_task_reach_the_caller_without_a_traceback(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    from ich_ray.data.prepare.run import _mapped
    from ich_ray.data.prepare.thin_series import ThinSeries

    (tmp_path / "blocks").write_text("in the way")
    (tmp_path / "prepare.json").touch()  # which every machine is asked for
    with pytest.raises(IchRayError, match="a block must be written, got") as caught:
        list(_mapped(_job(cohort[0], tmp_path), {0: ("ID_000.dcm",)}, None, ThinSeries(())))
    assert "Traceback" not in str(caught.value)


def test_the_real_slices(tmp_path: Path) -> None:
    folder = real_data() / "rsna-mini"
    dataset = prepare(folder / "stage_2_train", folder / "stage_2_train.csv", tmp_path / "out")
    check_complete(dataset)
    assert (dataset.manifest.listed, dataset.manifest.accepted) == (277, 277)
    assert dataset.manifest.labels["any"] == 63
    flags = dict(zip(uids(dataset), dataset.column("flags"), strict=True))
    assert flags["ID_0a2e1269e"] == "extreme_hu"
    assert flags["ID_0006d3e17"] == "near_empty"
    assert all(counts.positives for counts in dataset.manifest.roles.values())
    assert len(set(dataset.column("patient"))) == 251


def test_the_labels_of_other_files_are_refused_before_decoding(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    cohort[1].write_text("\n".join(["ID,Label", *(row for n in range(9) for row in label_rows(f"other{n}", n > 4))]))
    with pytest.raises(ConfigError, match="got none in common: the table has 'other0', the files 'ID_000'"):
        prepare(*cohort, tmp_path / "out", size=16)
    assert not (tmp_path / "out").exists()
