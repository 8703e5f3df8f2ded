"""Reading a prepared dataset: any rows in any order, damage found and named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from upath import UPath

from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError, IntegrityError
from ich_ray.vocabulary import ROLES
from tests.prepared import every_image, make_dataset

COUNT = 48


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    return make_dataset(tmp_path / "data", patients=COUNT // 4, size=8, blocks=5)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.integers(0, COUNT - 1), max_size=70))
def test_gather_takes_rows_in_any_order(dataset: PreparedDataset, rows: list[int]) -> None:
    found = dataset.gather(np.array(rows, np.int64))
    assert np.array_equal(found, every_image(dataset)[rows])
    again = PreparedDataset.open(dataset.files.root)
    out = np.zeros_like(found)
    assert again.gather(np.array(rows, np.int64), out) is out
    assert np.array_equal(out, found)


def test_gather_checks_where_it_writes(dataset: PreparedDataset) -> None:
    rows = np.arange(4)
    for out in (np.empty((4, 3, 8, 7), np.uint8), np.empty((4, 3, 8, 8), np.int8), np.empty((3, 3, 8, 8), np.uint8),
                np.empty((8, 8, 3, 4), np.uint8).T):  # fmt: skip
        with pytest.raises(ValueError, match="out must be a contiguous uint8 array"):
            dataset.gather(rows, out)
    with pytest.raises(IndexError):
        dataset.gather(np.array([COUNT]))


def test_roles_are_disjoint_and_together_everything(dataset: PreparedDataset) -> None:
    sets = [dataset.role(role) for role in ROLES]
    assert sorted(np.concatenate([s.rows for s in sets]).tolist()) == list(range(COUNT))
    for one in sets:
        assert np.array_equal(one.labels, dataset.label("any")[one.rows])
        assert np.array_equal(one.gather(np.arange(len(one))), every_image(dataset)[one.rows])
        for other in sets:
            assert one is other or not set(one.patients) & set(other.patients)


def test_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds dataset\.json, got none; run `ich-ray prepare` first"):
        PreparedDataset.open(tmp_path)


def test_another_dataset_at_its_place_is_refused(dataset: PreparedDataset) -> None:
    root, own = dataset.files.root, dataset.manifest.fingerprint
    assert PreparedDataset.open(root, fingerprint=own).manifest == dataset.manifest
    with pytest.raises(IntegrityError, match=rf"the fingerprint must be f00d, .*, got {own}; put the dataset back"):
        PreparedDataset.open(root, fingerprint="f00d")


def test_damage_is_found_and_named(dataset: PreparedDataset) -> None:
    root, rows = dataset.files.root, np.arange(COUNT)
    path = root / dataset.manifest.blocks[2].file
    whole = path.read_bytes()
    path.write_bytes(whole[:-900] + bytes([whole[-900] ^ 1]) + whole[-899:])
    with pytest.raises(IntegrityError, match=r"00002.arrow: SHA-256 must equal"):
        PreparedDataset.open(root, verify=True)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IntegrityError, match=r"00002.arrow: must be a block of images"):
        PreparedDataset.open(root).gather(rows)
    path.write_bytes((root / dataset.manifest.blocks[1].file).read_bytes())
    path.write_bytes(_block(np.zeros((1, 3, 8, 8), np.uint8)))
    with pytest.raises(IntegrityError, match=r"00002.arrow: must be .* 1,178 bytes for 1,920 bytes of tensors"):
        PreparedDataset.open(root).gather(rows)
    path.unlink()
    with pytest.raises(IntegrityError, match=r"00002.arrow: a block of the dataset must be there"):
        PreparedDataset.open(root)
    path.write_bytes(whole)
    table = dataset.slices.to_pandas()
    table.loc[3, "row"] = 1000
    pq.write_table(pa.Table.from_pandas(table), str(dataset.files.slices))
    with pytest.raises(IntegrityError, match="each slice must lie in a block"):
        PreparedDataset.open(root).gather(rows)
    pq.write_table(pa.Table.from_pandas(table.drop(columns="role")), str(dataset.files.slices))
    with pytest.raises(IntegrityError, match=r"slices.parquet: a column role must be there, got none; prepare"):
        PreparedDataset.open(root).role("train")
    dataset.files.slices.unlink()
    with pytest.raises(IntegrityError, match=r"slices.parquet: a row per accepted slice must be there, got no file"):
        PreparedDataset.open(root).role("train")
    dataset.files.slices.mkdir()
    with pytest.raises(IntegrityError, match=r"slices.parquet: must be a file, got something else"):
        PreparedDataset.open(root).role("train")
    dataset.files.blocks.rename(root / "elsewhere")
    dataset.files.blocks.write_text("")
    with pytest.raises(IntegrityError, match=r"00000.arrow: a block of the dataset must be there"):
        PreparedDataset.open(root)
    dataset.files.manifest.write_text('{"format": 1}')
    with pytest.raises(IntegrityError, match="must match its format"):
        PreparedDataset.open(root)


def _block(images: np.ndarray) -> bytes:
    table = pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(images)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UPath:
    """A dataset on object storage."""
    monkeypatch.setenv("ICH_RAY_CACHE", str(tmp_path / "cache"))
    local = make_dataset(tmp_path / "local", patients=COUNT // 4, size=8, blocks=5).files.root
    root = UPath(f"memory://{tmp_path.name}/data")
    for path in local.rglob("*"):
        if path.is_file():
            target = root / str(path.relative_to(local))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return root


def test_remote_blocks_are_fetched_once_and_verified(
    tmp_path: Path, remote: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = every_image(PreparedDataset.open(tmp_path / "local"))
    one = PreparedDataset.open(remote, verify=True)
    assert np.array_equal(one.gather(np.arange(3)), expected[:3])
    cache = tmp_path / "cache" / one.manifest.fingerprint
    assert {path.stem for path in cache.glob("*.arrow")} == {one.manifest.blocks[0].sha256}
    assert np.array_equal(one.gather(np.arange(COUNT)), expected)
    for block in one.manifest.blocks:
        (remote / block.file).write_bytes(b"another")  # never read again on this node
    assert np.array_equal(PreparedDataset.open(remote).gather(np.arange(COUNT)), expected)
    first = one.manifest.blocks[0]
    (cache / f"{first.sha256}.arrow").unlink()
    with pytest.raises(IntegrityError, match=r"00000.arrow: SHA-256 must equal the manifest's"):
        PreparedDataset.open(remote).gather(np.arange(3))
    assert not (cache / f"{first.sha256}.arrow").exists()
    with pytest.raises(IntegrityError, match=r"00000.arrow: must be a block of images, got 7 bytes"):
        PreparedDataset.open(remote, verify=True)
    (remote / first.file).unlink()
    with pytest.raises(IntegrityError, match=r"00000.arrow: a block of the dataset must be there"):
        PreparedDataset.open(remote)
    with pytest.raises(IntegrityError, match=r"00000.arrow: a file of the manifest must be there"):
        one._map(0)


def test_a_slice_without_haemorrhage_has_no_subtype_whether_or_not_the_table_says_so(tmp_path: Path) -> None:
    made = make_dataset(tmp_path / "data", patients=20)
    silent = pa.nulls(len(made), pa.int8())
    table = made.slices.set_column(made.slices.column_names.index("subdural"), "subdural", silent)
    pq.write_table(table.drop_columns(["epidural"]), str(made.files.slices))
    slices = PreparedDataset.open(made.files.root).role("train")
    for column in slices.targets(["epidural", "subdural"]).T:
        assert np.array_equal(np.isnan(column), slices.labels == 1)
        assert (column[slices.labels == 0] == 0).all()
    known = slices.targets(["subarachnoid"])[:, 0]
    assert not np.isnan(known).any()
    assert known.any()
