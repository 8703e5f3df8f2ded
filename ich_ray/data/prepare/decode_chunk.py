"""One chunk of files -> Arrow blocks of images and one small table with a row per slice.

Runs in any process, knows no Ray: data/prepare/run.py maps it. A row says what became of its file, or of a frame of it;
only the disk that cannot be written ends a chunk with an error. Files of one slice fill one block, those of many frames
as many as it takes. The blocks are written before the rows, so a chunk whose rows lie beside it is whole and need not
be done again. Rows name files and slices as they are: only their owner may read them, and they are removed when the
dataset is whole.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ich_ray.ct.acquisition import clean_name
from ich_ray.ct.head_box import head_box, side_mm
from ich_ray.ct.slice_file import SliceFile
from ich_ray.ct.windowing import WindowSpec, window_slice
from ich_ray.data.prepare.chunk_slices import ChunkSlices
from ich_ray.data.slice_table import VIEW
from ich_ray.errors import IchRayError, Rejection
from ich_ray.storage import sha256, write_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from upath import UPath

    from ich_ray.ct.dicom import CTSlice, SliceHeader
    from ich_ray.data.prepare.chunk_slices import SlabMembers
    from ich_ray.data.prepare.pseudonyms import Pseudonyms

__all__ = ["NO_IMAGE", "ROWS", "ChunkJob", "block_bytes", "block_facts", "finished_chunk", "run_chunk", "words_digest"]

ROWS = pa.schema(
    [
        ("file", pa.string()),
        ("frame", pa.int32()),  # counted from 1, 0 for a file that is one slice
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
        ("slab_mm", pa.float32()),  # that its series is averaged to, 0 where it is not
        ("tilt_deg", pa.float32()),
        ("kernel", pa.string()),
        *((name, pa.float32()) for name in VIEW),
        ("flags", pa.string()),
        ("representation", pa.string()),  # of the words in the file, such as int16 or uint12
        ("pixels", pa.string()),  # digest of the windowed image
        ("chunk", pa.int32()),
        ("part", pa.int32()),  # of the chunk: which of its blocks
        ("row", pa.int32()),  # of the block, -1 without an image
    ]
)

# What a chunk holds in memory: 256 images of 128x128x3 are 12 MB. A task holds a block three times: 256 images of
# 1024x1024x3 took 2.6 GB for each CPU.
_BLOCK_IMAGES = 256
_BLOCK_BYTES = 2**28
NO_IMAGE = {"chunk": -1, "part": 0, "row": -1}


@dataclass(frozen=True)
class ChunkJob:
    """What all chunks of a dataset have in common; `plan` tells rows of other settings apart.

    Attributes:
        without_preamble: see `ich_ray.ct.elements.parse`.
        slab_mm: to which thin series are averaged, 0 for none.
    """

    images: UPath
    blocks: UPath
    windows: tuple[WindowSpec, ...]
    size: int
    pseudonyms: Pseudonyms
    plan: str
    without_preamble: bool = False
    slab_mm: float = 0.0

    @property
    def images_a_block(self) -> int:
        return min(_BLOCK_IMAGES, max(_BLOCK_BYTES // (len(self.windows) * self.size**2), 1))

    def open(self, file: str) -> SliceFile:
        return SliceFile(self.images / file, self.without_preamble)

    def read(self, file: SliceFile, frame: int) -> CTSlice:
        """A slice that has a patient.

        Raises:
            Rejection: see `SliceFile.read`; `patient_missing`.
        """
        ct = file.read(frame)
        if not ct.header.patient:
            raise Rejection("patient_missing", "PatientID is absent or blank, and roles are drawn by patient")
        return ct

    def block(self, number: int, part: int = 0) -> UPath:
        return self.blocks / (f"{number:05d}-{part}.arrow" if part else f"{number:05d}.arrow")

    def rows(self, number: int) -> UPath:
        return self.blocks / f"{number:05d}.rows"


def run_chunk(job: ChunkJob, number: int, files: Sequence[str], slabs: SlabMembers | None = None) -> pa.Table:
    """Decode and window `files`, write blocks and rows, return a row per slice, of schema `ROWS`.

    Args:
        job: of all chunks.
        number: of this one.
        files: below the folder of the images.
        slabs: around the slices of thin series among them.

    Raises:
        IchRayError: a block could not be written.
    """
    blocks, slices = _Blocks(job, number), ChunkSlices(job.open, job.read, job.slab_mm, slabs or {})
    rows = [row for file in files for row in _rows(job, file, blocks, slices)]
    blocks.write()
    parts = {"sha256": json.dumps(blocks.digests), "bytes": json.dumps(blocks.sizes_bytes)}
    table = pa.Table.from_pylist(rows, ROWS).replace_schema_metadata({"plan": job.plan, **parts})
    _write(job, job.rows(number), _ipc(table), private=True)
    return table


def _write(job: ChunkJob, path: UPath, data: bytes, private: bool = False) -> None:
    try:
        write_bytes(path, data, private=private)
    except OSError as error:
        raise IchRayError(
            f"{job.blocks}: a block must be written, got {error.strerror or error}; "
            "free space or correct the folder, then run again: finished blocks are kept"
        ) from None


class _Blocks:
    """The blocks of a chunk: images one after the other, written whenever there are as many as a block may have."""

    def __init__(self, job: ChunkJob, number: int) -> None:
        self._job, self._number, self._count = job, number, 0
        self._images = np.empty((job.images_a_block, len(job.windows), job.size, job.size), np.uint8)
        self.digests: list[str] = []
        self.sizes_bytes: list[int] = []

    @property
    def free(self) -> NDArray[np.uint8]:
        """Where the next image goes."""
        image: NDArray[np.uint8] = self._images[self._count]
        return image

    def keep(self) -> dict[str, int]:
        """Take what lies in `free` for an image, and return its place."""
        place = {"chunk": self._number, "part": len(self.digests), "row": self._count}
        self._count += 1
        if self._count == len(self._images):
            self.write()
        return place

    def write(self) -> None:
        """Write the images that are not in a block yet."""
        if not self._count:
            return
        data = block_bytes(self._images[: self._count])
        _write(self._job, self._job.block(self._number, len(self.digests)), data)
        self.digests.append(sha256(data))
        self.sizes_bytes.append(len(data))
        self._count = 0


def finished_chunk(job: ChunkJob, number: int, files: Sequence[str]) -> pa.Table | None:
    """The rows of a chunk that an earlier run completed, None if it did not or was about other files."""
    if not job.rows(number).exists():
        return None
    try:
        table = pa.ipc.open_file(pa.BufferReader(job.rows(number).read_bytes())).read_all()
    except pa.ArrowInvalid:
        return None
    facts = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if facts.get("plan") != job.plan or table.schema.names != ROWS.names:
        return None
    blocks = [job.block(number, part) for part in range(len(json.loads(facts["bytes"])))]
    sizes_bytes = [path.stat().st_size if path.exists() else 0 for path in blocks]
    whole = sizes_bytes == json.loads(facts["bytes"])
    return table if whole and [*dict.fromkeys(table["file"].to_pylist())] == list(files) else None


def block_facts(job: ChunkJob, number: int, part: int) -> tuple[int, str]:
    """The number of images and the SHA-256 of a block of a finished chunk, as they were written."""
    table = pa.ipc.open_file(pa.BufferReader(job.rows(number).read_bytes())).read_all()
    here = pc.and_(pc.equal(table["part"], part), pc.greater_equal(table["row"], 0))
    return int(pc.sum(here).as_py()), json.loads(table.schema.metadata[b"sha256"])[part]


def block_bytes(images: NDArray[np.uint8]) -> bytes:
    """An Arrow IPC file with `images` as the one batch of column `image`.

    It is not compressed, so that it can be mapped.
    """
    return _ipc(pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(images)}))


def words_digest(job: ChunkJob, file: str, frame: int = 0, opened: Callable[[str], SliceFile] | None = None) -> str:
    """A digest of the stored words of a slice: what decides whether two files hold the same pixels.

    Args:
        job: of the chunks.
        file: below the folder of the images.
        frame: see `SliceFile`.
        opened: opens a file, if not `job` does.

    Raises:
        IchRayError: the file cannot be read any more.
    """
    try:
        ct = job.read((opened or job.open)(file), frame)
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


def _rows(job: ChunkJob, file: str, blocks: _Blocks, slices: ChunkSlices) -> Iterator[dict[str, Any]]:
    """A row for each slice of a file, or one that says why none is read."""
    try:
        frames = slices.frames(file)
    except (Rejection, MemoryError) as error:
        yield {"file": file, "frame": 0, **_refusal(error), **NO_IMAGE}
        return
    for frame in frames:
        place = {"file": file, "frame": frame, "slab_mm": slices.slab_mm(file, frame)}
        try:
            ct = slices.read(file, frame)
            blocks.free[:] = window_slice(ct, job.windows, job.size)
        except (Rejection, MemoryError) as error:
            yield {**place, **_refusal(error), **NO_IMAGE}
        else:
            yield {**place, **_facts(job, ct, blocks.free), **blocks.keep()}


def _refusal(error: Rejection | MemoryError) -> dict[str, str]:
    if isinstance(error, Rejection):
        return {"reason": error.reason, "detail": error.detail}
    return {"reason": "out_of_memory", "detail": "the slice did not fit into memory"}


def _facts(job: ChunkJob, ct: CTSlice, image: NDArray[np.uint8]) -> dict[str, Any]:
    """What the file says of a slice, and what its image is."""
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
        **dict(zip(VIEW, (side_mm(header), *head_box(ct)), strict=True)),
        "flags": ",".join(sorted([*header.flags, *["blank"] * _is_blank(image)])),
        "representation": f"{'int' if header.signed else 'uint'}{header.bits_stored}",
        "pixels": hashlib.sha256(image.data).hexdigest()[:32],
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
