"""What is known of the studies of slices: by labels of their own, else by those of their slices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ich_ray.statistics.aggregation import partners
from ich_ray.vocabulary import LABELS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.data.dataset import SliceSet

__all__ = ["LabelledStudies", "examined", "number_studies", "of_parts", "one_each", "studies_of"]

_ANY = LABELS.index("any")


@dataclass(frozen=True)
class LabelledStudies:
    """The studies of some slices, of one patient each.

    Attributes:
        of_slice: which study each slice is of, `[n]`; -1 where it names none.
        first: the position of the first slice of each, `[studies]`.
        names: pseudonyms, `[studies]`.
        patients: pseudonyms, `[studies]`.
        targets: 0 or 1 of each of `LABELS`, NaN where unknown, float32 `[studies, labels]`. A study of which a label is
            known has that one; any other shows what any of its slices shows, and lacks what all of them lack.
    """

    of_slice: NDArray[np.int64]
    first: NDArray[np.int64]
    names: NDArray[np.object_]
    patients: NDArray[np.object_]
    targets: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.first)

    def label(self, name: str) -> NDArray[np.float32]:
        """0 or 1 of each study, NaN where unknown, `[studies]`."""
        return np.asarray(self.targets[:, LABELS.index(name)])

    @property
    def unknown(self) -> int:
        """How many have no label of `any`."""
        return int(np.isnan(self.targets[:, _ANY]).sum())

    @property
    def unnamed(self) -> int:
        """How many slices name no study."""
        return int((self.of_slice < 0).sum())


def studies_of(slices: SliceSet) -> LabelledStudies:
    """The studies of slices; there is none where the dataset does not name them."""
    of_slice, first = number_studies(slices)
    named = np.flatnonzero(of_slice >= 0)
    dataset, rows = slices.dataset, slices.rows[first]
    targets = np.full((len(first), len(LABELS)), np.nan, np.float32)
    if dataset.manifest.level == "slice":
        targets = of_parts(slices.targets(LABELS)[named], of_slice[named], len(first))
    told = of_parts(examined(slices)[named], of_slice[named], len(first))
    targets = np.where(np.isnan(told), targets, told)
    targets[np.isnan(targets) & (targets[:, [_ANY]] == 0)] = 0  # without any haemorrhage none of its kinds
    names = dataset.column("study")[rows] if len(first) else np.empty(0, object)
    return LabelledStudies(of_slice, first, names, slices.patients[first], targets)


def number_studies(slices: SliceSet) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which study each slice is of, `[n]`, and the first slice of each study.

    Studies are of one patient each and numbered as they are first met; a slice that names none has -1.
    """
    table = slices.dataset.slices
    if "study" not in table.column_names or not len(slices):
        return np.full(len(slices), -1), np.empty(0, np.int64)
    taken = pa.array(slices.rows)
    texts = [pc.fill_null(table[name].take(taken).cast(pa.large_string()), "") for name in ("study", "patient")]
    study, patient = (text.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64) for text in texts)
    named = np.flatnonzero(~pc.equal(texts[0], "").to_numpy())
    _, first, which = np.unique((study * (patient.max() + 1) + patient)[named], return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    of_slice = np.full(len(slices), -1)
    of_slice[named] = place[which]
    return of_slice, named[first[order]]


def one_each(of_slice: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of studies, where a slice that names none is a study of its own."""
    return np.where(of_slice < 0, of_slice.max(initial=-1) + 1 + np.arange(len(of_slice)), of_slice)


def of_parts(values: NDArray[np.float32], of_part: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """What holds of wholes `[count, labels]` whose parts have these values `[n, labels]`: 1, 0 or NaN."""
    shown, lacking = (np.zeros((count, values.shape[1]), bool) for _ in range(2))
    np.logical_or.at(shown, of_part, values == 1)
    np.logical_or.at(lacking, of_part, values != 0)  # unknown, too
    return np.where(shown, 1, np.where(lacking, np.nan, 0)).astype(np.float32)


def examined(slices: SliceSet) -> NDArray[np.float32]:
    """Labels of the examination of each slice, `[n, labels]`, NaN where they say nothing of its study."""
    dataset, record = slices.dataset, slices.dataset.manifest.examinations
    if record is None:
        return np.full((len(slices), len(LABELS)), np.nan, np.float32)
    table = dataset.examinations
    ids = dataset.slices[record.level].take(pa.array(slices.rows)).combine_chunks()
    place = np.asarray(pc.fill_null(pc.index_in(ids, value_set=table["examination"].combine_chunks()), -1), np.int64)
    known = {name: np.asarray(table[name].to_numpy(zero_copy_only=False), np.float32) for name in LABELS}
    values = np.stack([np.append(known[name], np.nan)[place] for name in LABELS], 1)
    patients = np.asarray(table["patient"].to_numpy(zero_copy_only=False), object)
    told = np.flatnonzero(place >= 0)
    values[told[patients[place[told]] != slices.patients[told]]] = np.nan
    if record.level == "patient":
        # That a patient bleeds says of no study that it shows it, unless there is but one.
        several = partners(slices.patients.astype(str), one_each(number_studies(slices)[0])) > 1
        values[several[:, None] & (values == 1)] = np.nan
    return values
