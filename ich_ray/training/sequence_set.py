"""What a sequence model learns from or is measured on: features of slices, their series, labels.

Slices have the place `0 .. n - 1` in a set, series `0 .. len - 1`. A series has the label of its examination; where
none is written down, it follows from its slices.

Array shapes: features float16 `[n, d]`; targets of slices float32 `[n, labels]` and of examinations
`[series, labels]`, 0 or 1, NaN where unknown, `any` last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa

from ich_ray.data.dataset import SliceSet
from ich_ray.data.series_order import SeriesOrder, order_of_slices
from ich_ray.data.study_labels import examined, number_studies, of_parts, one_each
from ich_ray.storage import sha256
from ich_ray.vocabulary import LABELS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ich_ray.data.dataset import PreparedDataset

__all__ = ["FeatureRows", "SequenceSet", "targets_of_slices"]


class FeatureRows(Protocol):
    """Features by place: an array, or files that are mapped."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(n, d)`."""

    def __getitem__(self, places: NDArray[np.int64], /) -> NDArray[np.float16]:
        """Of some slices, float16 `[len(places), d]`."""


@dataclass(frozen=True, eq=False)
class SequenceSet:
    """Slices of some patients.

    Attributes:
        features: of the slices.
        order: their series.
        targets: of the slices.
        study_targets: of the examination of each series.
        studies: a number of the study of each series, int64 `[series]`.
        patients: of the slices, `[n]`.
        labels: names, in the order of the targets.
        fingerprint: of all this: states go on with equal ones alone.
    """

    features: FeatureRows
    order: SeriesOrder
    targets: NDArray[np.float32]
    study_targets: NDArray[np.float32]
    studies: NDArray[np.int64]
    patients: NDArray[np.object_]
    labels: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        """How many series there are."""
        return len(self.order)

    @classmethod
    def of(
        cls,
        dataset: PreparedDataset,
        rows: NDArray[np.int64],
        features: FeatureRows,
        labels: Sequence[str],
        key: str = "",
    ) -> SequenceSet:
        """Rows of a dataset, whose labels may be of slices, of examinations or of both.

        Args:
            dataset: whose rows they are.
            rows: of slices.parquet.
            features: of these rows.
            labels: names, `any` last.
            key: of the features.
        """
        slices = SliceSet(dataset, rows)
        order = order_of_slices(dataset.slices.take(pa.array(rows)))
        targets = targets_of_slices(dataset, rows, labels)
        first = np.empty(len(order), np.int64)  # any slice of each series
        first[order.series] = np.arange(len(rows))
        written = examined(slices)[first][:, [LABELS.index(name) for name in labels]]
        written = _without_subtypes(written, written[:, -1] == 0)
        studies = one_each(number_studies(slices)[0])[first]
        of_slices = of_parts(targets, studies[order.series], int(studies.max(initial=-1)) + 1)[studies]
        told = f"{key} {dataset.manifest.fingerprint} {' '.join(labels)}"
        return cls(
            features=features,
            order=order,
            targets=targets,
            study_targets=np.where(np.isnan(written), of_slices, written),
            studies=studies,
            patients=slices.patients,
            labels=tuple(labels),
            fingerprint=sha256(f"{told} ".encode() + rows.astype("<i8").tobytes()),
        )


def targets_of_slices(dataset: PreparedDataset, rows: NDArray[np.int64], labels: Sequence[str]) -> NDArray[np.float32]:
    """Labels of slices, float32 `[n, labels]`, all NaN where none has a label of its own."""
    found = np.stack([dataset.label(name)[rows] for name in labels], 1)
    if dataset.manifest.level != "slice":
        found[:] = np.nan
    return _without_subtypes(found, found[:, -1] == 0)


def _without_subtypes(targets: NDArray[np.float32], negative: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Where there is no haemorrhage there is none of any kind, whether or not a table says so."""
    targets[np.isnan(targets) & negative[:, None]] = 0
    return targets
