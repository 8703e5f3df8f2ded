"""What is no axial slice is no row of a dataset, by its own header or by its series; several series are told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ich_ray.ct.windowing import DEFAULT_WINDOWS, parse_windows
from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.dataset_audit import audit_dataset
from ich_ray.data.prepare.decode_chunk import ChunkJob, run_chunk
from ich_ray.data.prepare.label_table import read_labels
from ich_ray.data.prepare.list_files import list_files
from ich_ray.data.prepare.pseudonyms import Pseudonyms
from ich_ray.data.prepare.write import Work, finish
from ich_ray.storage import DatasetFiles, locate
from tests.ct.files import head
from tests.data.folders import PATIENTS, SLICES, label_rows, refusals, write, write_cohort

CORONAL, SAGITTAL = [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]
REFORMATS = {
    "coronal": {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"], "ImageOrientationPatient": CORONAL},
    "sagittal": {"ImageType": ["DERIVED", "PRIMARY", "MPR"], "ImageOrientationPatient": SAGITTAL},
    "mip": {"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "MIP"]},
}


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.setenv("ICH_RAY_KEY_FILE", str(tmp_path / "config" / "key"))
    return tmp_path / "dicom", write_cohort(tmp_path / "dicom")


def prepared(cohort: tuple[Path, Path], out: Path) -> PreparedDataset:
    """What `prepare` makes, in this process."""
    images, labels = map(locate, cohort)
    files, listing = DatasetFiles(locate(out)), list_files(images, skip=[labels])
    job = ChunkJob(images, files.blocks, parse_windows(DEFAULT_WINDOWS), 16, Pseudonyms.load(), "plan")
    rows = run_chunk(job, 0, listing.files).replace_schema_metadata()
    return finish(Work(files, job, listing, read_labels(labels), "0" * 32, 0), rows)


def label(table: Path, *rows: str) -> None:
    table.write_text(table.read_text() + "".join(f"{row}\n" for row in rows))


def test_three_reformats_of_each_patient_leave_the_dataset_as_it_was(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    """With labels, which say that a lesion is seen in them: they are no slices all the same."""
    before = prepared(cohort, tmp_path / "before").manifest
    for patient in range(PATIENTS):
        for name, tags in REFORMATS.items():
            slice_id = f"ID_{name}{patient}"
            write(cohort[0] / f"{slice_id}.dcm", slice_id, patient, hu=head(32, 32, seed=patient), **tags)
            label(cohort[1], *label_rows(slice_id, positive=True))
    after = prepared(cohort, tmp_path / "after").manifest
    assert after.fingerprint == before.fingerprint
    assert (after.accepted, after.excluded, after.rejected) == (PATIENTS * SLICES, 3 * PATIENTS, 0)
    assert after.reasons == {"not_axial": 2 * PATIENTS, "projection": PATIENTS}
    assert after.labels["any"] == before.labels["any"] == PATIENTS // 2


def test_a_series_excludes_or_flags_what_one_header_does_not_show(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    sliding = [f"ID_slide{number}" for number in range(6)]  # coronal images under the orientation of axial ones
    twice = ["ID_again0", "ID_again1"]
    for number, name in enumerate(sliding):
        write(cohort[0] / name, name, 0, hu=head(32, 32, seed=50 + number), SeriesInstanceUID="se_slide",
              ImagePositionPatient=[-125, -100 + 10 * number, 40])  # fmt: skip
    for number, name in enumerate(twice):
        write(cohort[0] / name, name, 1, hu=head(32, 32, seed=60 + number), SeriesInstanceUID="se_again")
    label(cohort[1], *(row for name in [*sliding, *twice] for row in label_rows(name, positive=False)))
    dataset = prepared(cohort, tmp_path / "out")
    found = refusals(dataset)
    assert {name: reason for name, (reason, _) in found.items()} == dict.fromkeys(sliding, "not_axial")
    assert {detail for _, detail in found.values()} == {
        "the images of its series do not lie one behind the other along their normal"
    }
    flagged = [flags for flags in dataset.column("flags") if "repeated_position" in flags]
    assert flagged == ["not_512,repeated_position"] * 2
    assert "2 accepted slices are flagged repeated_position" in dataset.manifest.notes


def test_a_bone_kernel_series_is_kept_and_told_apart(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    for number in range(SLICES):
        name = f"ID_bone{number}"
        tilted = [1, 0, 0, 0, 0.939693, -0.342020]
        write(cohort[0] / f"{name}.dcm", name, 0, hu=head(32, 32, seed=70 + number), SeriesInstanceUID="se_bone",
              ConvolutionKernel="H70h\\\x1bsharp", SliceThickness="1", PixelSpacing=["8", "8.02"],
              ImageOrientationPatient=tilted, ImagePositionPatient=[-125, -100, 40 + 5 * number])  # fmt: skip
        label(cohort[1], *label_rows(name, positive=number == 1))
    dataset = prepared(cohort, tmp_path / "out")
    assert (dataset.manifest.accepted, dataset.manifest.excluded) == (PATIENTS * SLICES + SLICES, 0)
    rows = [row for row in dataset.slices.to_pylist() if row["kernel"]]
    assert {row["kernel"] for row in rows} == {"H70h sharp"}
    assert [row["flags"] for row in rows] == ["not_512,thin"] * 2
    for name, value in (("spacing_mm", 8.01), ("thickness_mm", 1.0), ("tilt_deg", 20.0)):
        assert [row[name] for row in rows] == [pytest.approx(value, abs=1e-4)] * 2
    others = dataset.slices.filter(np.array(dataset.column("kernel") == ""))
    assert np.isnan(others["spacing_mm"].to_numpy()).all()
    assert set(others["tilt_deg"].to_pylist()) == {0.0}
    notes = (
        "1 study has several series: a lesion is a positive slice in each",
        f"{PATIENTS + 1} series have fewer than 10 slices",
    )
    assert {*notes} <= {*dataset.manifest.notes}
    assert "; ".join(notes) in audit_dataset(dataset.files.root).found
