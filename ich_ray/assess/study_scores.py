"""Until bundles answer for studies themselves: the maximum over slices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ich_ray.data.study_labels import studies_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.bundle.bundle import Bundle
    from ich_ray.data.dataset import SliceSet


@dataclass(frozen=True)
class StudyLogits:
    of_slice: NDArray[np.int64]
    logits: NDArray[np.float32]
    score: Literal["maximum", "study head"] = "maximum"


def study_label_logits(bundle: Bundle, slices: SliceSet, logits: NDArray[np.float32]) -> StudyLogits:
    studies = studies_of(slices)
    found = np.full((len(studies), logits.shape[1]), -np.inf, np.float32)
    named = studies.of_slice >= 0
    np.maximum.at(found, studies.of_slice[named], logits[named])
    return StudyLogits(studies.of_slice, found)
