"""What a bundle says of studies: of each, what the one of its series that answers says.

That is the study head of the sequence model, or without one the highest logit of the slices of that series.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.data.study_labels import number_studies

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.bundle.study_calibration import StudyScore
    from ich_ray.data.dataset import SliceSet

__all__ = ["StudyLogits", "study_logits"]


@dataclass(frozen=True)
class StudyLogits:
    """Raw logits of the studies of some slices.

    Attributes:
        of_slice: which study each slice is of, as in `Studies`, `[n]`; -1 where it names none.
        answering: whether the series of a slice answers for its study, bool `[n]`.
        logits: float32 `[studies, labels]`, `any` last.
        score: where they come from.
    """

    of_slice: NDArray[np.int64]
    answering: NDArray[np.bool_]
    logits: NDArray[np.float32]
    score: StudyScore


def study_logits(
    slices: SliceSet, answering: NDArray[np.bool_], logits: NDArray[np.float32], score: StudyScore
) -> StudyLogits:
    """The highest of each study's answering slices.

    Args:
        slices: of whole studies.
        answering: which of them answer, `[n]`; some of every study.
        logits: of the slices or, the same for all slices of one, of their series, `[n, labels]`.
        score: where these come from.
    """
    of_slice, _ = number_studies(slices)
    found = np.full((of_slice.max(initial=-1) + 1, logits.shape[1]), -np.inf, np.float32)
    asked = (of_slice >= 0) & answering
    np.maximum.at(found, of_slice[asked], logits[asked])
    return StudyLogits(of_slice, answering, found, score)
