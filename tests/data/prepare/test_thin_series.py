"""Series finer than the slabs that were asked for are averaged, wherever their files lie; others stay as they are."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from ich_ray.ct.windowing import DEFAULT_WINDOWS, parse_windows
from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.dataset_audit import audit_dataset
from ich_ray.data.prepare.chunk_slices import SlabMembers, packed, unpacked
from ich_ray.data.prepare.decode_chunk import ChunkJob, run_chunk
from ich_ray.data.prepare.label_table import read_labels
from ich_ray.data.prepare.list_files import list_files
from ich_ray.data.prepare.pseudonyms import Pseudonyms
from ich_ray.data.prepare.run import prepare
from ich_ray.data.prepare.thin_series import read_places, thin_series
from ich_ray.data.prepare.write import Work, finish
from ich_ray.errors import ConfigError
from ich_ray.storage import DatasetFiles, locate
from tests.ct.enhanced import enhanced
from tests.ct.files import head, make
from tests.data.folders import PATIENTS, add_rows, label_rows, uids, write, write_cohort

WINDOWS, SIZE = parse_windows(DEFAULT_WINDOWS), 16
THIN = 13


def image(number: int) -> NDArray[np.int16]:
    return head(32, 32, seed=100 + number) + 3 * number


def name(number: int) -> str:
    return f"ID_thin{number:02d}"


def write_thin(folder: Path, table: Path, names: Sequence[str] = (), **tags: Any) -> None:
    """A series of 1 mm of the first patient, beside that of 5 mm which each has; names of files may say nothing."""
    for number in range(THIN):
        path = folder / (names[number] if names else f"{name(number)}.dcm")
        write(path, name(number), 0, hu=image(number), SeriesInstanceUID="se_thin", SliceThickness="1.25",
              ImagePositionPatient=[-125, -100, 40 - number], **tags)  # fmt: skip
        add_rows(table, *label_rows(name(number), positive=False))


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.setenv("ICH_RAY_KEY_FILE", str(tmp_path / "config" / "key"))
    monkeypatch.setattr("ich_ray.data.prepare.write.write_sheets", lambda _: None)  # most of the time of a test
    return tmp_path / "dicom", write_cohort(tmp_path / "dicom")


def prepared(cohort: tuple[Path, Path], out: Path, slab_mm: float = 5, chunk: int = 1000) -> PreparedDataset:
    """What `prepare` makes, in this process."""
    images, labels = map(locate, cohort)
    files, listing = DatasetFiles(locate(out)), list_files(images, skip=[labels])
    job = ChunkJob(images, files.blocks, WINDOWS, SIZE, Pseudonyms.load(), "plan", slab_mm=slab_mm)
    thin = thin_series(read_places(job, listing.files), listing.files, slab_mm)
    assert sorted(thin.files) == sorted(listing.files)
    parts = [thin.files[start : start + chunk] for start in range(0, len(thin.files), chunk)]
    rows = [run_chunk(job, number, part, unpacked(packed(thin.of(part)))) for number, part in enumerate(parts)]
    table = pa.concat_tables([each.replace_schema_metadata() for each in rows])
    return finish(Work(files, job, listing, read_labels(labels), "0" * 32, 0), table)


def windowed(hu: NDArray[np.float64]) -> NDArray[np.float64]:
    """HU seen through the windows and averaged over areas, before they are rounded."""
    found = []
    for window in WINDOWS:
        low = window.center_hu - window.width_hu / 2
        shown = 255 * np.clip((hu - low) / window.width_hu, 0, 1)
        found.append(shown.reshape(SIZE, 32 // SIZE, SIZE, 32 // SIZE).mean((1, 3)))
    return np.stack(found)


def of_slices(dataset: PreparedDataset) -> dict[str, int]:
    """The row of each slice by its SOPInstanceUID."""
    return {uid: row for row, uid in enumerate(uids(dataset))}


def test_each_slice_of_a_thin_series_is_the_mean_around_it_and_others_are_as_without_slabs(
    tmp_path: Path, cohort: tuple[Path, Path]
) -> None:
    write_thin(*cohort)
    plain, found = prepared(cohort, tmp_path / "plain", 0), prepared(cohort, tmp_path / "out")
    rows, before = of_slices(found), of_slices(plain)
    pixels, unchanged = found.gather(np.arange(len(found))), plain.gather(np.arange(len(plain)))
    for number in range(THIN):
        inside = [image(other) for other in range(max(number - 2, 0), min(number + 3, THIN))]
        assert np.abs(pixels[rows[name(number)]] - windowed(np.mean(inside, 0))).max() <= 0.5 + 1e-4
    others = [uid for uid in rows if uid not in {name(number) for number in range(THIN)}]
    assert len(others) == 2 * PATIENTS
    assert np.array_equal(pixels[[rows[uid] for uid in others]], unchanged[[before[uid] for uid in others]])
    thin = np.array([uid not in others for uid in rows])
    assert found.column("slab_mm").tolist() == np.where(thin, 5.0, 0.0).tolist()
    assert ["slab" in flags.split(",") for flags in found.column("flags")] == thin.tolist()
    assert "slab_mm" not in plain.slices.column_names
    assert (found.manifest.slab_mm, plain.manifest.slab_mm) == (5, 0)
    assert found.manifest.fingerprint != plain.manifest.fingerprint
    assert f"{THIN} accepted slices are flagged slab" in found.manifest.notes
    assert "; thin series averaged to slabs of 5 mm;" in audit_dataset(found.files.root).found
    assert audit_dataset(found.files.root).state == audit_dataset(plain.files.root).state == "ok"


def test_neighbors_of_slabs_lie_at_their_distance_and_of_others_at_the_next_place(
    tmp_path: Path, cohort: tuple[Path, Path]
) -> None:
    write_thin(*cohort)
    dataset = prepared(cohort, tmp_path / "out")
    rows = of_slices(dataset)
    beside = dataset.neighbors
    # The higher the number, the lower the place.
    assert beside[rows[name(6)]].tolist() == [rows[name(number)] for number in (6, 11, 6, 1, 6)]
    assert beside[rows["ID_010"]].tolist() == [rows["ID_010"]] * 3 + [rows["ID_011"], rows["ID_010"]]


def test_the_order_of_files_and_the_size_of_chunks_change_nothing(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    write_thin(*cohort)
    first = prepared(cohort, tmp_path / "first")
    for number in range(THIN):
        (cohort[0] / f"{name(number)}.dcm").unlink()
    names = [f"{number:02d}" for number in range(THIN)]
    random.Random(0).shuffle(names)
    (table := tmp_path / "other.csv").write_text("")
    write_thin(cohort[0], table, names)
    assert prepared(cohort, tmp_path / "second", chunk=3).manifest.fingerprint == first.manifest.fingerprint


def test_a_slice_without_pixels_is_rejected_and_the_slabs_beside_it_do_without(
    tmp_path: Path, cohort: tuple[Path, Path]
) -> None:
    write_thin(*cohort)
    broken = cohort[0] / f"{name(5)}.dcm"
    broken.write_bytes(broken.read_bytes()[:-100])
    dataset = prepared(cohort, tmp_path / "out")
    rows = of_slices(dataset)
    assert dataset.manifest.reasons == {"pixel_short": 1}
    expected = windowed(np.mean([image(number) for number in (4, 6, 7, 8)], 0))
    (pixels,) = dataset.gather(np.array([rows[name(6)]]))
    assert np.abs(pixels - expected).max() <= 0.5 + 1e-4


def test_a_slice_of_another_matrix_stays_as_it_is_and_is_flagged(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    write_thin(*cohort)
    write(cohort[0] / f"{name(5)}.dcm", name(5), 0, hu=head(64, 64, seed=5), SeriesInstanceUID="se_thin",
          ImagePositionPatient=[-125, -100, 35])  # fmt: skip
    plain, found = prepared(cohort, tmp_path / "plain", 0), prepared(cohort, tmp_path / "out")
    row = of_slices(found)[name(5)]
    assert "no_slab" in found.column("flags")[row].split(",")
    assert np.array_equal(found.gather(np.array([row])), plain.gather(np.array([of_slices(plain)[name(5)]])))
    assert audit_dataset(found.files.root).state == "ok"


def test_frames_of_one_file_make_the_slabs_that_their_classic_files_make(
    tmp_path: Path, cohort: tuple[Path, Path]
) -> None:
    def series(number: int) -> bytes:
        return make(image(number), SOPInstanceUID=f"1.2.3.{number + 1}", PatientID="CANARY-0", StudyInstanceUID="1.2.4",
                    SeriesInstanceUID="1.2.5", ImagePositionPatient=[-125, -100, 40 - number])  # fmt: skip

    for number in range(THIN):
        (cohort[0] / f"thin{number}").write_bytes(series(number))
        add_rows(cohort[1], *label_rows(f"1.2.3.{number + 1}", positive=False))
    classic = prepared(cohort, tmp_path / "classic")
    for number in range(THIN):
        (cohort[0] / f"thin{number}").unlink()
    (cohort[0] / "thin").write_bytes(enhanced([series(number) for number in range(THIN)], legacy=True))
    frames = prepared(cohort, tmp_path / "frames", chunk=1)
    assert frames.manifest.fingerprint == classic.manifest.fingerprint
    assert f"{THIN} accepted slices are flagged slab" in frames.manifest.notes


def test_slabs_travel_as_text() -> None:
    slabs: SlabMembers = {
        ("a.dcm", 0): [(("a.dcm", 0), 0.75), (("b#1.dcm", 2), 0.25)],
        ("b#1.dcm", 2): [(("b#1.dcm", 2), 1.0)],
    }
    assert unpacked(packed(slabs)) == slabs
    assert unpacked(packed({})) == {}


def test_an_audit_finds_slabs_that_are_not_as_told(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    write_thin(*cohort)
    dataset = prepared(cohort, tmp_path / "out")
    held = dataset.column("slab_mm").copy()
    rows = np.flatnonzero(held)
    held[rows[0]], held[rows[1]] = 4, 0
    table = dataset.slices.drop_columns("slab_mm").append_column("slab_mm", pa.array(held))
    pq.write_table(table, str(dataset.files.slices))
    found = audit_dataset(dataset.files.root)
    assert "slices.parquet: slabs must be of 5 mm, got 1 of another thickness" in found.breaches
    assert "slices.parquet: slices of thin series must be flagged slab or no_slab, got 1 that differ" in found.breaches


def test_a_thickness_that_cannot_be_asked(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    for thickness_mm in (21, -1, float("nan")):
        with pytest.raises(ConfigError, match="--slab-mm: 0 <= thickness in mm <= 20 must hold, got"):
            prepare(*cohort, tmp_path / "out", size=16, slab_mm=thickness_mm)
