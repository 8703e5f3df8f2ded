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
import pyarrow.compute as pc

from ich_ray.data.series_order import SeriesOrder, order_of_slices
from ich_ray.storage import sha256

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ich_ray.data.dataset import PreparedDataset

__all__ = ["FeatureRows", "SequenceSet", "examination_targets", "targets_of_slices"]


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
        slices = dataset.slices.take(pa.array(rows))
        order = order_of_slices(slices)
        targets = targets_of_slices(dataset, rows, labels)
        first = np.empty(len(order), np.int64)  # any slice of each series
        first[order.series] = np.arange(len(rows))
        written = examination_targets(dataset, slices, labels)[first]
        studies = _numbers(slices, ("patient", "study"))[first]
        told = f"{key} {dataset.manifest.fingerprint} {' '.join(labels)}"
        return cls(
            features=features,
            order=order,
            targets=targets,
            study_targets=np.where(np.isnan(written), _of_studies(targets, studies[order.series])[first], written),
            studies=studies,
            patients=np.asarray(slices["patient"].to_numpy(zero_copy_only=False), np.object_),
            labels=tuple(labels),
            fingerprint=sha256(f"{told} ".encode() + rows.astype("<i8").tobytes()),
        )


def targets_of_slices(dataset: PreparedDataset, rows: NDArray[np.int64], labels: Sequence[str]) -> NDArray[np.float32]:
    """Labels of slices, float32 `[n, labels]`, all NaN where none has a label of its own."""
    found = np.stack([dataset.label(name)[rows] for name in labels], 1)
    if dataset.manifest.level != "slice":
        found[:] = np.nan
    return _without_subtypes(found, found[:, -1] == 0)


def examination_targets(dataset: PreparedDataset, slices: pa.Table, labels: Sequence[str]) -> NDArray[np.float32]:
    """What the table of examinations says of those of slices, NaN where nothing; float32 `[n, labels]`.

    That a patient has shown blood says of none of several studies that it does.
    """
    record = dataset.manifest.examinations
    if record is None:
        return np.full((len(slices), len(labels)), np.nan, np.float32)
    table = dataset.examinations
    values = np.stack([np.asarray(pc.cast(table[name], pa.float32()).to_numpy(), np.float32) for name in labels], 1)
    values = _without_subtypes(values, values[:, -1] == 0)
    row = pc.index_in(slices[record.level].combine_chunks(), value_set=table["examination"].combine_chunks())
    found = np.append(values, np.full((1, len(labels)), np.nan, np.float32), 0)[pc.fill_null(row, -1).to_numpy()]
    if record.level == "patient":
        studies, patients = _numbers(slices, ("patient", "study")), _numbers(slices, ("patient",))
        _, first = np.unique(studies, return_index=True)
        several = np.bincount(patients[first], minlength=len(slices))[patients] > 1
        found[several[:, None] & (found == 1)] = np.nan
    return np.asarray(found)


def _without_subtypes(targets: NDArray[np.float32], negative: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Where there is no haemorrhage there is none of any kind, whether or not a table says so."""
    targets[np.isnan(targets) & negative[:, None]] = 0
    return targets


def _of_studies(targets: NDArray[np.float32], studies: NDArray[np.int64]) -> NDArray[np.float32]:
    """Of the study of each slice: positive with a positive slice, negative if all are, else unknown."""
    count = int(studies.max(initial=-1)) + 1
    positive, open_ = np.zeros((2, count, targets.shape[1]), bool)
    np.logical_or.at(positive, studies, targets == 1)
    np.logical_or.at(open_, studies, np.isnan(targets))
    found = np.where(positive, 1.0, np.where(open_, np.nan, 0.0)).astype(np.float32)
    return np.asarray(found[studies])


def _numbers(slices: pa.Table, names: Sequence[str]) -> NDArray[np.int64]:
    """A number for each combination of some columns; rows without a study are one each."""
    found = np.zeros(len(slices), np.int64)
    for name in names:
        # Codes of texts, not the texts themselves, as in data/series_survey.py.
        texts = pc.fill_null(slices[name].cast(pa.large_string()), "")
        codes = pc.dictionary_encode(texts).combine_chunks().indices.to_numpy().astype(np.int64)
        if name == "study":
            absent = pc.equal(texts, "").to_numpy()
            codes = np.where(absent, codes.max(initial=0) + 1 + np.arange(len(texts)), codes)
        found = np.unique(found * (int(codes.max(initial=0)) + 1) + codes, return_inverse=True)[1]
    return found
