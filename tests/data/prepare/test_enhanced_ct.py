"""Folders of enhanced CT: a row and an image for each frame, whatever file it is in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pydicom.dataset import Dataset

from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.dataset_audit import audit_dataset
from ich_ray.data.identities import read_identities
from ich_ray.data.prepare import decode_chunk
from ich_ray.data.prepare.run import prepare
from ich_ray.errors import ConfigError, RejectionLimitError
from ich_ray.vocabulary import ROLES
from tests.ct.enhanced import enhanced, frame_changed
from tests.ct.files import head, make
from tests.data.folders import paths, refusals, uids

PATIENTS, FRAMES = 16, 3


@pytest.fixture(autouse=True)
def _in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICH_RAY_KEY_FILE", str(tmp_path / "config" / "key"))
    monkeypatch.setattr("ich_ray.data.prepare.run._mapped", _mapped)


def _mapped(job: decode_chunk.ChunkJob, chunks: dict[int, tuple[str, ...]], *_: object) -> Iterator[pa.Table]:
    return (decode_chunk.run_chunk(job, number, files).replace_schema_metadata() for number, files in chunks.items())


def uid(patient: int) -> str:
    return f"1.2.3.{patient}"


def slices(patient: int) -> list[bytes]:
    return [
        make(
            head(32, 32, seed=patient * FRAMES + number),
            SOPInstanceUID=f"{uid(patient)}.{number + 1}",
            PatientID=f"P{patient}",
            StudyInstanceUID=f"1.2.4.{patient}",
            SeriesInstanceUID=f"1.2.5.{patient}",
            ImagePositionPatient=[0, 0, 5.0 * number],
        )
        for number in range(FRAMES)
    ]


def series(patient: int, edit: Callable[[Dataset], None] | None = None, legacy: bool = False) -> bytes:
    def named(file: Dataset) -> None:
        file.SOPInstanceUID = uid(patient)
        if edit:
            edit(file)

    return enhanced(slices(patient), edit=named, legacy=legacy)


def label_table(folder: Path, separator: str = "#") -> Path:
    rows = [
        f"{uid(patient)}{separator}{frame},{int(patient % 2 == 1 and frame == 2)},{ROLES[patient // 2 % 4]}"
        for patient in range(PATIENTS)
        for frame in range(1, FRAMES + 1)
    ]
    table = folder / "labels.csv"
    table.write_text("\n".join(["slice_id,any,role", *rows]))
    return table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for patient in range(PATIENTS):
        (tmp_path / "images" / f"{patient:02d}.dcm").write_bytes(series(patient))
    return tmp_path


def images(dataset: PreparedDataset) -> dict[str, bytes]:
    pixels = dataset.gather(np.arange(len(dataset)))
    return dict(zip(uids(dataset), (image.tobytes() for image in pixels), strict=True))


def test_frames_make_the_dataset_that_their_classic_files_make(folder: Path) -> None:
    found = prepare(folder / "images", label_table(folder), folder / "out", size=16)
    for patient in range(PATIENTS):
        (folder / "images" / f"{patient:02d}.dcm").unlink()
        for number, data in enumerate(slices(patient)):
            (folder / "images" / f"{patient:02d}.{number + 1}.dcm").write_bytes(data)
    classic = prepare(folder / "images", label_table(folder, "."), folder / "classic", size=16)
    assert {name.replace("#", "."): pixels for name, pixels in images(found).items()} == images(classic)
    columns = ["patient", "study", "series", "position_mm", "role", "any", "flags", "representation"]
    assert found.slices.select(columns).equals(classic.slices.select(columns))
    assert audit_dataset(found.files.root).state == "ok"
    assert (found.manifest.listed, found.manifest.accepted) == (PATIENTS * FRAMES, PATIENTS * FRAMES)
    assert "16 files hold 48 slices: frames count as files" in found.manifest.notes
    assert not [note for note in classic.manifest.notes if "frames" in note]


def test_converted_frames_are_the_slices_that_they_were(folder: Path) -> None:
    for patient in range(PATIENTS):
        (folder / "images" / f"{patient:02d}.dcm").write_bytes(series(patient, legacy=True))
    (folder / "images" / "classic.dcm").write_bytes(slices(2)[1])
    dataset = prepare(folder / "images", label_table(folder, "."), folder / "out", size=16)
    assert dataset.manifest.accepted == PATIENTS * FRAMES
    assert refusals(dataset) == {"classic.dcm": ("duplicate", "")}


def test_each_row_of_a_frame_names_it(folder: Path) -> None:
    flat = frame_changed(2, "PixelValueTransformationSequence", RescaleSlope=None)
    (folder / "images" / "01.dcm").write_bytes(series(1, flat))
    (folder / "images" / "02.dcm").write_bytes(series(2, lambda file: setattr(file, "NumberOfFrames", 4)))
    (folder / "images" / "20.dcm").write_bytes(make(NumberOfFrames=3, SOPInstanceUID="1.2.3.20"))
    dataset = prepare(folder / "images", label_table(folder), folder / "out", size=16, limit_rejected=1)
    assert {path: reason for path, (reason, _) in refusals(dataset).items()} == {
        "01.dcm#2": "rescale_missing",
        "02.dcm": "frames_invalid",
        "20.dcm": "multiframe",
        **{f"1.2.3.{name}": "file_missing" for name in ("1#2", "2#1", "2#2", "2#3")},
    }
    assert paths(dataset)[:6] == ["00.dcm#1", "00.dcm#2", "00.dcm#3", "01.dcm#1", "01.dcm#3", "03.dcm#1"]
    manifest = dataset.manifest
    assert (manifest.listed, manifest.accepted, manifest.rejected) == (47, 44, 3)
    assert audit_dataset(dataset.files.root).state == "ok"


def test_a_file_called_like_a_frame_is_another_row(folder: Path) -> None:
    (folder / "images" / "00.dcm#2").write_bytes(slices(0)[1])
    dataset = prepare(folder / "images", label_table(folder), folder / "out", size=16)
    same = [row for row in read_identities(dataset) if row.path == "00.dcm#2"]
    assert {(row.uid, row.reason) for row in same} == {("1.2.3.0#2", ""), ("1.2.3.0.2", "label_missing")}
    assert len({row.file for row in same}) == 2
    assert audit_dataset(dataset.files.root).state == "ok"


def test_a_series_in_two_files_is_compared_frame_by_frame(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "images" / "03-again.dcm").write_bytes(series(3))
    other = series(5, frame_changed(3, "PixelValueTransformationSequence", RescaleIntercept=-1000))
    (folder / "images" / "05-other.dcm").write_bytes(other)
    opened: list[str] = []
    plain = decode_chunk.ChunkJob.open
    monkeypatch.setattr(decode_chunk.ChunkJob, "open", lambda job, file: opened.append(file) or plain(job, file))
    dataset = prepare(folder / "images", label_table(folder), folder / "out", size=16, limit_rejected=1)
    twice = {path: reason for path, (reason, _) in refusals(dataset).items()}
    assert twice == {
        **{f"03.dcm#{frame}": "duplicate" for frame in (1, 2, 3)},
        **{f"05.dcm#{frame}": "duplicate" for frame in (1, 2)},
        "05-other.dcm#3": "uid_conflict",
        "05.dcm#3": "uid_conflict",
    }
    assert max(map(opened.count, opened)) == 2  # once to decode, once to compare


def test_a_file_of_more_frames_than_a_block_may_have(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepare(folder / "images", label_table(folder), folder / "whole", size=16)
    monkeypatch.setattr(decode_chunk, "_BLOCK_IMAGES", 2)
    flat = frame_changed(2, "PixelValueTransformationSequence", RescaleSlope=None)
    with monkeypatch.context() as patch:
        patch.setattr("ich_ray.data.prepare.run.finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(folder / "images", label_table(folder), folder / "out", size=16)
    blocks = folder / "out" / "blocks"
    names = [f"0000{chunk}{part}.arrow" for chunk in range(8) for part in ("-1", "-2", "")]
    assert sorted(path.name for path in blocks.glob("*.arrow")) == sorted(names)
    stamps = {path.name: path.stat().st_mtime_ns for path in blocks.glob("*.arrow")}
    (blocks / "00001-2.arrow").write_bytes(b"torn")
    dataset = prepare(folder / "images", label_table(folder), folder / "out", size=16)
    assert images(dataset) == images(whole)
    assert dataset.manifest.fingerprint == whole.manifest.fingerprint
    assert [block.rows for block in dataset.manifest.blocks] == [2] * 24
    assert audit_dataset(dataset.files.root).state == "ok"
    again = {path.name for path in blocks.iterdir() if path.stat().st_mtime_ns != stamps[path.name]}
    assert again == {"00001.arrow", "00001-1.arrow", "00001-2.arrow"}
    (folder / "images" / "01.dcm").write_bytes(series(1, flat))
    fewer = prepare(folder / "images", label_table(folder), folder / "fewer", size=16, limit_rejected=1)
    assert images(fewer) == {name: pixels for name, pixels in images(whole).items() if name != "1.2.3.1#2"}
    assert audit_dataset(fewer.files.root).state == "ok"


def test_labels_of_other_files_are_refused_at_the_start(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"the table has '1\.2\.3\.0\.1', the files '1\.2\.3\.0#1'"):
        prepare(folder / "images", label_table(folder, "."), folder / "out", size=16)


def test_too_many_rejected_frames_are_over_the_limit(folder: Path) -> None:
    flat = frame_changed(2, "PixelValueTransformationSequence", RescaleSlope=None)
    (folder / "images" / "01.dcm").write_bytes(series(1, flat))
    with pytest.raises(RejectionLimitError, match="got 1 of 48 "):
        prepare(folder / "images", label_table(folder), folder / "out", size=16, limit_rejected=0.02)
