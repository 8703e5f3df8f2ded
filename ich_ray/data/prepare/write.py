"""What prepare found -> the files of a dataset, the manifest last.

Order on disk: blocks with their rows (written by the chunks), the way back beside the key, slices.parquet,
rejected.parquet, sheets, dataset.json, and only then are left-overs removed: killed anywhere, there is no dataset or a
whole one, and no dataset without its way back.

Up to here files and slices go by their names; both tables have pseudonyms. A frame of a file counts as a file, of the
name `path#frame`. `rejected.parquet` has a row per file that is not accepted, and after them one per label without a
file (reason `file_missing`, the slice's pseudonym in place of the file's), which are not files and not counted in
`listed`.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ich_ray.ct.slice_file import frame_name
from ich_ray.data.dataset import BlockRecord, DatasetManifest, ExaminationRecord, PreparedDataset, map_block
from ich_ray.data.identities import write_identities
from ich_ray.data.prepare.contact_sheets import write_sheets
from ich_ray.data.prepare.decode_chunk import ChunkJob, block_bytes, block_facts, words_digest
from ich_ray.data.prepare.join import Assembly, assemble, fingerprint
from ich_ray.data.prepare.readers import MISSING
from ich_ray.data.series_survey import survey_series
from ich_ray.data.slice_table import GEOMETRY, VIEW
from ich_ray.errors import IchRayError
from ich_ray.statistics.aggregation import members
from ich_ray.storage import DatasetFiles, is_local, sha256, write_bytes, write_json, write_table
from ich_ray.vocabulary import LABELS, LEAK, MATCH_RULES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from upath import UPath

    from ich_ray.data.prepare.examinations import Examinations
    from ich_ray.data.prepare.label_table import LabelTable
    from ich_ray.data.prepare.list_files import Listing
    from ich_ray.data.prepare.pseudonyms import Pseudonyms
    from ich_ray.vocabulary import Split

__all__ = ["Work", "explain_write_errors", "finish", "remove_leftovers"]

# Blocks that lost images and are written again: 1,500 of 3,000 slices took 0.9 to 1.4 s one after the other, of which
# 0.2 s were computing, and 0.6 to 1.0 s so many at a time; on object storage it is waiting alone.
_AT_A_TIME = 8
_IN_MEMORY_BYTES = 2**28
_KEPT = "-kept.arrow"
_OURS = (".arrow", ".rows", ".tmp")
_PACKAGES = ("ich_ray", "numba", "numpy", "pyarrow", "pydicom", "ray")


@dataclass(frozen=True)
class Work:
    """What a dataset is made of.

    Attributes:
        identities: the name of the table that leads back from the pseudonyms.
        examined: labels of examinations, beside those of slices.
    """

    files: DatasetFiles
    job: ChunkJob
    listing: Listing
    labels: LabelTable
    identities: str
    seed: int
    split: Split = "patient"
    examined: LabelTable | None = None


def finish(work: Work, rows: pa.Table) -> PreparedDataset:
    """Join the rows of all files with the labels and write everything that is derived from them.

    Raises:
        ConfigError: the labels match nothing, or roles are impossible; the blocks stay for the next run.
        IchRayError: the disk cannot be written; the blocks stay for the next run.
    """
    with explain_write_errors(work.files):
        _write(work, rows)
    return PreparedDataset.open(work.files.root)


@contextmanager
def explain_write_errors(files: DatasetFiles) -> Iterator[None]:
    """Say what to do where the block cannot write.

    Raises:
        IchRayError: the disk is full, or the folder not to be written.
    """
    try:
        yield
    except OSError as error:
        raise IchRayError(
            f"{files.root}: the dataset must be written, got {error.strerror or error}; "
            "free space or correct the folder, then run again: finished blocks are kept"
        ) from None


def _write(work: Work, rows: pa.Table) -> None:
    opened = lru_cache(maxsize=2)(work.job.open)  # two files of many frames are compared frame by frame
    assembly = assemble(
        rows,
        work.labels,
        pseudonyms=work.job.pseudonyms,
        seed=work.seed,
        digest=lambda file, frame: words_digest(work.job, file, frame, opened),
        split=work.split,
        examined=work.examined,
    )
    blocks, block, row = _blocks(work, assembly)
    accepted, refused = (_named(table, work.job.pseudonyms) for table in (assembly.accepted, assembly.refused))
    write_identities(work.identities, pa.concat_tables([accepted, refused]))
    columns = (*GEOMETRY, "slab_mm", *VIEW) if work.job.slab_mm else (*GEOMETRY, *VIEW)
    digest = write_table(work.files.slices, _slices(assembly, accepted, block, row, columns))
    write_table(work.files.rejected, refused.select(["file", "reason", "detail"]))
    examined = _write_examinations(work, assembly.examinations)
    manifest = _manifest(work, assembly, blocks, digest, examined, _further_frames(rows))
    if manifest.level == "slice":
        write_sheets(PreparedDataset(work.files, manifest))
    write_json(work.files.manifest, manifest.model_dump(mode="json"))
    remove_leftovers(work.files, manifest)


def _further_frames(rows: pa.Table) -> int:
    """How many more slices than files were listed."""
    return int(pc.sum(pc.greater(rows["frame"], 1)).as_py() or 0)


def remove_leftovers(files: DatasetFiles, manifest: DatasetManifest) -> None:
    """Remove what is no block of the dataset: rows with names, and leftovers of killed runs."""
    kept = {record.file for record in manifest.blocks}
    for path in list(files.blocks.iterdir()):
        if f"{files.blocks.name}/{path.name}" not in kept and path.suffix in _OURS:
            _unlink(path)
    for path in list(files.root.glob(".*.tmp")) if is_local(files.root) else ():
        _unlink(path)


def _unlink(path: UPath) -> None:
    with suppress(FileNotFoundError):  # another run, which found the dataset finished, was faster
        path.unlink()


def _blocks(work: Work, assembly: Assembly) -> tuple[tuple[BlockRecord, ...], pa.Array, pa.Array]:
    """The blocks with accepted images only, and where each accepted slice lies.

    Several at a time: they wait for the disk, or for object storage, and hash and copy outside the interpreter's lock.
    """
    chunk, part = (assembly.accepted[name].to_numpy().astype(np.int64) for name in ("chunk", "part"))
    row = assembly.accepted["row"].to_numpy().copy()
    written = chunk << 32 | part
    block = np.zeros(len(written), np.int32)
    places = members(written)
    block_bytes_most = max(map(len, places), default=0) * len(work.job.windows) * work.job.size**2
    at_a_time = min(_AT_A_TIME, max(2, _IN_MEMORY_BYTES // max(block_bytes_most, 1)))
    with ThreadPoolExecutor(at_a_time) as pool:
        kept = [pool.submit(_kept, work, (int(chunk[here[0]]), int(part[here[0]])), row[here]) for here in places]
        try:
            records = tuple(each.result() for each in kept)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for number, (here, record) in enumerate(zip(places, records, strict=True)):
        block[here] = number
        if record.file.endswith(_KEPT):
            row[here] = np.argsort(np.argsort(row[here]))
    return records, pa.array(block, pa.int32()), pa.array(row, pa.int32())


def _kept(work: Work, place: tuple[int, int], rows: NDArray[np.int32]) -> BlockRecord:
    """The block of a chunk and part with the images at `rows` only.

    One that loses images is written again under another name, so that a run killed here finds the first one whole.
    """
    path = work.job.block(*place)
    count, digest = block_facts(work.job, *place)
    if len(rows) < count:
        data = block_bytes(np.ascontiguousarray(map_block(path)[np.sort(rows)]))
        path = path.with_name(f"{path.stem}{_KEPT}")
        write_bytes(path, data)
        digest = sha256(data)
    return BlockRecord(file=f"{work.files.blocks.name}/{path.name}", rows=len(rows), sha256=digest)


def _named(rows: pa.Table, pseudonyms: Pseudonyms) -> pa.Table:
    """Files and slices with their pseudonyms, in the columns of `FileIdentity`."""
    paths, frames, uids = (rows[name].to_pylist() for name in ("file", "frame", "slice_id"))
    slice_ids = pseudonyms.names("slice", uids)
    # A file may be called `a.dcm#7`, but none has a zero byte in its name.
    distinct = [f"{path}\0{frame}" if frame else path for path, frame in zip(paths, frames, strict=True)]
    files = [name or slice_id for name, slice_id in zip(pseudonyms.names("file", distinct), slice_ids, strict=True)]
    shown = [frame_name(path, frame) for path, frame in zip(paths, frames, strict=True)]
    columns = {"file": files, "path": shown, "slice_id": slice_ids, "uid": uids}
    return pa.table(
        {
            **{name: pa.array(values, pa.string()) for name, values in columns.items()},
            "reason": rows["reason"],
            "detail": rows["detail"],
        }
    )


def _slices(assembly: Assembly, named: pa.Table, block: pa.Array, row: pa.Array, columns: tuple[str, ...]) -> pa.Table:
    accepted, values = assembly.accepted, assembly.values
    return pa.table(
        {
            **{name: named[name] for name in ("slice_id", "file")},
            **{name: accepted[name] for name in ("patient", "study", "series", "position_mm")},
            "role": pa.array(assembly.roles, pa.string()),
            "fold": pa.array(assembly.folds, pa.int8()),
            **{
                name: pa.array(values[:, label], pa.int8(), mask=values[:, label] == MISSING)
                for label, name in enumerate(LABELS)
            },
            "block": block,
            "row": row,
            **{name: accepted[name] for name in ("flags", "representation", *columns)},
        }
    )


def _manifest(
    work: Work,
    assembly: Assembly,
    blocks: tuple[BlockRecord, ...],
    slices_sha256: str,
    examined: ExaminationRecord | None,
    further_frames: int,
) -> DatasetManifest:
    return DatasetManifest(
        fingerprint=fingerprint(assembly, work.job.windows, work.job.size, work.job.slab_mm),
        size=work.job.size,
        windows=work.job.windows,
        blocks=blocks,
        listed=len(work.listing) + further_frames,
        accepted=len(assembly.accepted),
        rejected=assembly.rejected,
        duplicate=assembly.duplicate,
        excluded=assembly.excluded,
        reasons=assembly.reasons,
        roles=assembly.role_counts(),
        labels={name: int((assembly.values[:, label] == 1).sum()) for label, name in enumerate(LABELS)},
        notes=_notes(work, assembly, further_frames),
        split=work.split,
        matched_by=work.labels.rule,
        agreement=work.labels.agreement,
        level=work.labels.level,
        examinations=examined,
        slices_sha256=slices_sha256,
        identities=work.identities,
        slab_mm=work.job.slab_mm,
        seed=work.seed,
        versions={"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        created=time.time(),
    )


def _write_examinations(work: Work, found: Examinations | None) -> ExaminationRecord | None:
    if found is None:
        return None
    digest = write_table(work.files.examinations, found.table)
    own = work.examined.agreement if work.examined else ()
    return ExaminationRecord(level=found.level, rows=len(found.table), positives=found.positives, sha256=digest,
                             contradictions=found.contradictions, agreement=own)  # fmt: skip


def _notes(work: Work, assembly: Assembly, further_frames: int) -> tuple[str, ...]:
    flags = Counter(flag for text in assembly.accepted["flags"].to_pylist() for flag in filter(None, text.split(",")))
    notes = [LEAK] if work.split == "slice" else []
    notes += [f"{count} accepted slices are flagged {flag}" for flag, count in flags.most_common()]
    notes += survey_series(assembly.accepted).notes
    if further_frames:
        notes.append(
            f"{len(work.listing)} files hold {len(work.listing) + further_frames} slices: frames count as files"
        )
    if work.labels.level == "slice":
        found = len(work.labels) - assembly.unmatched
        notes.append(f"{found} of {len(work.labels)} labels found their file by {MATCH_RULES[work.labels.rule]}")
    if assembly.examinations is not None:
        notes += assembly.examinations.notes(work.labels.level == "slice")
    if lacking := assembly.unmatched + assembly.unfound:
        notes.append(f"{lacking} labels have no file")
    notes += map(str, (*work.labels.agreement, *(work.examined.agreement if work.examined else ())))
    if work.labels.collapsed:
        notes.append(f"{work.labels.collapsed} label rows repeat others")
    return tuple(notes)
