"""Prepare a dataset from files: the only road from DICOM to training.

Runs once, on as many CPUs as Ray has. Ray Data maps fixed chunks of paths over decode_chunk.run_chunk; this process
checks what was asked, lists, and hands the rows to join.py and write.py. A killed run leaves no dataset.json, and the
next one goes on with the whole blocks.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ich_ray import progress
from ich_ray.ct.decoder import missing_decoders
from ich_ray.ct.pixels import COMPRESSED
from ich_ray.ct.windowing import DEFAULT_WINDOWS, WindowSpec, parse_windows
from ich_ray.data.dataset import LARGEST_SIZE, THICKEST_SLAB_MM, PreparedDataset
from ich_ray.data.identities import check_identities
from ich_ray.data.prepare.chunk_slices import packed, unpacked
from ich_ray.data.prepare.decode_chunk import NO_IMAGE, ROWS, ChunkJob, finished_chunk, run_chunk
from ich_ray.data.prepare.examinations import check_by_slice, read_tables
from ich_ray.data.prepare.label_match import settle_rule
from ich_ray.data.prepare.list_files import Listing, list_files
from ich_ray.data.prepare.pseudonyms import Pseudonyms
from ich_ray.data.prepare.thin_series import ThinSeries, find_thin_series
from ich_ray.data.prepare.write import Work, explain_write_errors, finish, remove_leftovers
from ich_ray.data.slice_table import GEOMETRY
from ich_ray.errors import ConfigError, IchRayError, IntegrityError, RejectionLimitError
from ich_ray.machines import ask_machines
from ich_ray.ray_data import map_in_order
from ich_ray.runtime import connected
from ich_ray.storage import DatasetFiles, Location, file_lock, is_local, locate, read_json, sha256, write_json
from ich_ray.vocabulary import LEAK

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from upath import UPath

    from ich_ray.data.prepare.label_table import LabelTable
    from ich_ray.vocabulary import Level, Split

__all__ = ["DEFAULT_LIMIT_REJECTED", "prepare"]

DEFAULT_LIMIT_REJECTED = 0.05

# A chunk is a task and a block: 256 images of 128x128x3 are 12 MB and 0.25 s, against 0.02 s for handing it out. Few
# files make smaller ones, so that all CPUs have work; the number depends on the plan alone, or a rerun elsewhere would
# not fit the blocks that are there.
_LEAST_FILES = 16
_CHUNKS = 24
_FAILED = "chunk_failed"
_OF_TABLES = {"columns", "level", "examinations"}
_UNLESS_GIVEN = {*_OF_TABLES, "slab_mm"}  # what a plan holds only then
_BESIDE_BLOCKS = {"labels", "seed", "split", *_OF_TABLES}  # what a plan may change without touching the blocks
_NOT_JUDGED = (
    ", by a version that took reformats and projections for slices: prepare into another folder to exclude them"
)


def prepare(
    images: Location,
    labels: Location,
    out: Location,
    *,
    size: int = 128,
    windows: str = DEFAULT_WINDOWS,
    seed: int = 0,
    split: Split = "patient",
    slab_mm: float = 0,
    without_preamble: bool = False,
    limit_rejected: float = DEFAULT_LIMIT_REJECTED,
    columns: Mapping[str, str | Sequence[str]] | None = None,
    level: Level | None = None,
    examinations: Location | None = None,
    address: str | None = None,
) -> PreparedDataset:
    """Decode and window every file below `images`, and write a dataset to `out`.

    A finished dataset of the same files, labels and settings is returned as it is; an unfinished one is completed.

    Args:
        images: a folder of DICOM files, at any depth and with any names.
        labels: a label table, see data/prepare/label_table.py.
        out: a folder of its own.
        size: rows and columns of the images.
        windows: see `parse_windows`.
        seed: of the roles and folds.
        split: `patient`, or `slice` to reproduce a system that was split so; it leaks, and all that follows says so.
        slab_mm: average series that are finer than half of it in HU to overlapping slabs of it, one around each slice;
            0 for none. Headers are read before, a second time.
        without_preamble: accept files that begin with their meta information, and flag them `no_preamble`.
        limit_rejected: the share of the files that may be rejected.
        columns: what columns of the label table mean, see data/prepare/label_columns.py; those of the table of
            examinations with `examinations.` in front.
        level: what a row of the label table is about, or, with `examinations`, of that table; told from their columns
            if not given.
        examinations: labels of series, studies or patients, beside labels of slices.
        address: a Ray cluster; without one, this machine.

    Raises:
        ConfigError: the settings, folders or labels cannot be used; what stood in `out` is unchanged.
        IntegrityError: the dataset in `out` is finished, but damaged.
        RejectionLimitError: too many files were rejected; the dataset is complete with the others.
        IchRayError: the disk could not be written.
    """
    specs = _checked(size, windows, limit_rejected, slab_mm)
    source, files = locate(images), DatasetFiles(locate(out))
    _check_folders(source, files)
    table, examined = read_tables(labels, examinations, columns or {}, level)
    listing = list_files(source, skip=[locate(one) for one in (labels, examinations) if one is not None])
    if not listing.files:
        got = f"only {len(listing)} entries that are refused" if len(listing) else "an empty one"
        raise ConfigError(f"{source}: a folder with DICOM files must be given, got {got}; check the path")
    plan = {**_plan(listing, locate(labels), size, specs, seed), "split": split}
    plan |= {"without_preamble": without_preamble, **({"slab_mm": float(slab_mm)} if slab_mm else {})}
    plan |= _tables_planned(columns, table, examinations, level)
    if split == "slice":
        check_by_slice(table, examined)
        progress.say(LEAK)
    if files.manifest.exists():
        _check_plan(files, plan, {*plan, *_UNLESS_GIVEN} - {"key"})
        dataset = _finished(files)
        older = not {*GEOMETRY} <= {*dataset.slices.column_names}
        progress.say(f"{files.root}: already prepared{_NOT_JUDGED if older else ''}")
        return _within_limit(dataset, limit_rejected)
    check_identities()
    table = settle_rule(table, source, listing.files, without_preamble)
    if examined is not None:
        examined = settle_rule(examined, source, listing.files, without_preamble)
    if table.said():
        progress.say(f"labels: {table.said()}")
    with file_lock(files.lock, "a dataset"):
        if files.plan.exists():
            _check_plan(files, plan, {*plan, *_UNLESS_GIVEN} - _BESIDE_BLOCKS)
        with explain_write_errors(files):
            write_json(files.plan, plan)
        _say_missing_decoders()
        identities = sha256(json.dumps(plan, sort_keys=True).encode())[:32]
        work = Work(files, _job(source, files, specs, size, plan), listing, table, identities, seed, split, examined)
        with connected(address) if slab_mm else nullcontext():  # one Ray for headers and chunks
            dataset = finish(work, _rows_of_all_files(work, address))
    return _within_limit(dataset, limit_rejected)


def _checked(size: int, windows: str, limit_rejected: float, slab_mm: float) -> tuple[WindowSpec, ...]:
    if not 1 <= size <= LARGEST_SIZE:
        raise ConfigError(f"--size: 1 <= size <= {LARGEST_SIZE} must hold, got {size}")
    if not 0 <= limit_rejected <= 1:
        raise ConfigError(f"--limit-rejected: a share from 0 to 1 must be given, got {limit_rejected:g}")
    if not 0 <= slab_mm <= THICKEST_SLAB_MM:
        raise ConfigError(f"--slab-mm: 0 <= thickness in mm <= {THICKEST_SLAB_MM:g} must hold, got {slab_mm:g}")
    return parse_windows(windows)


def _check_folders(source: UPath, files: DatasetFiles) -> None:
    if not source.is_dir():
        raise ConfigError(f"{source}: a folder of DICOM files must be there, got {_kind(source)}; check the path")
    out = files.root.resolve()
    if source.resolve() in (out, *out.parents):
        raise ConfigError(f"{files.root}: --out must lie outside the folder of the images, or it would be listed next")
    if files.root.exists() and not files.root.is_dir():
        raise ConfigError(f"{files.root}: --out must be a folder, got a file")
    others = {path.name for path in files.root.iterdir()} - {files.lock.name} if files.root.exists() else set()
    if others and not files.plan.exists():
        raise ConfigError(
            f"{files.root}: --out must be new, empty or a dataset begun by `prepare`, got {sorted(others)[0]!r} in it; "
            "choose another folder"
        )


def _kind(path: UPath) -> str:
    return "a file" if path.exists() else "nothing"


def _plan(listing: Listing, labels: UPath, size: int, windows: tuple[WindowSpec, ...], seed: int) -> dict[str, Any]:
    """Everything the result depends on, by digest: two plans that are equal make the same dataset."""
    return {
        "format": 1,
        "files": listing.digest,
        "labels": sha256(labels),
        "size": size,
        "windows": [window.model_dump() for window in windows],
        "seed": seed,
        "key": Pseudonyms.load().check,
    }


def _tables_planned(
    columns: Mapping[str, Any] | None, table: LabelTable, examinations: Location | None, level: Level | None
) -> dict[str, Any]:
    """What else a plan holds of the label tables, each where it was asked for, so that other plans are as before."""
    asked = {
        "columns": columns and sha256(json.dumps({**columns}, sort_keys=True).encode()),
        "level": table.level if table.level != "slice" else None,
        "examinations": examinations and [level, sha256(locate(examinations))],
    }
    return {name: value for name, value in asked.items() if value}


def _finished(files: DatasetFiles) -> PreparedDataset:
    """The dataset that is there; names that a run left behind, killed after it wrote the manifest, are not."""
    try:
        dataset = PreparedDataset.open(files.root)
    except IntegrityError as error:
        raise IntegrityError(f"{error} (remove {files.root} first: what is finished is not written again)") from None
    with explain_write_errors(files):
        remove_leftovers(files, dataset.manifest)
    return dataset


def _check_plan(files: DatasetFiles, plan: dict[str, Any], keys: set[str]) -> None:
    found = read_json(files.plan) if files.plan.exists() else {}
    before = {"split": "patient", "without_preamble": False, **(found if isinstance(found, dict) else {})}
    differing = sorted(key for key in keys if before.get(key) != plan.get(key))
    if differing:
        raise ConfigError(
            f"{files.root}: --out holds a dataset of other inputs or settings, got a difference in "
            f"{', '.join(differing)}; choose another folder, or remove this one"
        )


def _job(
    source: UPath, files: DatasetFiles, windows: tuple[WindowSpec, ...], size: int, plan: dict[str, Any]
) -> ChunkJob:
    blocks_of = "".join(str(plan[key]) for key in sorted(plan.keys() - _BESIDE_BLOCKS))
    names = Pseudonyms.load()
    digest = sha256(blocks_of.encode())
    slab_mm = plan.get("slab_mm", 0.0)
    return ChunkJob(source, files.blocks, windows, size, names, digest, plan["without_preamble"], slab_mm)


def _say_missing_decoders() -> None:
    """The plug-ins are dependencies of this package, but some builds of Python have no wheels of them."""
    if missing := missing_decoders(COMPRESSED):
        progress.say(
            f"no decoder is installed for transfer syntax {', '.join(missing)}: its files will be rejected as "
            "syntax_unsupported"
        )


def _chunks(files: tuple[str, ...], images_a_block: int) -> list[tuple[str, ...]]:
    length = min(max(math.ceil(len(files) / _CHUNKS), _LEAST_FILES), images_a_block)
    return [files[start : start + length] for start in range(0, len(files), length)]


def _rows_of_all_files(work: Work, address: str | None) -> pa.Table:
    """Rows of every listed file: from chunks that are whole already, then from those that Ray works on."""
    refused = [{"file": file, "frame": 0, "reason": reason, "detail": "", **NO_IMAGE}
               for file, reason in work.listing.refused]  # fmt: skip
    tables = [pa.Table.from_pylist(refused, ROWS)]
    thin = _thin_series(work.job, work.listing.files)
    chunks = dict(enumerate(_chunks(thin.files, work.job.images_a_block)))
    done = {number: table for number, files in chunks.items()
            if (table := finished_chunk(work.job, number, files)) is not None}  # fmt: skip
    tables += [table.replace_schema_metadata() for table in done.values()]
    missing = {number: files for number, files in chunks.items() if number not in done}
    count, rejected = sum(map(_files, tables)), sum(map(_rejected, tables))
    with progress.bar("Preparing", len(work.listing), "files") as advance:
        for table in _mapped(work.job, missing, address, thin) if missing else ():
            tables.append(table)
            count, rejected = count + _files(table), rejected + _rejected(table)
            advance(count, f"{rejected} rejected")
    return pa.concat_tables(tables)


def _thin_series(job: ChunkJob, files: tuple[str, ...]) -> ThinSeries:
    if not job.slab_mm:
        return ThinSeries(files)
    _ask_machines(job, files[0])
    return find_thin_series(job, files)


def _files(table: pa.Table) -> int:
    return len(set(table["file"].to_pylist()))


def _rejected(table: pa.Table) -> int:
    return sum(reason != "" for reason in table["reason"].to_pylist())


def _mapped(
    job: ChunkJob, chunks: dict[int, tuple[str, ...]], address: str | None, thin: ThinSeries
) -> Iterator[pa.Table]:
    """Rows of the chunks, in their order."""
    with connected(address):
        _ask_machines(job, next(iter(chunks.values()))[0])
        items = [
            {"number": number, "files": list(files), "slabs": packed(thin.of(files))}
            for number, files in chunks.items()
        ]
        rule, hint = "prepare: every chunk must end", "run again: finished blocks are kept"
        for table in map_in_order(items, _run_chunk, job, rule=rule, hint=hint):
            if table["reason"][0].as_py() == _FAILED:
                raise IchRayError(table["detail"][0].as_py())
            yield table


def _ask_machines(job: ChunkJob, file: str) -> None:
    """Refuse machines that do not see a file of the images, or the folder of the dataset."""
    needed = (job.images / file, DatasetFiles(job.blocks.parent).plan)
    ask_machines(_unseen, [str(path) for path in needed if is_local(path)])


def _unseen(paths: list[str]) -> str:
    """Which of the local files a machine does not see; empty if none."""
    missing = next((path for path in paths if not os.path.exists(path)), "")  # noqa: PTH110
    return f"{missing}: every machine must see this file, got none" if missing else ""


def _run_chunk(job: ChunkJob, item: dict[str, Any]) -> pa.Table:
    """One chunk, as Ray Data hands it over. Our own error travels as a row: raised, Ray would lose its type."""
    try:
        rows = run_chunk(job, item["number"], item["files"], unpacked(item["slabs"]))
        return rows.replace_schema_metadata()
    except IchRayError as error:
        return pa.Table.from_pylist([{"reason": _FAILED, "detail": str(error)}], ROWS)


def _within_limit(dataset: PreparedDataset, limit_rejected: float) -> PreparedDataset:
    manifest = dataset.manifest
    if manifest.rejected > limit_rejected * manifest.listed:
        reasons = ", ".join(f"{reason} {count}" for reason, count in list(manifest.reasons.items())[:4])
        raise RejectionLimitError(
            f"{dataset.files.root}: at most {limit_rejected:.1%} of the files may be rejected, got "
            f"{manifest.rejected} of {manifest.listed} ({reasons}); name them with `ich-ray identify "
            f"{dataset.files.root}`, then raise --limit-rejected or correct the files: the {manifest.accepted} "
            "accepted slices are kept"
        )
    return dataset
