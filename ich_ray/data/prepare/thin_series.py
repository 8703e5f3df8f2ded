"""Find series finer than the slabs that were asked for, and the slab around each of their slices.

Headers of all files first, by Ray Data, as a slab needs the slices beside it, wherever their files lie. Chunks then
take files by series and place, so that nearly every slice is decoded once: again only where a slab reaches into another
chunk.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ich_ray import progress
from ich_ray.ct.slabs import SeriesGeometry, SlabRule, slabs_around
from ich_ray.ct.slice_file import read_headers
from ich_ray.data.series_survey import number_series
from ich_ray.errors import Rejection
from ich_ray.ray_data import map_in_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ich_ray.ct.dicom import SliceHeader
    from ich_ray.ct.slabs import Slabs
    from ich_ray.data.prepare.chunk_slices import SlabMembers
    from ich_ray.data.prepare.decode_chunk import ChunkJob

__all__ = ["ThinSeries", "find_thin_series", "read_places", "thin_series"]

# Headers that a task reads: some 0.1 s of work.
_FILES_A_TASK = 1024

_PLACES = pa.schema(
    [
        ("file", pa.string()),
        ("frame", pa.int32()),
        ("series", pa.string()),  # digest of patient, study and series; empty where one is not known
        ("slice_id", pa.string()),
        # float32 as in `predict`, which makes the same slabs
        ("position_mm", pa.float32()),
        ("thickness_mm", pa.float32()),
        ("pixel_mm", pa.float32()),
        ("corner_mm", pa.list_(pa.float32(), 3)),
        ("normal", pa.list_(pa.float32(), 3)),
        ("rows", pa.int32()),
        ("columns", pa.int32()),
    ]
)


@dataclass(frozen=True)
class ThinSeries:
    """The files in the order in which they are best read, and the slabs around slices of thin series.

    Attributes:
        slabs: around all slices, as arrays: as `SlabMembers` they take more than twice the memory.
        keys: the file and frame of each slice.
        rows: of the slices of thin series in each file, in the order of their frames.
    """

    files: tuple[str, ...]
    slabs: Slabs | None = None
    keys: Sequence[tuple[str, int]] = ()
    rows: dict[str, list[int]] = field(default_factory=dict)

    def of(self, files: Sequence[str]) -> SlabMembers:
        """The slabs around slices of some files."""
        if self.slabs is None:
            return {}
        rows = [row for file in files for row in self.rows.get(file, ())]
        return {
            self.keys[row]: [(self.keys[member], weight) for member, weight in self.slabs.around(row)] for row in rows
        }


def read_places(job: ChunkJob, files: Sequence[str]) -> pa.Table:
    """Where the slices of files lie, by their headers; those that cannot be read have no row."""
    rows: list[dict[str, Any]] = []
    for file in files:
        try:
            headers = list(read_headers(job.images / file, job.without_preamble))
        except (Rejection, MemoryError):
            continue
        rows += [
            {"file": file, "frame": frame, **_place(header)}
            for frame, header in headers
            if not isinstance(header, Rejection)
        ]
    return pa.Table.from_pylist(rows, _PLACES)


def _place(header: SliceHeader) -> dict[str, Any]:
    taken, unknown = header.acquisition, (math.nan,) * 3
    series = json.dumps([header.patient, header.study, header.series]).encode()
    return {
        "series": hashlib.sha256(series).hexdigest()[:32] if header.patient and header.series else "",
        "slice_id": header.slice_id,
        "position_mm": taken.position_mm,
        "thickness_mm": taken.thickness_mm,
        "pixel_mm": taken.pixel_mm,
        "corner_mm": taken.position or unknown,
        "normal": taken.normal or unknown,
        "rows": header.rows,
        "columns": header.columns,
    }


def find_thin_series(job: ChunkJob, files: Sequence[str]) -> ThinSeries:
    """Read the headers of all files by Ray, which is connected, and find what is to be averaged.

    Raises:
        IchRayError: Ray could not finish.
    """
    parts = [list(files[start : start + _FILES_A_TASK]) for start in range(0, len(files), _FILES_A_TASK)]
    rule, hint = "prepare: every header must be read", "run again"
    tables = [_PLACES.empty_table()]
    with progress.bar("Reading headers", len(files), "files") as advance:
        found = map_in_order([{"files": part} for part in parts], _read_places, job, rule=rule, hint=hint)
        for number, table in enumerate(found):
            tables.append(table)
            advance(min((number + 1) * _FILES_A_TASK, len(files)))
    return thin_series(pa.concat_tables(tables), files, job.slab_mm)


def _read_places(job: ChunkJob, item: dict[str, Any]) -> pa.Table:
    return read_places(job, item["files"])


def thin_series(places: pa.Table, files: Sequence[str], slab_mm: float) -> ThinSeries:
    """Slabs of a thickness around the slices of series that are finer than half of it."""
    geometry = _geometry(places)
    slabs = slabs_around(geometry, SlabRule(slab_mm, slab_mm))
    keys = list(zip(places["file"].to_pylist(), places["frame"].to_pylist(), strict=True))
    order = np.lexsort((geometry.ranks, geometry.places_mm, geometry.series))
    thin: dict[str, list[int]] = {}
    for row in order[slabs.finer[order]].tolist():
        thin.setdefault(keys[row][0], []).append(row)
    for rows in thin.values():
        rows.sort(key=lambda row: keys[row][1])
    return ThinSeries((*thin, *(file for file in files if file not in thin)), slabs, keys, thin)


def _geometry(places: pa.Table) -> SeriesGeometry:
    lengths = {name: places[name].to_numpy().astype(np.float64) for name in ("position_mm", "thickness_mm", "pixel_mm")}
    corners, normals = (
        places[name].combine_chunks().flatten().to_numpy().reshape(-1, 3).astype(np.float64)
        for name in ("corner_mm", "normal")
    )
    return SeriesGeometry(
        series=number_series(places),
        places_mm=lengths["position_mm"],
        thickness_mm=lengths["thickness_mm"],
        corners=corners,
        normals=normals,
        sizes=np.stack([places[name].to_numpy() for name in ("rows", "columns")], 1).astype(np.int64),
        pixel_mm=lengths["pixel_mm"],
        ranks=np.unique(places["slice_id"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)[1],
    )
