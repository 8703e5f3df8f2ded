"""The tables of groups: patients, subtypes, and how scanners wrote their slices.

Rows of text, like those of tables.py; every figure was made by `evaluate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ich_ray.html_report.style import count, number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ich_ray.assess.evaluation import Evaluation
    from ich_ray.assess.interval_estimates import Estimate, GroupFigures
    from ich_ray.assess.study_figures import StudyFigures

__all__ = ["GroupRow", "group_tables", "study_tables"]

_SUBTYPE_WORDS = (
    "Slices of a subtype against all slices without haemorrhage. A group's chance is its own prevalence, so compare "
    "groups by sensitivity and ROC AUC, not by AP."
)
_LABEL_WORDS = (
    "Each subtype by its own probability: slices with it against all others whose label is known. One with fewer than "
    "ten calibration patients decides nothing of its own, and has no sensitivity here."
)
_REPRESENTATION_WORDS = (
    "Slices by the words in their files (int16, uint12 and so on) and by what was flagged in them: a model that has "
    "learned a scanner instead of blood differs here."
)
_PATIENT_WORDS = (
    "A patient is positive with any positive slice, and as probable as the most probable slice. Many slices mean many "
    "chances of a false alarm, so specificity is lower than by slice."
)
_PATIENTS_OF_STUDIES = (
    "A patient is positive with any positive study, negative where all are known to be, and as probable as the most "
    "probable study."
)
_STUDY_LABEL_WORDS = (
    "Each subtype by its own probability: studies with it against all others whose label is known. One with fewer than "
    "ten calibration patients on either side decides nothing of its own, and has no sensitivity here."
)


@dataclass(frozen=True)
class GroupRow:
    """A group with its figures, each with its interval.

    They are AP, AP of chance, ROC AUC, sensitivity and specificity.
    """

    name: str
    cases: str
    positives: str
    figures: tuple[str, ...]
    at_chance: bool


def study_tables(studies: StudyFigures) -> list[tuple[str, str, list[GroupRow]]]:
    """The same of studies."""
    point = studies.point[0] if studies.point else ""
    patients = {"patients": studies.patient_level} if studies.patient_level else {}
    found = (
        ("By patient", _PATIENTS_OF_STUDIES, patients),
        ("By subtype", _SUBTYPE_WORDS.replace("slices", "studies").replace("Slices", "Studies"), studies.subtypes),
        ("Subtypes by their own probability", _STUDY_LABEL_WORDS, studies.labels),
    )
    at = f", at operating point {point}" if point else ""
    return [(f"{title}{at}", words, _rows(groups, point)) for title, words, groups in found if groups]


def group_tables(evaluation: Evaluation) -> list[tuple[str, str, list[GroupRow]]]:
    """Title, words and rows of each table that has any, at the operating point that decides."""
    point = evaluation.point[0] if evaluation.point else ""
    patients = {"patients": evaluation.patient_level} if evaluation.patient_level else {}
    found = (
        ("By patient", _PATIENT_WORDS, patients),
        ("By subtype", _SUBTYPE_WORDS, evaluation.subtypes),
        ("Subtypes by their own probability", _LABEL_WORDS, evaluation.labels),
        ("By scanner representation", _REPRESENTATION_WORDS, evaluation.representations),
    )
    return [(f"{title}, at operating point {point}", words, _rows(groups, point)) for title, words, groups in found
            if groups]  # fmt: skip


def _rows(groups: Mapping[str, GroupFigures], point: str) -> list[GroupRow]:
    rows = []
    for name, group in groups.items():
        decided = group.operating_points.get(point)  # a subtype may have none
        figures = (
            _figure(group.metrics["average_precision"]),
            number(group.floors["average_precision"]),
            _figure(group.metrics["roc_auc"]),
            _figure(decided.sensitivity) if decided else "–",
            _figure(decided.specificity) if decided else "–",
        )
        rows.append(GroupRow(name, count(group.cases), count(group.positives), figures, group.at_chance))
    return rows


def _figure(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return number(estimate.value)
    return f"{number(estimate.value)} ({number(estimate.low)} to {number(estimate.high)})"
