"""One chunk of files -> one Arrow block of images and one small table with a row per file.

Runs in any process, knows no Ray: data/prepare/run.py maps it. A row says what became of its file; only the disk that
cannot be written ends a chunk with an error. The block is written before its rows, so a chunk whose rows lie beside it
is whole and need not be done again. Rows name files and slices as they are: only their owner may read them, and they
are removed when the dataset is whole.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ich_ray.ct.acquisition import clean_name
from ich_ray.ct.dicom import CTSlice, read_slice
from ich_ray.ct.windowing import WindowSpec, window_slice
from ich_ray.errors import IchRayError, Rejection
from ich_ray.storage import sha256, write_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from upath import UPath

    from ich_ray.ct.dicom import SliceHeader
    from ich_ray.data.prepare.pseudonyms import Pseudonyms

__all__ = ["ROWS", "ChunkJob", "block_bytes", "block_facts", "finished_chunk", "run_chunk", "words_digest"]

ROWS = pa.schema(
    [
        ("file", pa.string()),
        ("reason", pa.string()),  # empty while nothing is wrong
        ("detail", pa.string()),
        ("slice_id", pa.string()),
        ("patient", pa.string()),
        ("study", pa.string()),
        ("series", pa.string()),
        ("token", pa.string()),  # masked, see pseudonyms.py
        ("position_mm", pa.float32()),
        ("corner_mm", pa.list_(pa.float64(), 3)),  # ImagePositionPatient, NaN where it is not known
        ("normal", pa.list_(pa.float64(), 3)),
        ("rows", pa.int32()),
        ("columns", pa.int32()),
        ("spacing_mm", pa.float32()),
        ("thickness_mm", pa.float32()),
        ("tilt_deg", pa.float32()),
        ("kernel", pa.string()),
        ("flags", pa.string()),
        ("representation", pa.string()),  # of the words in the file, such as int16 or uint12
        ("pixels", pa.string()),  # digest of the windowed image
        ("chunk", pa.int32()),
        ("row", pa.int32()),  # of the block, -1 without an image
    ]
)


@dataclass(frozen=True)
class ChunkJob:
    """What all chunks of a dataset have in common; `plan` tells rows of other settings apart.

    Attributes:
        without_preamble: see `ich_ray.ct.elements.parse`.
    """

    images: UPath
    blocks: UPath
    windows: tuple[WindowSpec, ...]
    size: int
    pseudonyms: Pseudonyms
    plan: str
    without_preamble: bool = False

    def read(self, file: str) -> CTSlice:
        return read_slice(self.images / file, self.without_preamble)

    def block(self, number: int) -> UPath:
        return self.blocks / f"{number:05d}.arrow"

    def rows(self, number: int) -> UPath:
        return self.blocks / f"{number:05d}.rows"


def run_chunk(job: ChunkJob, number: int, files: Sequence[str]) -> pa.Table:
    """Decode and window `files`, write block and rows, return a row per file, of schema `ROWS`.

    Raises:
        IchRayError: the block could not be written.
    """
    images = np.empty((len(files), len(job.windows), job.size, job.size), np.uint8)
    rows: list[dict[str, Any]] = []
    count = 0
    for file in files:
        row = _read(job, file, images[count])
        rows.append({"file": file, "chunk": number, "row": -1 if row["reason"] else count, **row})
        count += not row["reason"]
    table = pa.Table.from_pylist(rows, ROWS)
    try:
        if count:
            data = block_bytes(images[:count])
            write_bytes(job.block(number), data)
            table = table.replace_schema_metadata({"plan": job.plan, "sha256": sha256(data), "bytes": str(len(data))})
        else:
            table = table.replace_schema_metadata({"plan": job.plan, "sha256": "", "bytes": "0"})
        write_bytes(job.rows(number), _ipc(table), private=True)
    except OSError as error:
        raise IchRayError(
            f"{job.blocks}: a block must be written, got {error.strerror or error}; "
            "free space or correct the folder, then run again: finished blocks are kept"
        ) from None
    return table


def finished_chunk(job: ChunkJob, number: int, files: Sequence[str]) -> pa.Table | None:
    """The rows of a chunk that an earlier run completed, None if it did not or was about other files."""
    if not job.rows(number).exists():
        return None
    try:
        table = pa.ipc.open_file(pa.BufferReader(job.rows(number).read_bytes())).read_all()
    except pa.ArrowInvalid:
        return None
    facts = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    size_bytes = int(facts.get("bytes", "0"))
    whole = not size_bytes or (job.block(number).exists() and job.block(number).stat().st_size == size_bytes)
    same = facts.get("plan") == job.plan and table.schema.names == ROWS.names
    return table if whole and same and table["file"].to_pylist() == list(files) else None


def block_facts(job: ChunkJob, number: int) -> tuple[int, str]:
    """The number of images and the SHA-256 of a finished chunk's block, as they were written."""
    table = pa.ipc.open_file(pa.BufferReader(job.rows(number).read_bytes())).read_all()
    images = int(pc.sum(pc.greater_equal(table["row"], 0)).as_py())
    return images, table.schema.metadata[b"sha256"].decode()


def block_bytes(images: NDArray[np.uint8]) -> bytes:
    """An Arrow IPC file with `images` as the one batch of column `image`.

    It is not compressed, so that it can be mapped.
    """
    return _ipc(pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(images)}))


def words_digest(job: ChunkJob, file: str) -> str:
    """A digest of the stored words of a slice: what decides whether two files hold the same pixels.

    Raises:
        IchRayError: the file cannot be read any more.
    """
    try:
        ct = job.read(file)
    except Rejection as rejection:
        raise IchRayError(
            f"{job.images / file}: must stay as it was until the dataset is written, got {rejection}; run again"
        ) from None
    return hashlib.sha256(f"{ct.slope} {ct.intercept} {ct.stored.shape}".encode() + ct.stored.tobytes()).hexdigest()


def _ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _read(job: ChunkJob, file: str, out: NDArray[np.uint8]) -> dict[str, Any]:
    """What the file says, its image in `out`; or the reason why not."""
    try:
        ct = job.read(file)
        out[:] = window_slice(ct, job.windows, job.size)
    except Rejection as rejection:
        return {"reason": rejection.reason, "detail": rejection.detail}
    except MemoryError:
        return {"reason": "out_of_memory", "detail": "the slice did not fit into memory"}
    header, names = ct.header, job.pseudonyms
    return {
        "reason": "",
        "detail": "",
        "slice_id": header.slice_id,
        "patient": names.name("patient", header.patient),
        "study": names.name("study", header.study),
        "series": names.name("series", header.series),
        "token": names.masked_token(header.patient),
        **_geometry(header),
        "flags": ",".join(sorted([*header.flags, *["blank"] * _is_blank(out)])),
        "representation": f"{'int' if header.signed else 'uint'}{header.bits_stored}",
        "pixels": hashlib.sha256(out.data).hexdigest()[:32],
    }


def _geometry(header: SliceHeader) -> dict[str, Any]:
    taken, unknown = header.acquisition, (math.nan,) * 3
    return {
        "position_mm": taken.position_mm,
        "corner_mm": taken.position or unknown,
        "normal": taken.normal or unknown,
        "rows": header.rows,
        "columns": header.columns,
        "spacing_mm": taken.pixel_mm,
        "thickness_mm": taken.thickness_mm,
        "tilt_deg": taken.tilt_deg,
        "kernel": clean_name(taken.kernel),
    }


def _is_blank(image: NDArray[np.uint8]) -> bool:
    """Whether each window shows one value only, as one far from the values of a slice does."""
    return bool((image == image[:, :1, :1]).all())
