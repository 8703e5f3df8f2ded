"""Rows of `predict` gathered by study: as probable as its most probable slice, and counted by series.

A study is mostly sent in several reconstructions, and each shows the same bleeding.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.bundle.prediction import SUBTYPE_COLUMNS, LabelledPrediction, SubtypeColumns
from ich_ray.statistics.aggregation import most_probable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ich_ray.bundle.prediction import Decision, Prediction

__all__ = ["LabelledStudyPrediction", "Studies", "StudyPrediction"]


@dataclass(frozen=True)
class StudyPrediction:
    """One study, as probable as its most probable slice, which is `file`.

    A rejected file has a row of its own.

    Attributes:
        slices, positive_slices: of all its series: a bleeding stands in each reconstruction of the study.
        series: how many it has; `positive_series`: those with a positive slice.
        most_positive_slices: of one series, so that a bleeding counts once.
        flags: of any of its slices.
    """

    study: str
    slices: int
    positive_slices: int
    probability: float | None
    decision: Decision
    operating_point: str
    threshold: float | None
    file: str
    reason: str = ""
    series: int = 0
    positive_series: int = 0
    most_positive_slices: int = 0
    flags: str = ""


@dataclass(frozen=True)
class LabelledStudyPrediction(SubtypeColumns, StudyPrediction):
    """One study of a bundle that answers the subtypes."""


class Studies:
    """Rows gathered by study: memory grows with series, and by two numbers for each slice.

    Attributes:
        repeated: files whose slice was in their study before, under another name: such a slice is counted once, and
            positive if any of its files is.
    """

    def __init__(self) -> None:
        self.repeated = 0
        self._found: dict[str, StudyPrediction] = {}
        self._series: dict[str, Counter[str]] = {}  # positive slices by series
        self._positive: dict[int, bool] = {}  # each slice, by the hash of its UIDs

    def add(self, rows: Iterable[Prediction]) -> None:
        """Count more rows in, in their order."""
        parts: dict[str, list[StudyPrediction]] = {}
        for row in rows:
            # A file without a study, or rejected, stands for itself.
            key = f"study {row.study}" if row.study and not row.reason else f"file {row.file}"
            if key not in parts:
                parts[key] = [self._found[key]] if key in self._found else []
            part = _alone(row, *self._new(row))
            parts[key].append(part)
            if not row.reason:
                self._series.setdefault(key, Counter())[row.series] += part.positive_slices
        self._found |= dict(zip(parts, _joined([*parts.values()]), strict=True))

    def _new(self, row: Prediction) -> tuple[bool, bool]:
        """Whether the row is of one more slice, and of one more positive slice."""
        positive = row.decision == "positive"
        if row.reason or not (row.study and row.slice_id):
            return not row.reason, positive
        uids = hash((row.study, row.slice_id))
        before = self._positive.get(uids)
        self._positive[uids] = positive or bool(before)
        self.repeated += before is not None
        return before is None, positive and not before

    def rows(self) -> list[StudyPrediction]:
        """In the order in which they were first met."""
        return [_with_series(study, self._series.get(key, {})) for key, study in self._found.items()]


def _with_series(study: StudyPrediction, positive: Mapping[str, int]) -> StudyPrediction:
    counts = [*positive.values()]
    return replace(
        study,
        series=len(counts),
        positive_series=sum(map(bool, counts)),
        most_positive_slices=max(counts, default=0),
    )


def _alone(row: Prediction, is_new: bool, is_new_positive: bool) -> StudyPrediction:
    """The study of one row, with no slice if that has been counted before."""
    decided = (row.probability, row.decision, row.operating_point, row.threshold, row.file, row.reason)
    study = (row.study, int(is_new), int(is_new_positive), *decided)
    if isinstance(row, LabelledPrediction):
        subtypes = {name: getattr(row, name) for name in SUBTYPE_COLUMNS}
        return LabelledStudyPrediction(*study, flags=row.flags, **subtypes)
    return StudyPrediction(*study, flags=row.flags)


def _joined(studies: Sequence[Sequence[StudyPrediction]]) -> list[StudyPrediction]:
    """Each study of its parts: it is decided as its most probable slice is."""
    parts = [part for study in studies for part in study]
    groups = np.repeat(np.arange(len(studies)), [len(study) for study in studies])
    chosen = most_probable(groups, np.array([part.probability or 0.0 for part in parts]))
    return [
        replace(
            parts[position],
            slices=sum(part.slices for part in study),
            positive_slices=sum(part.positive_slices for part in study),
            flags=",".join(sorted({flag for part in study for flag in part.flags.split(",") if flag})),
            **_highest(study),
        )
        for study, position in zip(studies, chosen.tolist(), strict=True)
    ]


def _highest(study: Sequence[StudyPrediction]) -> dict[str, float | None]:
    """The highest probability of each subtype in a study; nothing where the bundle does not answer them."""
    if not isinstance(study[0], LabelledStudyPrediction):
        return {}
    found = {name: [getattr(part, name) for part in study] for name in SUBTYPE_COLUMNS}
    return {name: max((value for value in values if value is not None), default=None) for name, values in found.items()}
