"""Store features of frozen layers: computed once, mapped by every trial that shares them.

Beside the blocks of a dataset, in `DATASET/features/<key>/`: Arrow files of float32 features, and features.json,
written last. Knows arrays, rows and a key; which layers made the features is known to training/frozen_features.py.

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
from ich_ray.data.tensor_files import MALFORMED, map_tensors
from ich_ray.errors import ConfigError, IntegrityError
from ich_ray.storage import Count, FeaturesKey, Fingerprint, Record, is_local, read_record, write_json, writing

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from upath import UPath

    from ich_ray.data.dataset import PreparedDataset, SliceSet

__all__ = ["FeatureFiles", "FeatureImages", "Features", "FeaturesInMemory", "check_room"]

# A file of 65,536 features (layer3 of a ResNet50 at 128 pixels) is then 67 MB: few files, and a task each.
ROWS_A_FILE = 256
# Far beyond what any network makes of an image of 1024 x 1024; a received record may say no more.
_MOST_ROWS_A_FILE = 2**16
_LONGEST_SIDE = 2**16
# What else writes to the disk meanwhile: checkpoints of the trials that are to use them.
_SPARED = 0.1


class FeaturesRecord(Record):
    """features.json: rows of slices.parquet in order, `rows_a_file` in each, `shape` of a slice."""

    format: Literal[1] = 1
    key: FeaturesKey
    fingerprint: Fingerprint
    slices: Count
    rows_a_file: int = Field(ge=1, le=_MOST_ROWS_A_FILE)
    shape: tuple[Annotated[int, Field(ge=1, le=_LONGEST_SIDE)], ...] = Field(min_length=1, max_length=4)


@dataclass(frozen=True)
class FeatureFiles:
    """Where the features of one key lie. `manifest` is written last: without it there are none."""

    root: UPath
    key: str

    @classmethod
    def of(cls, dataset: PreparedDataset, key: str) -> FeatureFiles:
        return cls(dataset.files.root / "features" / key, key)

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
            slices=len(development_rows(dataset)),
            rows_a_file=ROWS_A_FILE,
            shape=shape,
        )
        write_json(self.manifest, record.model_dump(mode="json"))


def check_room(dataset: PreparedDataset, shape: tuple[int, ...]) -> int:
    """Bytes that the features of a dataset need on its disk.

    Raises:
        ConfigError: they do not fit, or the dataset lies on object storage.
    """
    root = dataset.files.root
    if not is_local(root):
        raise ConfigError(
            f"{root}: features of frozen layers are kept beside a dataset in a folder, got object storage; leave out "
            "--share-trunks"
        )
    needed = len(development_rows(dataset)) * math.prod(shape) * 4
    free = int(shutil.disk_usage(str(root)).free * (1 - _SPARED))
    if needed > free:
        raise ConfigError(
            f"{root}: {needed / 1e9:,.1f} GB must be free for features {'x'.join(map(str, shape))} of "
            f"{len(development_rows(dataset)):,} slices, got {free / 1e9:,.1f}; freeze more layers, prepare smaller "
            "images or leave out --share-trunks"
        )
    return needed


class Features:
    """Features opened for reading; files are mapped when first read."""

    def __init__(self, files: FeatureFiles, record: FeaturesRecord, rows: NDArray[np.int64]) -> None:
        self.files, self.record, self._rows = files, record, rows
        self._mapped: dict[int, NDArray[np.float32]] = {}

    @classmethod
    def open(cls, dataset: PreparedDataset, key: str) -> Features | None:
        """Those of a key, None if they are not there whole.

        Raises:
            IntegrityError: features.json is damaged or speaks of another dataset.
        """
        files = FeatureFiles.of(dataset, key)
        if not is_local(files.root) or not files.manifest.exists():
            return None
        record = read_record(files.manifest, FeaturesRecord, "remove the folder; they are computed again")
        rows = development_rows(dataset)
        if (record.key, record.fingerprint, record.slices) != (key, dataset.manifest.fingerprint, len(rows)):
            raise IntegrityError(
                f"{files.manifest}: must be of {key} and this dataset, got {record.key}; remove the folder"
            )
        if not 1 <= record.rows_a_file <= _MOST_ROWS_A_FILE or min(record.shape, default=0) < 1:
            raise IntegrityError(
                f"{files.manifest}: 1 <= rows_a_file <= {_MOST_ROWS_A_FILE} and a positive shape must hold, got "
                f"{str(record.rows_a_file)[:20]} and {str(list(record.shape))[:80]}; remove the folder"
            )
        return cls(files, record, rows)

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

    def _block(self, number: int) -> NDArray[np.float32]:
        if number not in self._mapped:
            path = self.files.block(number)
            first = number * self.record.rows_a_file
            expected = (min(self.record.rows_a_file, len(self._rows) - first), *self.shape)
            try:
                found = map_tensors(path, "features", np.float32, expected, f"remove {self.files.root}")
            except MALFORMED as error:
                said = str(error).strip().partition("\n")[0] or type(error).__name__
                raise IntegrityError(f"{path}: must hold features, got {said}; remove {self.files.root}") from None
            self._mapped[number] = found
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


class FeatureImages:
    """Batches of features in the place of batches of images, see `data.dataset.PlacedImages`."""

    where = "host"

    def __init__(self, features: Features | FeaturesInMemory, slices: SliceSet, device: torch.device) -> None:
        self._features, self._slices, self._device = features, slices, device

    def take(self, positions: NDArray[np.int64]) -> torch.Tensor:
        """float32 `[len(positions), *shape]` on the device."""
        import torch

        return torch.from_numpy(self._features.gather(self._slices.rows[positions])).to(self._device)
