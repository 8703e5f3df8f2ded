"""The part of the report by study: what stands in its tables, its plots, and why there may be none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ich_ray.html_report import performance, tables
from ich_ray.html_report.confidence_bands import precision_recall_band, roc_band
from ich_ray.html_report.groups import study_tables
from ich_ray.html_report.reliability_diagram import reliability
from ich_ray.html_report.study_strips import HEIGHT, WIDTH, strips
from ich_ray.html_report.style import metric_title, number

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ich_ray.assess.evaluation import Evaluation
    from ich_ray.assess.sequence_change import ChangedFigure
    from ich_ray.html_report.inputs import Inputs

__all__ = ["study_content", "study_figures"]

_SCORES = {
    "maximum": "A study is as probable as the most probable slice of the series that answers for it says, scaled to "
    "studies on the calibration patients.",
    "study head": "The probability of a study is that of the study head of the sequence model, over the series that "
    "answers for it, scaled to studies on the calibration patients.",
}


def study_figures(inputs: Inputs) -> dict[str, go.Figure]:
    """Curves and calibration of studies, by their names on the page."""
    evaluation, rows = inputs.evaluation, inputs.studies
    if evaluation is None or evaluation.studies is None or rows is None:
        return {}
    known = rows.labeled()
    labels = known.labels.astype(np.int64)
    if not 0 < labels.sum() < len(labels):
        return {}
    data, patients = (labels, known.probabilities), known.patients
    point = evaluation.studies.point[1] if evaluation.studies.point else None
    found = {
        "study precision-recall": performance.precision_recall(*data, point, precision_recall_band(*data, patients)),
        "study roc": performance.roc(*data, point, roc_band(*data, patients)),
    }
    if evaluation.studies.ece_null is not None:
        found["study reliability"] = reliability(*data, unit="studies")
        found["study histogram"] = performance.histogram(*data, point.threshold if point else None, unit="studies")
    return found


def study_content(inputs: Inputs) -> dict[str, Any]:
    """What the template shows of studies besides figures."""
    evaluation = inputs.evaluation
    found = evaluation.studies if evaluation else None
    changed = evaluation.sequence_change.items() if evaluation else ()
    alone = inputs.predictions is not None and inputs.predictions.without_sequence is not None
    rows = {"sequence_rows": [_changed(name, figure) for name, figure in changed], "sequence_alone": alone}
    if found is None:
        return {"studies": None, "study_problem": _problem(evaluation), **rows}
    points = found.operating_points.items()
    shown = strips(inputs)
    return {
        "studies": found,
        "study_problem": "",
        "study_score": _SCORES[found.score],
        "study_rows": tables.of_studies(tables.figures(found)),
        "study_points": [
            (name, point, tables.of_studies(tables.operating_figures(found, point))) for name, point in points
        ],
        "study_groups": study_tables(found),
        "strips": shown,
        "strip_problem": "" if shown else _no_strips(inputs),
        "strip_width": WIDTH,
        "strip_floor": HEIGHT,
        **rows,
    }


def _problem(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return "Figures by study appear here once the test patients have been evaluated."
    said = [note for note in evaluation.notes if note.startswith("By study:")]
    return said[0] if said else "These test patients were evaluated without studies: evaluate again to see them."


def _no_strips(inputs: Inputs) -> str:
    if inputs.evaluation and inputs.evaluation.studies and inputs.evaluation.studies.point is None:
        return "No study is missed or false, as studies have no operating point: too few calibrated them."
    return inputs.dataset_problem or "Strips of studies need predictions.parquet and studies.parquet: evaluate again."


def _changed(name: str, figure: ChangedFigure) -> tuple[str, str, str, str, str]:
    """Figure, without, with, difference and interval."""
    by_study = name.startswith("study_")
    title = f"{metric_title(name.removeprefix('study_'))}, by {'study' if by_study else 'slice'}"
    known = figure.low is not None and figure.high is not None
    bounds = f"{number(figure.low)} to {number(figure.high)}" if known else "–"
    return title, number(figure.without), number(figure.with_sequence), number(figure.difference), bounds
