"""Pooled features of slices and the logits of the network that made them, in files that are mapped.

In a folder that the caller names: of each part of the rows an Arrow file of float16 features and one of float32 logits,
and features.json, written last: without it there are none. The key says what computed them. Parts may be made by
several tasks at once, each its own.

Array shapes: features float16 `[n, d]`, logits float32 `[n, labels]`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from ich_ray.data.tensor_files import malformed, map_tensors
from ich_ray.errors import IntegrityError
from ich_ray.storage import Count, Fingerprint, Record, Sha256, is_local, read_record, sha256, write_json, writing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from upath import UPath

    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.vocabulary import TtaView

__all__ = ["SequenceFeatureFiles", "SequenceFeatures", "SomeFeatures", "as_stored", "sequence_features_key"]

_KINDS: dict[str, type[np.floating]] = {"features": np.float16, "logits": np.float32}
# Of 2,048 features 16 MB: a task of seconds for a network on a CPU.
ROWS_A_PART = 4096
_MOST_ROWS_A_PART, _MOST_FEATURES, _MOST_LABELS = 2**24, 2**20, 64
_REMEDY = "remove the folder; they are computed again"


class SequenceFeaturesRecord(Record):
    """features.json of a sequence search: rows of slices.parquet in order, `rows_a_part` in each file.

    Attributes:
        key: see `sequence_features_key`.
        fingerprint: of the dataset.
        rows_sha256: of the numbers of these rows, as int64.
        features: of a slice.
        labels: of the network.
    """

    format: Literal[1] = 1
    key: Sha256
    fingerprint: Fingerprint
    slices: Count
    rows_sha256: Sha256
    rows_a_part: int = Field(ge=1, le=_MOST_ROWS_A_PART)
    features: int = Field(ge=1, le=_MOST_FEATURES)
    labels: int = Field(ge=1, le=_MOST_LABELS)


def sequence_features_key(
    weights_sha256: str, parameters: Hyperparameters, fingerprint: str, tta: Sequence[TtaView] = ()
) -> str:
    """What computed features: equal for equal weights, network, dataset and views.

    Args:
        weights_sha256: of the file of the weights.
        parameters: of the network.
        fingerprint: of the dataset.
        tta: the views over which logits and features are averaged.
    """
    told = [weights_sha256, parameters.identity(), fingerprint, sorted(tta)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def as_stored(features: NDArray[np.floating]) -> NDArray[np.float16]:
    """Features as they are kept for training: float16, NaN where there is no number.

    Those beyond become its largest number.
    """
    limit = np.finfo(np.float16).max
    return np.asarray(np.clip(features, -limit, limit), np.float16)


@dataclass(frozen=True, eq=False)
class SequenceFeatureFiles:
    """Where the features of some rows lie.

    Attributes:
        root: the folder.
        key: see `sequence_features_key`.
        fingerprint: of the dataset.
        rows: of slices.parquet, ascending, int64 `[n]`.
    """

    root: UPath
    key: str
    fingerprint: str
    rows: NDArray[np.int64]

    @property
    def count(self) -> int:
        """How many parts there are to be."""
        return -(-len(self.rows) // ROWS_A_PART)

    @property
    def manifest(self) -> UPath:
        return self.root / "features.json"

    @property
    def lock(self) -> UPath:
        return self.root / ".lock"

    def rows_of(self, number: int) -> NDArray[np.int64]:
        """The rows of a part."""
        return self.rows[number * ROWS_A_PART : (number + 1) * ROWS_A_PART]

    def file(self, number: int, column: Literal["features", "logits"]) -> UPath:
        return self.root / f"{number:05d}.{column}.arrow"

    def is_there(self, number: int) -> bool:
        """Whether a part need not be made again."""
        return self.file(number, "features").exists() and self.file(number, "logits").exists()

    def write(self, number: int, features: NDArray[np.floating], logits: NDArray[np.floating]) -> None:
        """A part, each file whole or not at all; features beyond float16 become its largest number."""
        tables = {
            "features": as_stored(features),
            "logits": logits.astype(np.float32).reshape(len(logits), -1),
        }
        for column, values in tables.items():
            path = self.file(number, "features" if column == "features" else "logits")
            table = pa.table({column: pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))})
            with writing(path) as file, pa.ipc.new_file(file, table.schema) as sink:
                sink.write_table(table)

    def finish(self) -> None:
        """Say that all parts are there, each as wide as the first.

        Raises:
            IntegrityError: the first is damaged.
        """
        record = SequenceFeaturesRecord(
            key=self.key,
            fingerprint=self.fingerprint,
            slices=len(self.rows),
            rows_sha256=_digest(self.rows),
            rows_a_part=ROWS_A_PART,
            features=self._width("features"),
            labels=self._width("logits"),
        )
        write_json(self.manifest, record.model_dump(mode="json"))

    def _width(self, column: Literal["features", "logits"]) -> int:
        path = self.file(0, column)
        with malformed(path, f"must hold {column}", _REMEDY):
            return int(map_tensors(path, column, _KINDS[column], remedy=_REMEDY).shape[1])


def _digest(rows: NDArray[np.int64]) -> str:
    return sha256(rows.astype("<i8").tobytes())


class SequenceFeatures:
    """Features opened for reading; files are mapped when first read."""

    def __init__(self, files: SequenceFeatureFiles, record: SequenceFeaturesRecord) -> None:
        self.files, self.record = files, record
        self._mapped: dict[tuple[str, int], NDArray[np.floating]] = {}

    @classmethod
    def open(cls, files: SequenceFeatureFiles) -> SequenceFeatures | None:
        """Features that are whole; None where they are not, or not of this key, dataset and rows.

        Raises:
            IntegrityError: features.json is damaged.
        """
        if not is_local(files.root) or not files.manifest.exists():
            return None
        record = read_record(files.manifest, SequenceFeaturesRecord, _REMEDY)
        wanted = (files.key, files.fingerprint, len(files.rows), _digest(files.rows), ROWS_A_PART)
        found = (record.key, record.fingerprint, record.slices, record.rows_sha256, record.rows_a_part)
        return cls(files, record) if found == wanted else None

    def of_rows(self, rows: NDArray[np.int64]) -> SomeFeatures:
        """Features of rows of slices.parquet, each of which must be among them.

        Raises:
            IntegrityError: one is not.
        """
        return SomeFeatures(self, self._places(rows))

    def logits(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """What the network itself says of rows of slices.parquet, float32 `[len(rows), labels]`."""
        return np.asarray(self.gathered("logits", self._places(rows)), np.float32)

    def gathered(self, column: Literal["features", "logits"], places: NDArray[np.int64]) -> NDArray[np.floating]:
        """A column at places among all rows."""
        kind, width = self._kind(column)
        out = np.empty((len(places), width), kind)
        parts, within = np.divmod(places, ROWS_A_PART)
        for number in np.unique(parts).tolist():
            held = np.flatnonzero(parts == number)
            out[held] = self._part(column, number)[within[held]]
        return out

    def _places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        places = np.searchsorted(self.files.rows, rows)
        inside = places < len(self.files.rows)
        if not (inside.all() and (self.files.rows[places[inside]] == rows[inside]).all()):
            raise IntegrityError(f"{self.files.manifest}: features of all slices must be there; {_REMEDY}")
        return places

    def _kind(self, column: Literal["features", "logits"]) -> tuple[type[np.floating], int]:
        return _KINDS[column], self.record.features if column == "features" else self.record.labels

    def _part(self, column: Literal["features", "logits"], number: int) -> NDArray[np.floating]:
        if (column, number) not in self._mapped:
            path, (kind, width) = self.files.file(number, column), self._kind(column)
            shape = (len(self.files.rows_of(number)), width)
            with malformed(path, f"must hold {column}", _REMEDY):
                self._mapped[column, number] = map_tensors(path, column, kind, shape, _REMEDY)
        return self._mapped[column, number]


@dataclass(frozen=True, eq=False)
class SomeFeatures:
    """Features of some slices, read like an array of float16 `[n, d]` when they are asked for."""

    all: SequenceFeatures
    places: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.places), self.all.record.features

    def __getitem__(self, positions: NDArray[np.int64], /) -> NDArray[np.float16]:
        return np.asarray(self.all.gathered("features", self.places[positions]), np.float16)
