"""Whole series for `predict`: seen slice by slice, then scored by the sequence model at once.

Images live for one batch, as without; what waits for the rest of its series are logits and features, a few kB a slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ich_ray.ct.slabs import SAME_MM
from ich_ray.data.sequence_features import as_stored
from ich_ray.data.series_survey import is_gap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ich_ray.bundle.sequence_scorer import SequenceAnswers
    from ich_ray.bundle.work_parts import Part

__all__ = ["SEQUENCE_FLAGS", "SeenSlices", "SeriesColumns", "SeriesScorer", "sequence_flags"]

# By a bundle with a sequence model.
SEQUENCE_FLAGS = {
    "series_incomplete": "a gap lies in its series, or a slice of it was rejected: the sequence model saw the others",
    "series_unknown": "no other slice of its series is known, or not its place: the sequence model saw it alone",
}


@dataclass(frozen=True)
class SeriesColumns:
    """What studies are made of; in no table by slice.

    Attributes:
        series_logits: raw logits by label, `any` last: of the study head for the series of the row, or without one of
            the row itself; empty for a row that is not decided.
    """

    series_logits: tuple[float, ...] = ()


class SeriesScorer(Protocol):
    """A bundle with a sequence model."""

    def seen(
        self, images: NDArray[np.uint8], rectangles: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...

    def of_series(
        self,
        own: NDArray[np.float32],
        features: NDArray[np.floating[Any]],
        series: NDArray[np.int64],
        places_mm: NDArray[np.float64],
    ) -> SequenceAnswers: ...

    def label_calibrated(self, logits: NDArray[np.float32]) -> NDArray[np.float64]: ...


class SeenSlices:
    """Logits and features of the slices of a part, until its series are whole.

    Args:
        part: whole series.
        scorer: what gives them.
    """

    def __init__(self, part: Part, scorer: SeriesScorer) -> None:
        self._scorer = scorer
        self._series = np.repeat(np.arange(len(part.lengths)), part.lengths)
        self._places_mm = np.array(part.places_mm, np.float64)
        self._held: list[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float16]]] = []

    def add(
        self, places: Sequence[int], images: NDArray[np.uint8], rectangles: NDArray[np.float32] | None = None
    ) -> None:
        """See a batch of slices at these places of the part."""
        own, features = self._scorer.seen(images, rectangles)
        self._held.append((np.array(places, np.int64), own, as_stored(features)))

    def answers(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float32]]:
        """Places of all slices that were seen, their probabilities `[n, labels]`, and logits of their series.

        A slice of which the network gives no numbers has none, and is as absent from its series as one that cannot be
        read.
        """
        if not self._held:
            return np.empty(0, np.int64), np.empty((0, 1)), np.empty((0, 1), np.float32)
        places, own, features = (np.concatenate(columns) for columns in zip(*self._held, strict=True))
        told = np.isfinite(own).all(1) & np.isfinite(features).all(1)
        probabilities, of_series = np.full(own.shape, np.nan), np.full(own.shape, np.nan, np.float32)
        if told.any():
            at = places[told]
            found = self._scorer.of_series(own[told], features[told], self._series[at], self._places_mm[at])
            probabilities[told] = self._scorer.label_calibrated(found.logits)
            of_series[told] = found.series
            probabilities[~np.isfinite(of_series).all(1)] = np.nan
        return places, probabilities, of_series


def sequence_flags(reasons: Sequence[str], part: Part) -> list[str]:
    """One of `SEQUENCE_FLAGS`, or none, for each slice of a part; some have a reason."""
    from ich_ray.ct.dicom import EXCLUSIONS  # pydicom is not needed to load a bundle

    found, begin = [""] * len(reasons), 0
    for length in part.lengths:
        places = range(begin, begin + length)
        held = [place for place in places if not reasons[place]]
        lost = any(reasons[place] and reasons[place] not in EXCLUSIONS for place in places)
        where = np.array([part.places_mm[place] for place in held], np.float64)
        known = np.isfinite(where) if len(_distinct(where)) > 1 else np.zeros(len(where), bool)
        of_known = "series_incomplete" if lost or _has_gap(where[known]) else ""
        for place, is_known in zip(held, known.tolist(), strict=True):
            found[place] = of_known if is_known else "series_unknown"
        begin += length
    return found


def _distinct(places_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places that are known, in order, each once."""
    known = np.sort(places_mm[np.isfinite(places_mm)])
    return known[np.diff(known, prepend=-np.inf) >= SAME_MM]


def _has_gap(places_mm: NDArray[np.float64]) -> bool:
    steps = np.diff(_distinct(places_mm))
    return bool(is_gap(np.zeros(len(steps), np.int64), steps).any())
