"""Small prepared datasets made without DICOM, for tests of everything after `prepare`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ich_ray.ct.windowing import DEFAULT_WINDOWS, parse_windows
from ich_ray.data.dataset import BlockRecord, DatasetManifest, PreparedDataset, RoleCounts, map_block
from ich_ray.data.slice_table import VIEW
from ich_ray.storage import DatasetFiles, locate, sha256, write_json
from ich_ray.vocabulary import LABELS, ROLES

SLICES_A_PATIENT = 4


def squares(rng: np.random.Generator, size: int, positive: NDArray[np.bool_]) -> NDArray[np.uint8]:
    images = rng.normal(90, 30, (len(positive), 3, size, size))
    side = size // 4
    for index in np.flatnonzero(positive):
        y, x = rng.integers(0, size - side, 2)
        images[index, :2, y : y + side, x : x + side] += 45
    return images.clip(0, 255).astype(np.uint8)


def make_dataset(
    folder: Path,
    patients: int = 60,
    size: int = 32,
    seed: int = 0,
    blocks: int = 2,
    images: NDArray[np.uint8] | None = None,
) -> PreparedDataset:
    """Noise, with a brighter square where `any` is positive, which a small network learns in seconds; or `images`."""
    rng = np.random.default_rng(seed)
    files = DatasetFiles(locate(folder))
    files.blocks.mkdir(parents=True)
    count = patients * SLICES_A_PATIENT
    patient = np.repeat(np.arange(patients), SLICES_A_PATIENT)
    labels = np.zeros((count, len(LABELS)), np.int8)
    positive = rng.random(count) < 0.35
    labels[positive, rng.integers(0, len(LABELS) - 1, positive.sum())] = 1
    labels[:, -1] = positive
    images = squares(rng, size, positive) if images is None else images
    role = np.array(ROLES, object)[np.searchsorted([0.55, 0.7, 0.85], patient / patients, side="right")]
    records, block_of, row_of = [], np.zeros(count, np.int32), np.zeros(count, np.int32)
    for block, rows in enumerate(np.array_split(np.arange(count), blocks)):
        path = files.blocks / f"{block:05d}.arrow"
        table = pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(images[rows])})
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        block_of[rows], row_of[rows] = block, np.arange(len(rows))
        records.append(BlockRecord(file=f"blocks/{path.name}", rows=len(rows), sha256=sha256(path)))
    table = pa.table(
        {
            "slice_id": [f"ID_{index:06x}" for index in range(count)],
            "file": [f"ID_{index:06x}.dcm" for index in range(count)],
            "patient": [f"p{seed}{index:04d}" for index in patient],  # another seed, other patients
            "study": [f"t{index:04d}" for index in patient],
            "series": [f"s{index:04d}" for index in patient],
            "position_mm": np.tile(np.arange(SLICES_A_PATIENT, dtype=np.float32) * 5, patients),
            "role": role.tolist(),
            "fold": pa.array(patient % 5, pa.int8()),
            **{name: labels[:, column] for column, name in enumerate(LABELS)},
            "block": block_of,
            "row": row_of,
            "flags": [""] * count,
            "representation": np.where(patient % 3 == 0, "uint12", "int16").tolist(),
        }
    )
    pq.write_table(table, str(files.slices))
    rejected = pa.table({name: pa.array([], pa.string()) for name in ("file", "reason", "detail")})
    pq.write_table(rejected, str(files.rejected))
    manifest = DatasetManifest(
        fingerprint=sha256(images.tobytes())[:32],
        size=size,
        windows=parse_windows(DEFAULT_WINDOWS),
        blocks=tuple(records),
        listed=count,
        accepted=count,
        rejected=0,
        duplicate=0,
        excluded=0,
        reasons={},
        roles={
            name: RoleCounts(
                slices=int((role == name).sum()),
                patients=len(set(patient[role == name])),
                positives=int(positive[role == name].sum()),
            )
            for name in ROLES
        },
        labels={name: int(labels[:, column].sum()) for column, name in enumerate(LABELS)},
        seed=seed,
        versions={},
        created=0.0,
    )
    write_json(files.manifest, manifest.model_dump(mode="json"))
    return PreparedDataset.open(folder)


def every_image(dataset: PreparedDataset) -> NDArray[np.uint8]:
    """In the order of slices.parquet, block after block and not gathered."""
    return np.concatenate([map_block(dataset.files.root / block.file) for block in dataset.manifest.blocks])


def with_views(
    dataset: PreparedDataset, boxes: NDArray[np.float64] | None, side_mm: NDArray[np.float64] | None
) -> PreparedDataset:
    """The dataset, with these columns of `data.slice_table.VIEW` beside the others."""
    table = dataset.slices
    for place, name in enumerate(VIEW):
        values = side_mm if name == "side_mm" else boxes if boxes is None else boxes[:, place - 1]
        if values is not None:
            table = table.append_column(name, pa.array(values, pa.float32()))
    pq.write_table(table, str(dataset.files.slices))
    return PreparedDataset.open(dataset.files.root)
