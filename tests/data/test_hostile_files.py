"""Files of a dataset that somebody else has made: refused by their description, before they are read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ich_ray.data.dataset import PreparedDataset, map_block
from ich_ray.data.feature_store import FeatureFiles, Features
from ich_ray.data.folds import development_rows
from ich_ray.errors import IntegrityError
from tests.prepared import make_dataset

IMAGES = np.arange(4 * 3 * 8 * 8, dtype=np.uint8).reshape(4, 3, 8, 8)
LZ4, ZSTD = (pa.ipc.IpcWriteOptions(compression=name) for name in ("lz4", "zstd"))


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    return make_dataset(tmp_path / "data", patients=12, size=8, blocks=4)


def tensors(images: Any = IMAGES) -> pa.ExtensionArray:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(images)


def arrow(columns: dict[str, Any], options: pa.ipc.IpcWriteOptions | None = None, times: int = 1) -> bytes:
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        for _ in range(times):
            writer.write_table(table)
    return sink.getvalue().to_pybytes()


def of_type(kind: pa.DataType, values: Any) -> pa.ExtensionArray:
    held = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), int(np.prod(kind.shape)))
    return pa.ExtensionArray.from_storage(kind, held)


def with_nulls() -> pa.ExtensionArray:
    kind = pa.fixed_shape_tensor(pa.uint8(), [3, 8, 8])
    rows = [row.reshape(-1).tolist() for row in IMAGES]
    return pa.ExtensionArray.from_storage(kind, pa.array([None, *rows[1:]], kind.storage_type))


def with_null_pixels() -> pa.ExtensionArray:
    kind = pa.fixed_shape_tensor(pa.uint8(), [3, 8, 8])
    rows = [[None, *row.reshape(-1).tolist()[1:]] for row in IMAGES]
    return pa.ExtensionArray.from_storage(kind, pa.array(rows, kind.storage_type))


WHOLE = arrow({"image": tensors()})
BLOCKS: dict[str, tuple[bytes, str]] = {
    "lz4": (arrow({"image": tensors()}, LZ4), "a compressed batch"),
    "zstd": (arrow({"image": tensors()}, ZSTD), "a compressed batch"),
    "two batches": (arrow({"image": tensors()}, times=2), "2 record batches in place of one record batch"),
    "no batch": (arrow({"image": tensors()}, times=0), "0 record batches"),
    "null images": (arrow({"image": with_nulls()}), "a batch with nulls"),
    "null pixels": (arrow({"image": with_null_pixels()}), "a batch with nulls"),
    "another column": (arrow({"pixels": tensors()}), r"the columns \['pixels'\] in place of image"),
    "two columns": (arrow({"image": tensors(), "b": tensors()}), r"the columns \['image', 'b'\]"),
    "one column twice": (
        pa.BufferReader(arrow({"image": tensors()})).read().replace(b"image", b"imagf"), "in place of image",
    ),
    "other numbers": (arrow({"image": tensors(IMAGES.astype(np.int8))}), "in place of image with tensors of uint8"),
    "no tensors": (arrow({"image": pa.array([b"a"] * 4)}), "in place of image with tensors of uint8"),
    "turned": (
        arrow({"image": of_type(pa.fixed_shape_tensor(pa.uint8(), [8, 8, 3], permutation=[2, 0, 1]), IMAGES)}),
        "in another order than they lie",
    ),
    "named dimensions": (
        arrow({"image": of_type(pa.fixed_shape_tensor(pa.uint8(), [3, 8, 8], dim_names=["a", "b", "c"]), IMAGES)}),
        "in another order than they lie",
    ),
    "a stream": (WHOLE[8:], "."),
    "half": (WHOLE[: len(WHOLE) // 2], "."),
    "nothing": (b"", "."),
    "text": (b"ARROW1 and nothing else", "."),
}  # fmt: skip


@pytest.mark.parametrize(("data", "found"), BLOCKS.values(), ids=BLOCKS)
def test_a_block_is_one_batch_of_images_as_they_lie(data: bytes, found: str, tmp_path: Path) -> None:
    path = PreparedDataset.open(make_dataset(tmp_path / "data", patients=1, size=8, blocks=1).files.root).files.root
    block = path / "blocks" / "00000.arrow"
    block.write_bytes(WHOLE)
    assert np.array_equal(map_block(block), IMAGES)
    block.write_bytes(data)
    with pytest.raises(IntegrityError, match=rf"00000\.arrow: must be a block of images, got .*{found}.*; prepare"):
        map_block(block)


def test_a_compressed_batch_is_not_inflated(tmp_path: Path) -> None:
    """256 MB of zeros in a file of a few kB: Arrow would take them before it could be asked how many they are."""
    dataset = make_dataset(tmp_path / "data", patients=1, size=8, blocks=1)
    block = dataset.files.root / "blocks" / "00000.arrow"
    data = arrow({"image": tensors(np.zeros((1, 1, 1 << 14, 1 << 14), np.uint8))}, ZSTD)
    assert len(data) < 100_000
    block.write_bytes(data)
    before, counted = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(counted)
    try:
        with pytest.raises(IntegrityError, match="a compressed batch"):
            map_block(block)
    finally:
        pa.set_memory_pool(before)
    assert counted.max_memory() < 1 << 20


def test_the_size_of_a_block_is_that_of_its_images(dataset: PreparedDataset) -> None:
    block = dataset.files.root / dataset.manifest.blocks[0].file
    with open(block, "r+b") as file:
        file.truncate(1 << 40)  # takes no place on the disk, and weeks to be read
    for use in (lambda d: d.gather(np.arange(12)), lambda d: d.verify("train")):
        with pytest.raises(IntegrityError, match=r"00000\.arrow: must be a block of images, got 1,099,511,627,776 byt"):
            use(PreparedDataset.open(dataset.files.root))
    with pytest.raises(IntegrityError, match=r"00000\.arrow: must be a block of images, got 1,099,511,627,776 bytes"):
        PreparedDataset.open(dataset.files.root, verify=True)


@pytest.mark.parametrize("name", ["dataset.json", "slices.parquet", "blocks/00001.arrow"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_not_opened(dataset: PreparedDataset, name: str, kind: str) -> None:
    file = Path(str(dataset.files.root / name))
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero")
    for verify in (False, True):
        with pytest.raises(IntegrityError, match=rf"{file.name}: (must be a file, got something else|a row per acc)"):
            PreparedDataset.open(dataset.files.root, verify=verify).gather(np.arange(48))


def replaced(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, values)


def word(table: pa.Table) -> pa.Table:
    """A few bytes that stand for a long word in every row."""
    words = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(table), np.int32)), pa.array(["x" * 1_000_000]))
    return replaced("series", words)(table)


TABLES: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "fewer rows": (lambda table: table.slice(1), "47 rows in place of 48"),
    "more rows": (lambda table: pa.concat_tables([table, table]), "96 rows in place of 48"),
    "a block of text": (replaced("block", pa.array(["0"] * 48)), "the column block must hold integers, got string"),
    "a row of floats": (replaced("row", pa.array([0.0] * 48)), "the column row must hold integers, got double"),
    "a null row": (replaced("row", pa.array([None, *[0] * 47])), "the column row must have a value in each row"),
    "a null patient": (replaced("patient", pa.array([None, *["p"] * 47])), "the column patient must have a value"),
    "patients of numbers": (replaced("patient", pa.array([1] * 48)), "the column patient must hold text, got int64"),
    "a place of text": (replaced("position_mm", pa.array(["0"] * 48)), "the column position_mm must hold numbers, got"),
    "another role": (replaced("role", pa.array(["testing"] * 48)), "the column role must hold train, validation"),
    "a label of 2": (replaced("any", pa.array([2] * 48, pa.int8())), "the column any must hold 0 and 1"),
    "a label of half": (replaced("subdural", pa.array([0.5] * 48)), "the column subdural must hold integers"),
    "no label": (replaced("any", pa.array([None] * 48, pa.int8())), "the column any must have a value in each row"),
    "a block below 0": (replaced("block", pa.array([-1] * 48)), "each slice must lie in a block, got one outside"),
    "a block beyond": (replaced("block", pa.array([1 << 62] * 48)), "each slice must lie in a block, got one"),
    "two in one place": (replaced("row", pa.array([0] * 48)), "each slice must lie in a block, got two in one"),
    "lists": (replaced("series", pa.array([["a"]] * 48)), "a column 'series' of list"),
    "a long word": (word, "up to 48,.* bytes of text"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "found"), TABLES.values(), ids=TABLES)
def test_slices_are_those_of_the_manifest(
    dataset: PreparedDataset, change: Callable[[pa.Table], pa.Table], found: str
) -> None:
    path = str(dataset.files.slices)
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(IntegrityError, match=rf"slices\.parquet: .*{found}"):
        PreparedDataset.open(dataset.files.root).gather(np.arange(48))
    with pytest.raises(IntegrityError, match=r"slices\.parquet: .*"):
        PreparedDataset.open(dataset.files.root, verify=True)


def test_a_manifest_without_a_role_has_no_slices_of_it(dataset: PreparedDataset) -> None:
    manifest = Path(str(dataset.files.manifest))
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"roles": {}}))
    assert PreparedDataset.open(dataset.files.root).manifest.roles["test"].slices == 0


def test_a_block_is_named_once(dataset: PreparedDataset) -> None:
    manifest = Path(str(dataset.files.manifest))
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(told | {"blocks": told["blocks"] * 2}))
    with pytest.raises(IntegrityError, match=r"each block must be named once at blocks; prepare the dataset again"):
        PreparedDataset.open(dataset.files.root)


@pytest.mark.parametrize(
    "values", [{"shape": []}, {"shape": [-1, -4]}, {"rows_a_file": 0}, {"shape": [1 << 62]}, {"rows_a_file": 1 << 70}]
)
def test_what_features_say_of_sizes_is_compared(dataset: PreparedDataset, values: dict[str, Any]) -> None:
    files = FeatureFiles.of(dataset, "5" * 24)
    files.write(0, np.ones((len(development_rows(dataset)), 4), np.float32))
    files.finish(dataset, (4,))
    rows = development_rows(dataset)[:3]
    found = Features.open(dataset, "5" * 24)
    assert found is not None
    assert np.array_equal(found.gather(rows), np.ones((3, 4), np.float32))
    manifest = Path(str(files.manifest))
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **values}))
    with pytest.raises(IntegrityError, match=r"features\.json: |00000\.arrow: must hold features, got"):
        Features.open(dataset, "5" * 24).gather(rows)  # type: ignore[union-attr]
