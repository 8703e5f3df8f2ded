"""Features of slices of a dataset, computed once and mapped by everybody who shares them.

Beside the blocks of a dataset, in `DATASET/features/`, a folder for each key and set of rows: Arrow files of float32
features, and features.json, written last. The key says what computed them, which may be any network; that of frozen
layers is in training/frozen_features.py.

Array shapes: features are float32 `[n, *shape]`.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from ich_ray.data.folds import development_rows
from ich_ray.data.read_ahead import ask_for
from ich_ray.data.tensor_files import malformed, map_tensors
from ich_ray.errors import ConfigError, IntegrityError
from ich_ray.storage import (
    Count,
    FeaturesKey,
    Fingerprint,
    Record,
    Sha256,
    is_local,
    read_record,
    sha256,
    write_json,
    writing,
)

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from upath import UPath

    from ich_ray.data.dataset import PreparedDataset

__all__ = ["FeatureBatches", "FeatureFiles", "Features", "FeaturesInMemory", "check_room", "kept_shapes"]

# A file of 65,536 features (layer3 of a ResNet50 at 128 pixels) is then 67 MB: few files, and a task each.
ROWS_A_FILE = 256
# Far beyond what any network makes of an image of 1024 x 1024; a received record may say no more.
_MOST_ROWS_A_FILE = 2**16
_LONGEST_SIDE = 2**16
# What else writes to the disk meanwhile: checkpoints of the trials that are to use them.
_SPARED = 0.1


class FeaturesRecord(Record):
    """features.json: rows of slices.parquet in order, `rows_a_file` in each, `shape` of a slice.

    Attributes:
        rows_sha256: of the numbers of these rows, as int64; empty for those of train and validation patients, which are
            all that version 0.1.0 knew.
    """

    format: Literal[1] = 1
    key: FeaturesKey
    fingerprint: Fingerprint
    slices: Count
    rows_sha256: Sha256 | Literal[""] = ""
    rows_a_file: int = Field(ge=1, le=_MOST_ROWS_A_FILE)
    shape: tuple[Annotated[int, Field(ge=1, le=_LONGEST_SIDE)], ...] = Field(min_length=1, max_length=4)


@dataclass(frozen=True, eq=False)
class FeatureFiles:
    """Where the features of one key lie. `manifest` is written last: without it there are none.

    Attributes:
        rows: of slices.parquet, in their order, int64 `[n]`.
        rows_sha256: see `FeaturesRecord`.
    """

    root: UPath
    key: str
    rows: NDArray[np.int64]
    rows_sha256: str

    @classmethod
    def of(cls, dataset: PreparedDataset, key: str, rows: NDArray[np.int64] | None = None) -> FeatureFiles:
        """Those of a key and of these rows, of train and validation patients if none are given."""
        shared = development_rows(dataset)
        wanted = shared if rows is None else np.unique(rows)
        digest = "" if np.array_equal(wanted, shared) else sha256(wanted.astype("<i8").tobytes())
        folder = f"{key}-{digest[:12]}" if digest else key
        return cls(dataset.files.root / "features" / folder, key, wanted, digest)

    @property
    def count(self) -> int:
        """How many files there are to be."""
        return -(-len(self.rows) // ROWS_A_FILE)

    def rows_of(self, number: int) -> NDArray[np.int64]:
        """The rows whose features one file holds."""
        return self.rows[number * ROWS_A_FILE : (number + 1) * ROWS_A_FILE]

    @property
    def manifest(self) -> UPath:
        return self.root / "features.json"

    @property
    def lock(self) -> UPath:
        return self.root / ".lock"

    def block(self, number: int) -> UPath:
        return self.root / f"{number:05d}.arrow"

    def write(self, number: int, features: NDArray[np.float32]) -> None:
        """One file, whole or not at all."""
        table = pa.table({"features": pa.FixedShapeTensorArray.from_numpy_ndarray(features)})
        with writing(self.block(number)) as file, pa.ipc.new_file(file, table.schema) as sink:
            sink.write_table(table)

    def finish(self, dataset: PreparedDataset, shape: tuple[int, ...]) -> None:
        """Say that all files are there."""
        record = FeaturesRecord(
            key=self.key,
            fingerprint=dataset.manifest.fingerprint,
            slices=len(self.rows),
            rows_sha256=self.rows_sha256,
            rows_a_file=ROWS_A_FILE,
            shape=shape,
        )
        write_json(self.manifest, record.model_dump(mode="json"))


def kept_shapes(dataset: PreparedDataset) -> set[tuple[int, ...]]:
    """Shapes of the features beside a dataset that are whole.

    Raises:
        IntegrityError: a features.json is damaged.
    """
    found = (dataset.files.root / "features").glob("*/features.json")
    return {read_record(path, FeaturesRecord, "remove the folder; they are computed again").shape for path in found}


def check_room(dataset: PreparedDataset, slices: int, shape: tuple[int, ...]) -> int:
    """Bytes that the features of so many slices need on the disk of their dataset.

    Raises:
        ConfigError: they do not fit, or the dataset lies on object storage.
    """
    root = dataset.files.root
    if not is_local(root):
        raise ConfigError(
            f"{root}: features of frozen layers are kept beside a dataset in a folder, got object storage; leave out "
            "--share-trunks"
        )
    needed = slices * math.prod(shape) * 4
    free = int(shutil.disk_usage(str(root)).free * (1 - _SPARED))
    if needed > free:
        raise ConfigError(
            f"{root}: {needed / 1e9:,.1f} GB must be free for features {'x'.join(map(str, shape))} of "
            f"{slices:,} slices, got {free / 1e9:,.1f}; freeze more layers, prepare smaller "
            "images or leave out --share-trunks"
        )
    return needed


class Features:
    """Features opened for reading; files are mapped when first read."""

    def __init__(self, files: FeatureFiles, record: FeaturesRecord) -> None:
        self.files, self.record, self._rows = files, record, files.rows
        self._mapped: dict[int, NDArray[np.float32]] = {}

    @classmethod
    def open(cls, dataset: PreparedDataset, key: str, rows: NDArray[np.int64] | None = None) -> Features | None:
        """The features of a key and of some rows, see `FeatureFiles.of`; None if they are not whole.

        Raises:
            IntegrityError: features.json is damaged or speaks of another dataset or of other rows.
        """
        files = FeatureFiles.of(dataset, key, rows)
        if not is_local(files.root) or not files.manifest.exists():
            return None
        record = read_record(files.manifest, FeaturesRecord, "remove the folder; they are computed again")
        found = (record.key, record.fingerprint, record.slices, record.rows_sha256)
        if found != (key, dataset.manifest.fingerprint, len(files.rows), files.rows_sha256):
            raise IntegrityError(
                f"{files.manifest}: must be of {key}, this dataset and these rows, got {record.key}; remove the folder"
            )
        return cls(files, record)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.record.shape

    @cached_property
    def _place(self) -> NDArray[np.int64]:
        """Place of each row of slices.parquet among the features, -1 for those without."""
        place = np.full(int(self._rows.max(initial=-1)) + 1, -1, np.int64)
        place[self._rows] = np.arange(len(self._rows))
        return place

    def covers(self, rows: NDArray[np.int64]) -> bool:
        """Whether there are features of all these rows."""
        return bool(len(rows) == 0 or (rows.max() < len(self._place) and (self._place[rows] >= 0).all()))

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Features of rows of slices.parquet, float32 `[len(rows), *shape]`."""
        files, within = np.divmod(self._place[rows], self.record.rows_a_file)
        blocks = {number: self._block(number) for number in np.unique(files).tolist()}  # of the shape that is allocated
        out = np.empty((len(rows), *self.shape), np.float32)
        for number, block in blocks.items():
            held = np.flatnonzero(files == number)
            out[held] = block[within[held]]
        return out

    def read_ahead(self, rows: NDArray[np.int64]) -> None:
        """Have features read that `gather` will soon be asked for, and return at once."""
        files, within = np.divmod(self._place[rows], self.record.rows_a_file)
        of_each = 4 * math.prod(self.shape)
        starts = {number: self._block(number).ctypes.data for number in np.unique(files).tolist()}
        places = zip(files.tolist(), within.tolist(), strict=True)
        ask_for([starts[number] + place * of_each for number, place in places], [of_each] * len(rows))

    def _block(self, number: int) -> NDArray[np.float32]:
        if number not in self._mapped:
            path = self.files.block(number)
            first = number * self.record.rows_a_file
            expected = (min(self.record.rows_a_file, len(self._rows) - first), *self.shape)
            remedy = f"remove {self.files.root}"
            with malformed(path, "must hold features", remedy):
                self._mapped[number] = map_tensors(path, "features", np.float32, expected, remedy)
        return self._mapped[number]


class FeaturesInMemory:
    """Features of a few rows that one process has computed for itself."""

    def __init__(self, rows: NDArray[np.int64], features: NDArray[np.float32]) -> None:
        self._rows, self._features = rows, features

    def covers(self, rows: NDArray[np.int64]) -> bool:
        return bool(np.isin(rows, self._rows).all())

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Features of rows of slices.parquet, float32 `[len(rows), *shape]`."""
        return np.asarray(self._features[np.searchsorted(self._rows, rows)])

    def read_ahead(self, rows: NDArray[np.int64]) -> None:
        """They are in memory."""


class FeatureBatches:
    """Batches of features in the place of batches of images, see `data.image_store.ImageStore`."""

    where: Literal["host"] = "host"
    held_bytes = 0

    def __init__(self, features: Features | FeaturesInMemory, device: torch.device) -> None:
        self._features, self._device = features, device

    def take(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """float32 `[len(rows), *shape]` on the device."""
        import torch

        return torch.from_numpy(self._features.gather(rows)).to(self._device)

    def will_take(self, rows: NDArray[np.int64]) -> None:
        """See `ImageStore.will_take`."""
        self._features.read_ahead(rows)
