"""What the sequence model of a bundle changed on test patients: ranking figures without and with it.

Both rank the same slices, and the same studies, in the same draws of patients. Nothing is chosen by it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.assess.interval_estimates import CONFIDENCE, Cases, as_estimate, enough_patients, ranked_draws
from ich_ray.assess.paired_changes import Change, format_change
from ich_ray.bundle.study_logits import study_logits
from ich_ray.statistics.bootstrap import interval
from ich_ray.statistics.metrics import Ranking
from ich_ray.storage import Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.assess.study_figures import ScoredStudies
    from ich_ray.bundle.bundle import Bundle
    from ich_ray.data.dataset import SliceSet
    from ich_ray.statistics.bootstrap import PatientDraws

__all__ = ["ChangedFigure", "format_changed", "measure_change"]

_FIGURES = ("average_precision", "roc_auc")


class ChangedFigure(Record):
    """A figure of the network alone, and with its sequence model.

    Attributes:
        without: None where it is undefined.
        difference: with it less without it, from `low` to `high` with 95 %; None where nothing can be said.
    """

    without: float | None
    with_sequence: float | None
    difference: float | None
    low: float | None
    high: float | None


def measure_change(
    bundle: Bundle,
    slices: SliceSet,
    logits: NDArray[np.float32],
    own: NDArray[np.float32],
    studies: ScoredStudies | str,
    draws: PatientDraws,
) -> dict[str, ChangedFigure]:
    """Ranking figures of slices with labels, and those of studies, named as `study_roc_auc` is.

    Without the model a study has the highest logit of its answering series.

    Args:
        bundle: with a sequence model.
        slices: of test patients.
        logits: of slices with the model, `[n, labels]`.
        own: of the network alone.
        studies: of these slices, or why there are none.
        draws: of the patients of the slices.
    """
    found = {}
    if slices.dataset.manifest.level == "slice":
        every = np.arange(len(slices))
        found = _changes(slices.labels.astype(np.float64), own[:, -1], logits[:, -1], every, draws)
    if isinstance(studies, str):
        return found
    both, known = bundle.study_label_logits(slices, logits), studies.studies
    rows = both.of_slice[known.first]
    alone = study_logits(slices, both.answering, own, "maximum").logits[rows, -1]
    truth = known.label("any")
    held = np.flatnonzero(~np.isnan(truth))
    with_model = both.logits[rows, -1]
    of_studies = _changes(truth[held].astype(np.float64), alone[held], with_model[held], known.first[held], draws)
    return found | {f"study_{name}": figure for name, figure in of_studies.items()}


def _changes(
    labels: NDArray[np.float64],
    without: NDArray[np.float32],
    with_model: NDArray[np.float32],
    rows: NDArray[np.int64],
    draws: PatientDraws,
) -> dict[str, ChangedFigure]:
    cases = [Cases(labels, np.asarray(scores, np.float64), rows, calibrated=False) for scores in (without, with_model)]
    values = [Ranking(one.labels, one.probabilities).statistics() for one in cases]
    drawn = ranked_draws(cases[1], draws) - ranked_draws(cases[0], draws)
    drawable = enough_patients(cases[0], draws)
    found = {}
    for column, name in enumerate(_FIGURES):
        before, after = values[0][column], values[1][column]
        bounds = as_estimate(interval(after - before, drawn[:, column] if drawable else np.empty(0), CONFIDENCE))
        found[name] = ChangedFigure(
            without=_defined(before),
            with_sequence=_defined(after),
            difference=bounds.value,
            low=bounds.low,
            high=bounds.high,
        )
    return found


def format_changed(figure: ChangedFigure) -> str:
    """A figure without and with the model, and the difference with its interval, or "no interval"."""
    if figure.without is None or figure.with_sequence is None or figure.difference is None:
        return "undefined"
    return format_change(Change(figure.without, figure.with_sequence, figure.difference, figure.low, figure.high))


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None
