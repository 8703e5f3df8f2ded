"""Rows of `predict` gathered by study: one of its series answers, the others stand beside it.

A study is mostly sent in several reconstructions, and each shows the same bleeding: so positive slices are counted by
series, and the highest of all series is no probability of the study.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ich_ray.bundle.answering_series import StudySeries, answering, extent
from ich_ray.bundle.prediction import SUBTYPE_COLUMNS, Decision, LabelledPrediction, SubtypeColumns
from ich_ray.bundle.series_prediction import SeriesColumns
from ich_ray.bundle.training_data import SeriesLook

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ich_ray.bundle.input_survey import SeriesTable
    from ich_ray.bundle.prediction import Prediction
    from ich_ray.bundle.study_decision import StudyDecision
    from ich_ray.bundle.training_data import TrainingData

__all__ = ["GatheredStudies", "LabelledStudyPrediction", "StudyPrediction"]

_SUSPECTS = 3
_UNTOLD = SeriesLook(math.nan, math.nan, math.nan, "", "")


@dataclass(frozen=True)
class StudyPrediction:
    """One study, as probable as the series that answers for it.

    `file` is the most probable slice of this series. A rejected file has a row of its own.

    Attributes:
        slices: of all its series, as `positive_slices`: a bleeding stands in each reconstruction of the study.
        reason: the code of a file that was not accepted, or why there is no probability; else empty.
        series: how many it has; `positive_series`: those with a positive slice.
        most_positive_slices: of one series, so that a bleeding counts once.
        flags: of any of its slices; `answering_flags`, of those of the series that answers.
        answering_series: its SeriesInstanceUID; empty where it has none.
        other_series: each with the probability that the study would have by it, such as `1.2.3 0.125, 1.2.4 0.5`.
        file_probability: of the slice in `file`, by slice; `file_2` and `file_3` are the next slices of this series.
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
    answering_series: str = ""
    answering_flags: str = ""
    other_series: str = ""
    file_probability: float | None = None
    file_2: str = ""
    file_2_probability: float | None = None
    file_3: str = ""
    file_3_probability: float | None = None


@dataclass(frozen=True)
class LabelledStudyPrediction(SubtypeColumns, StudyPrediction):
    """One study of a bundle that answers the subtypes."""


@dataclass(frozen=True)
class _Suspect:
    """A slice, its file and its probability."""

    file: str
    probability: float
    slice_id: str = ""


@dataclass
class _Series:
    """What is kept of the accepted rows of a series.

    Attributes:
        highest: probabilities of slices by label, `any` last; `logits`, those that studies are made of, if kept.
        suspects: its most probable slices, the first of equals first.
        rows: the numbers of its rows.
    """

    slices: int = 0
    positive: int = 0
    highest: list[float] = field(default_factory=list)
    logits: list[float] = field(default_factory=list)
    suspects: list[_Suspect] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    rows: array[int] = field(default_factory=lambda: array("q"))

    def add(self, row: Prediction, number: int) -> None:
        """Take in one more row."""
        by_label = _by_label(row)
        self.highest = _higher(self.highest, by_label)
        if isinstance(row, SeriesColumns):
            self.logits = _higher(self.logits, row.series_logits)
        self.flags |= {*filter(None, row.flags.split(","))}
        self.rows.append(number)
        new = _Suspect(row.file, by_label[-1], row.slice_id)
        same = [one for one in self.suspects if one.slice_id and one.slice_id == new.slice_id]
        if not (same and same[0].probability >= new.probability):
            held = [*(one for one in self.suspects if one not in same), new]
            self.suspects = sorted(held, key=lambda one: -one.probability)[:_SUSPECTS]  # stable


def _higher(held: Sequence[float], more: Sequence[float]) -> list[float]:
    return [max(pair) for pair in zip(held or more, more, strict=True)]


def _by_label(row: Prediction) -> list[float]:
    subtypes = [getattr(row, name) for name in SUBTYPE_COLUMNS] if isinstance(row, LabelledPrediction) else []
    return [*subtypes, row.probability or 0.0]


@dataclass
class _Study:
    """A study, or a file that stands for itself."""

    first: Prediction
    series: dict[str, _Series] = field(default_factory=dict)


class GatheredStudies:
    """Rows gathered by study: memory grows with series, and by three numbers for each slice.

    Attributes:
        repeated: files whose slice was in their study before, under another name: such a slice is counted once, and
            positive if any of its files is.

    Args:
        decision: how studies are decided.
        training: of the card: which series answers is the one most like it.
        table: of the headers, in the order of the rows that are added; without it nothing is known of series.
    """

    def __init__(
        self, decision: StudyDecision, training: TrainingData | None = None, table: SeriesTable | None = None
    ) -> None:
        self.repeated = 0
        self._decision, self._training, self._table = decision, training, table
        self._added = 0
        self._found: dict[str, _Study] = {}
        self._positive: dict[int, bool] = {}  # each slice, by the hash of its UIDs

    def add(self, rows: Iterable[Prediction]) -> None:
        """Count more rows in, in their order."""
        for row in rows:
            # A file without a study, or rejected, stands for itself.
            key = f"study {row.study}" if row.study and not row.reason else f"file {row.file}"
            study = self._found.setdefault(key, _Study(row))
            if not row.reason:
                is_new, is_new_positive = self._new(row)
                series = study.series.setdefault(row.series, _Series())
                series.slices += is_new
                series.positive += is_new_positive
                series.add(row, self._added)
            self._added += 1

    def _new(self, row: Prediction) -> tuple[bool, bool]:
        """Whether the row is of one more slice, and of one more positive slice."""
        positive = row.decision == "positive"
        if not (row.study and row.slice_id):
            return True, positive
        uids = hash((row.study, row.slice_id))
        before = self._positive.get(uids)
        self._positive[uids] = positive or bool(before)
        self.repeated += before is not None
        return before is None, positive and not before

    def rows(self) -> list[StudyPrediction]:
        """In the order in which they were first met."""
        return [self._row(study) for study in self._found.values()]

    def answering_rows(self) -> Iterator[tuple[StudyPrediction, list[int]]]:
        """Each study that has a probability, with the numbers of the rows of the series that answers."""
        for study in self._found.values():
            if study.series:
                row = self._row(study)
                yield row, [*study.series[row.answering_series].rows]

    def _row(self, study: _Study) -> StudyPrediction:
        first = study.first
        kind = LabelledStudyPrediction if isinstance(first, LabelledPrediction) else StudyPrediction
        if not study.series:
            return kind(first.study, 0, 0, None, "", "", None, first.file, first.reason, flags=first.flags)
        uid, decision = self._answering(study), self._decision
        answers, positive = study.series[uid], [series.positive for series in study.series.values()]
        *subtypes, probability = decision.probabilities(answers.highest, answers.logits)
        columns: dict[str, Any] = dict(zip(SUBTYPE_COLUMNS, subtypes, strict=False))
        return replace(
            kind(
                study=first.study,
                slices=sum(series.slices for series in study.series.values()),
                positive_slices=sum(positive),
                probability=probability,
                decision="positive" if probability >= decision.threshold else "negative",
                operating_point=decision.point,
                threshold=decision.threshold,
                file=answers.suspects[0].file,
                series=len(positive),
                positive_series=sum(map(bool, positive)),
                most_positive_slices=max(positive),
                flags=_flags(study.series.values()),
                answering_series=uid,
                answering_flags=_flags([answers]),
                other_series=self._others(study, uid),
            ),
            **_suspects(answers.suspects),
            **columns,
        )

    def _answering(self, study: _Study) -> str:
        """The UID of the series that answers; headers tell which, of the slices that were accepted."""
        names = [*study.series]
        if len(names) == 1:
            return names[0]
        return names[answering([self._look(name, study.series[name]) for name in names], self._training)]

    def _look(self, uid: str, series: _Series) -> StudySeries:
        if self._table is None:
            return StudySeries(_UNTOLD, series.slices, math.nan, uid)
        rows = np.frombuffer(series.rows, np.int64)
        return StudySeries(self._table.look(rows), series.slices, extent(self._table.position_mm[rows]), uid)

    def _others(self, study: _Study, answers: str) -> str:
        others = {name: series for name, series in study.series.items() if name != answers}
        told = {name: self._decision.probabilities(one.highest, one.logits)[-1] for name, one in others.items()}
        return ", ".join(f"{name or 'unnamed'} {probability:.6g}" for name, probability in told.items())


def _flags(series: Iterable[_Series]) -> str:
    return ",".join(sorted({flag for one in series for flag in one.flags}))


def _suspects(found: list[_Suspect]) -> dict[str, Any]:
    """The columns of the most probable slices."""
    columns: dict[str, Any] = {"file_probability": found[0].probability}
    for place, one in enumerate(found[1:], 2):
        columns |= {f"file_{place}": one.file, f"file_{place}_probability": one.probability}
    return columns
