"""What prepare found -> the files of a dataset, the manifest last.

Order on disk: blocks with their rows (written by the chunks), slices.parquet, rejected.parquet, sheets, dataset.json,
and only then are left-overs removed: killed anywhere, there is no dataset or a whole one.

`rejected.parquet` has a row per file that is not accepted, and after them one per label without a file (reason
`file_missing`, the slice id in place of a path), which are not files and not counted in `listed`.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ich_ray.data.assembly import Assembly, assemble, fingerprint
from ich_ray.data.chunks import ChunkJob, block_bytes, block_facts, words_digest
from ich_ray.data.dataset import LABELS, BlockRecord, DatasetManifest, PreparedDataset, map_block
from ich_ray.data.labels import MISSING, LabelTable
from ich_ray.data.sheets import write_sheets
from ich_ray.errors import IchRayError
from ich_ray.results import LEAK
from ich_ray.storage import DatasetFiles, is_local, sha256, write_bytes, write_json, write_table

if TYPE_CHECKING:
    from ich_ray.data.listing import Listing
    from ich_ray.results import Split

__all__ = ["Work", "finish"]

_PACKAGES = ("ich_ray", "numba", "numpy", "pyarrow", "pydicom", "ray")


@dataclass(frozen=True)
class Work:
    """What a dataset is made of."""

    files: DatasetFiles
    job: ChunkJob
    listing: Listing
    labels: LabelTable
    seed: int
    split: Split = "patient"


def finish(work: Work, rows: pa.Table) -> PreparedDataset:
    """Join the rows of all files with the labels and write everything that is derived from them.

    Raises:
        ConfigError: the labels match nothing, or roles are impossible; the blocks stay for the next run.
        IchRayError: the disk cannot be written; the blocks stay for the next run.
    """
    try:
        _write(work, rows)
    except OSError as error:
        raise IchRayError(
            f"{work.files.root}: the dataset must be written, got {error.strerror or error}; "
            "free space or correct the folder, then run again: finished blocks are kept"
        ) from None
    return PreparedDataset.open(work.files.root)


def _write(work: Work, rows: pa.Table) -> None:
    assembly = assemble(
        rows,
        work.labels,
        pseudonyms=work.job.pseudonyms,
        seed=work.seed,
        digest=lambda file: words_digest(work.job, file),
        split=work.split,
    )
    blocks, block, row = _blocks(work, assembly)
    write_table(work.files.slices, _slices(assembly, block, row))
    write_table(work.files.rejected, assembly.refused)
    manifest = _manifest(work, assembly, blocks)
    write_sheets(PreparedDataset(work.files, manifest))
    write_json(work.files.manifest, manifest.model_dump(mode="json"))
    _remove_leftovers(work.files, {record.file for record in blocks})


def _remove_leftovers(files: DatasetFiles, kept: set[str]) -> None:
    """What is no block of the dataset, and what killed runs were about to write."""
    for path in list(files.blocks.iterdir()):
        if f"{files.blocks.name}/{path.name}" not in kept:
            path.unlink()
    for path in list(files.root.glob(".*.tmp")) if is_local(files.root) else ():
        path.unlink()


def _blocks(work: Work, assembly: Assembly) -> tuple[tuple[BlockRecord, ...], pa.Array, pa.Array]:
    """The blocks with accepted images only, and where each accepted slice lies.

    A block that lost images is written again under another name, so that a run killed here finds the first one whole.
    """
    chunk = assembly.accepted["chunk"].to_numpy()
    row = assembly.accepted["row"].to_numpy().copy()
    block = np.zeros(len(chunk), np.int32)
    records: list[BlockRecord] = []
    by_chunk = np.argsort(chunk, kind="stable")
    numbers, starts = np.unique(chunk[by_chunk], return_index=True)
    for number, here in zip(numbers, np.split(by_chunk, starts[1:]), strict=False):  # without any, one empty part
        path = work.job.block(int(number))
        count, digest = block_facts(work.job, int(number))
        if len(here) < count:
            order = here[np.argsort(row[here])]
            data = block_bytes(np.ascontiguousarray(map_block(path)[row[order]]))
            path = path.with_name(f"{path.stem}-kept.arrow")
            write_bytes(path, data)
            digest, row[order] = sha256(data), np.arange(len(order))
        block[here] = len(records)
        records.append(BlockRecord(file=f"{work.files.blocks.name}/{path.name}", rows=len(here), sha256=digest))
    return tuple(records), pa.array(block, pa.int32()), pa.array(row, pa.int32())


def _slices(assembly: Assembly, block: pa.Array, row: pa.Array) -> pa.Table:
    accepted = assembly.accepted
    names = ("slice_id", "file", "patient", "study", "series", "position_mm")
    values = assembly.values
    return pa.table(
        {
            **{name: accepted[name] for name in names},
            "role": pa.array(assembly.roles, pa.string()),
            "fold": pa.array(assembly.folds, pa.int8()),
            **{
                name: pa.array(values[:, label], pa.int8(), mask=values[:, label] == MISSING)
                for label, name in enumerate(LABELS)
            },
            "block": block,
            "row": row,
            "flags": accepted["flags"],
            "representation": accepted["representation"],
        }
    )


def _manifest(work: Work, assembly: Assembly, blocks: tuple[BlockRecord, ...]) -> DatasetManifest:
    return DatasetManifest(
        fingerprint=fingerprint(assembly, work.job.windows, work.job.size),
        size=work.job.size,
        windows=work.job.windows,
        blocks=blocks,
        listed=len(work.listing),
        accepted=len(assembly.accepted),
        rejected=assembly.rejected,
        duplicate=assembly.duplicate,
        excluded=assembly.excluded,
        reasons=assembly.reasons,
        roles=assembly.role_counts(),
        labels={name: int((assembly.values[:, label] == 1).sum()) for label, name in enumerate(LABELS)},
        notes=_notes(work, assembly),
        split=work.split,
        seed=work.seed,
        versions={"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        created=time.time(),
    )


def _notes(work: Work, assembly: Assembly) -> tuple[str, ...]:
    flags = Counter(flag for text in assembly.accepted["flags"].to_pylist() for flag in filter(None, text.split(",")))
    notes = [LEAK] if work.split == "slice" else []
    notes += [f"{count} accepted slices are flagged {flag}" for flag, count in flags.most_common()]
    if assembly.unmatched:
        notes.append(f"{assembly.unmatched} labels have no file")
    if work.labels.collapsed:
        notes.append(f"{work.labels.collapsed} label rows repeat others")
    return tuple(notes)
