"""Slices of every encoding, named as in the RSNA set and by UIDs, find their labels in every layout of a table."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from ich_ray.ct.windowing import DEFAULT_WINDOWS, parse_windows
from ich_ray.data.prepare.decode_chunk import ChunkJob, run_chunk, words_digest
from ich_ray.data.prepare.join import Assembly, assemble
from ich_ray.data.prepare.label_table import read_labels
from ich_ray.data.prepare.pseudonyms import Pseudonyms
from ich_ray.storage import locate
from ich_ray.vocabulary import LABELS, ROLES
from tests.ct.files import INTERCEPT, SYNTAXES, compressed, compressed_image, head, lossless_jpeg, make

ENCODINGS = [
    (JPEGLosslessSV1, False),
    *itertools.product((*SYNTAXES, RLELossless, JPEGLSLossless, JPEG2000Lossless), (True, False)),
]


def encoded(syntax: str, signed: bool, seed: int, **tags: str) -> bytes:
    """One slice, other pixels for other seeds, in any syntax that tests can write."""
    hu = head(32, 32, seed=seed)
    if syntax in SYNTAXES:
        return make(hu, syntax=syntax, signed=signed, **tags)
    if syntax == JPEGLosslessSV1:
        frame = lossless_jpeg((hu.astype(np.int32) - INTERCEPT).astype(np.uint16))
        return compressed(frame, syntax, hu=hu, signed=signed, **tags)
    return compressed_image(syntax, hu, signed=signed, **tags)


NAMES = {"rsna": "ID_{:08x}", "uid": "1.2.826.0.1.3680043.8.498.{}"}
Chunk = tuple[ChunkJob, list[str], pa.Table]


def long(names: list[str]) -> str:
    rows = [f"{name}_{label},{int(patient % 3 == 0 and label in {'subdural', 'any'})}"
            for patient, name in enumerate(names) for label in LABELS]  # fmt: skip
    return "\n".join(["ID,Label", *rows])


def wide(names: list[str]) -> str:
    rows = [f"{name},{int(patient % 3 == 0)},{int(patient % 3 == 0)}" for patient, name in enumerate(names)]
    return "\n".join(["slice_id,any,subdural", *rows])


def with_roles(names: list[str]) -> str:
    header, *rows = wide(names).splitlines()
    # Four roles, each with a positive and a negative patient.
    return "\n".join([f"{header},role", *(f"{row},{ROLES[place // 3 % 4]}" for place, row in enumerate(rows))])


@pytest.fixture(scope="module", params=NAMES)
def chunk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Chunk:
    """One chunk of a patient for each encoding, the names of its slices and its rows."""
    folder = tmp_path_factory.mktemp(request.param)
    names = [NAMES[request.param].format(1000 + patient) for patient in range(len(ENCODINGS))]
    files = []
    for patient, (name, encoding) in enumerate(zip(names, ENCODINGS, strict=True)):
        tags = {"SOPInstanceUID": name, "PatientID": f"P{patient}", "StudyInstanceUID": f"{name}.1"}
        (folder / f"{patient:02d}.dcm").write_bytes(encoded(*encoding, patient, SeriesInstanceUID=f"{name}.2", **tags))
        files.append(f"{patient:02d}.dcm")
    patch = pytest.MonkeyPatch()
    patch.setenv("ICH_RAY_KEY_FILE", str(folder / "key"))
    images, blocks = locate(folder), locate(folder / "blocks")
    job = ChunkJob(images, blocks, parse_windows(DEFAULT_WINDOWS), 16, Pseudonyms.load(), "plan")
    patch.undo()
    return job, names, run_chunk(job, 0, files)


def assembled(chunk: Chunk, text: str, folder: Path) -> Assembly:
    job, _, rows = chunk
    (folder / "labels.csv").write_text(text)
    labels = read_labels(folder / "labels.csv")
    return assemble(rows, labels, pseudonyms=job.pseudonyms, seed=0, digest=lambda file: words_digest(job, file))


@pytest.mark.parametrize("layout", [long, wide, with_roles])
def test_every_encoding_and_kind_of_name_finds_its_labels(
    chunk: Chunk, layout: Callable[[list[str]], str], tmp_path: Path
) -> None:
    found = assembled(chunk, layout(chunk[1]), tmp_path)
    assert found.reasons == {}
    assert found.accepted["slice_id"].to_pylist() == chunk[1]
    assert {flags.replace("pixels_shared", "").strip(",") for flags in found.accepted["flags"].to_pylist()} == {
        "not_512"
    }
    assert found.values[:, LABELS.index("any")].tolist() == [1, 0, 0] * 5
    assert found.values[:, LABELS.index("subdural")].tolist() == [1, 0, 0] * 5
