"""What a bundle says of studies: of each, what the one of its series that answers says.

That is the study head of the sequence model, or without one the highest logit of the slices of that series.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from ich_ray.data.series_survey import number_series

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["StudyLogits", "number_studies", "study_logits"]


@dataclass(frozen=True)
class StudyLogits:
    """Raw logits of the studies of some slices.

    Attributes:
        study: of each slice, a row of `logits`, int64 `[n]`.
        answering: whether the series of a slice answers for its study, bool `[n]`.
        logits: float32 `[studies, labels]`, `any` last.
    """

    study: NDArray[np.int64]
    answering: NDArray[np.bool_]
    logits: NDArray[np.float32]


def study_logits(study: NDArray[np.int64], answering: NDArray[np.bool_], logits: NDArray[np.float32]) -> StudyLogits:
    """The highest of each study's answering slices.

    Args:
        study: a number of each slice, 0 and on, `[n]`; each has a slice that answers.
        answering: which slices answer, `[n]`.
        logits: of slices or, the same for all slices of one, of their series, `[n, labels]`.
    """
    found = np.full((study.max(initial=-1) + 1, logits.shape[1]), -np.inf, np.float32)
    np.maximum.at(found, study[answering], logits[answering])
    return StudyLogits(study, answering, found)


def number_studies(slices: pa.Table) -> NDArray[np.int64]:
    """The number of the study of each slice, from 0: of one patient.

    A slice without a study belongs to that of its series; without either it stands for itself.
    """
    series = number_series(slices)
    alone = np.where(series < 0, series.max(initial=-1) + 1 + np.arange(len(slices)), series)
    if "study" not in slices.column_names:
        return np.asarray(np.unique(alone, return_inverse=True)[1], np.int64)
    codes = {name: _codes(slices, name) for name in ("patient", "study") if name in slices.column_names}
    study, patient = codes["study"], codes.get("patient", np.zeros(len(slices), np.int64))
    of_patient = patient * (int(study.max(initial=0)) + 1) + study
    named = pc.not_equal(pc.fill_null(slices["study"].cast("large_string"), ""), "").to_numpy()
    numbered = np.where(named, of_patient, of_patient.max(initial=-1) + 1 + alone)
    return np.asarray(np.unique(numbered, return_inverse=True)[1], np.int64)


def _codes(slices: pa.Table, name: str) -> NDArray[np.int64]:
    encoded = pc.dictionary_encode(pc.fill_null(slices[name].cast("large_string"), "")).combine_chunks()
    return np.asarray(encoded.indices.to_numpy(), np.int64)
