"""Folders of small DICOM files with their label table, for tests of prepare."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.identities import read_identities
from ich_ray.storage import read_table
from ich_ray.vocabulary import LABELS
from tests.ct.files import head, make

PATIENTS = 12
SLICES = 2


def write_cohort(folder: Path, patients: int = PATIENTS) -> Path:
    """`SLICES` slices a patient, every second patient positive in its last slice; returns the long label table."""
    folder.mkdir(parents=True)
    rows = ["ID,Label"]
    for patient in range(patients):
        for number in range(SLICES):
            name = f"ID_{patient:02d}{number}"
            write(folder / f"{name}.dcm", name, patient, hu=head(32, 32, seed=patient * SLICES + number),
                  ImagePositionPatient=[-125, -100, 40 + 5 * number])  # fmt: skip
            rows += label_rows(name, patient % 2 == 0 and number == SLICES - 1)
    table = folder.parent / "labels.csv"
    table.write_text("\n".join(rows) + "\n")
    return table


def write(path: Path, slice_id: str, patient: int, **changes: Any) -> None:
    """One slice, in a study of its patient."""
    tags = {"SOPInstanceUID": slice_id, "PatientID": f"CANARY-{patient}", "StudyInstanceUID": f"st{patient}", **changes}
    path.write_bytes(make(**tags))


def paths(dataset: PreparedDataset) -> list[str]:
    """The path of each accepted slice below the folder of the images, by the way back."""
    behind = {row.file: row.path for row in read_identities(dataset)}
    return [behind[name] for name in dataset.column("file")]


def uids(dataset: PreparedDataset) -> list[str]:
    """The SOPInstanceUID of each accepted slice, by the way back."""
    behind = {row.slice_id: row.uid for row in read_identities(dataset)}
    return [behind[name] for name in dataset.column("slice_id")]


def refusals(dataset: PreparedDataset) -> dict[str, tuple[str, str]]:
    """Reason and detail in rejected.parquet, by the path of the file or the slice id of a label without a file."""
    behind = {row.file: row.path or row.uid for row in read_identities(dataset)}
    rows = read_table(dataset.files.rejected).to_pylist()
    return {behind[row["file"]]: (row["reason"], row["detail"]) for row in rows}


def label_rows(slice_id: str, positive: bool) -> list[str]:
    return [f"{slice_id}_{name},{int(positive and name in {'subdural', 'any'})}" for name in LABELS]


def add_rows(table: Path, *rows: str) -> None:
    table.write_text(table.read_text() + "\n".join(rows) + "\n")


def spoil(folder: Path, table: Path) -> dict[str, str]:
    """Put one file of every kind into a cohort; returns the reason of each relative path."""
    inside = folder / "more" / "deeper"
    inside.mkdir(parents=True)
    outside = folder.parent / "outside.dcm"
    write(outside, "ID_outside", 90)
    (inside / "page.dcm").write_text("<html>")
    write(inside / "ID_constant.dcm", "ID_constant", 91, hu=head() * 0)
    write(inside / "ID_mr.dcm", "ID_mr", 92, Modality="MR")
    write(inside / "unlabeled.dcm", "ID_unlabeled", 93)
    (inside / "copy.dcm").write_bytes((folder / "ID_000.dcm").read_bytes())
    write(inside / "same_uid_1.dcm", "ID_same", 94)
    write(inside / "same_uid_2.dcm", "ID_same", 94, hu=head(seed=9))
    write(inside / "torn_1.dcm", "ID_torn1", 95, hu=head(seed=10))
    write(inside / "torn_2.dcm", "ID_torn2", 96, hu=head(seed=11), StudyInstanceUID="st95")
    write(inside / "conflict.dcm", "ID_conflict", 97, hu=head(seed=12))
    write(inside / "inconsistent.dcm", "ID_inconsistent", 98, hu=head(seed=13))
    os.symlink(outside, inside / "escape.dcm")
    os.symlink(folder, inside / "loop")
    os.symlink("nothing", inside / "broken.dcm")
    os.mkfifo(inside / "fifo.dcm")
    (inside / "folder.dcm").mkdir()
    for name in ("ID_same", "ID_torn1", "ID_torn2", "ID_conflict", "ID_constant", "ID_mr"):
        add_rows(table, *label_rows(name, False))
    add_rows(table, "ID_conflict_any,1", "ID_000_any,0")
    add_rows(table, *(row.replace("any,0", "any,1") for row in label_rows("ID_inconsistent", False)))
    add_rows(table, *label_rows("ID_nowhere", False))
    return {
        f"more/deeper/{name}": reason
        for name, reason in {
            "page.dcm": "not_dicom",
            "ID_constant.dcm": "hu_implausible",
            "ID_mr.dcm": "not_ct",
            "unlabeled.dcm": "label_missing",
            "copy.dcm": "duplicate",
            "same_uid_1.dcm": "uid_conflict",
            "same_uid_2.dcm": "uid_conflict",
            "torn_1.dcm": "patient_conflict",
            "torn_2.dcm": "patient_conflict",
            "conflict.dcm": "label_conflict",
            "inconsistent.dcm": "label_inconsistent",
            "escape.dcm": "path_escape",
            "broken.dcm": "not_regular",
            "fifo.dcm": "not_regular",
            "folder.dcm": "not_regular",
        }.items()
    }
