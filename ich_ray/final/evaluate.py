"""The one opening of the test patients: what the calibrated bundle does on people it has never met.

The opening is counted on the bundle's card before a label is read, so that a figure chosen after several looks cannot
pass for a first one. Chooses nothing: thresholds come from calibration.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from ich_ray.errors import ConfigError
from ich_ray.final.calibration import Subject, open_subject
from ich_ray.metrics import (
    Confusion,
    Ranking,
    at_chance,
    brier,
    confusion,
    floors,
    log_loss,
    patient_bootstrap,
    ranking_note,
)
from ich_ray.storage import Location, write_bytes, write_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.metrics import Interval

__all__ = ["Evaluation", "Figure", "PointFigures", "evaluate"]

CONFIDENCE = 0.95
RESAMPLES = 1000
# A percentile interval of a ratio over fewer positives is a rough guess.
_FEW_POSITIVES = 50
_POINT_METRICS = ("sensitivity", "specificity", "ppv", "npv", "accuracy")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(_Record):
    """A value with its interval over patients; None where undefined."""

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, interval: Interval) -> Figure:
        value, low, high = (number if math.isfinite(number) else None for number in interval)
        return cls(value=value, low=low, high=high)


class PointFigures(_Record):
    """One operating point on the test patients. PPV and NPV hold at the prevalence of the evaluation."""

    threshold: float
    confusion: dict[str, int]
    sensitivity: Figure
    specificity: Figure
    ppv: Figure
    npv: Figure
    accuracy: Figure
    f2: Figure


class Evaluation(_Record):
    """evaluation.json.

    Attributes:
        opened: how often the test patients have been opened for this bundle, this time included.
        floors: what a model that knows only the prevalence reaches, by metric.
        notes: what a reader must know before using a figure.
    """

    format: Literal[1] = 1
    slices: int
    patients: int
    positives: int
    prevalence: float
    opened: int
    time: float
    metrics: dict[str, Figure]
    operating_points: dict[str, PointFigures]
    floors: dict[str, float]
    at_chance: bool
    confidence: float
    resamples: int
    notes: tuple[str, ...]


def evaluate(search: Location) -> Evaluation:
    """Evaluate the bundle of a search on the test patients; write evaluation.json, predictions.parquet and the card.

    Raises:
        ConfigError: the bundle is not calibrated, or see `open_subject`.
    """
    from ich_ray.final.bundle import write_card

    subject = open_subject(search, "test")
    card = subject.bundle.card
    if not card.operating_points:
        raise ConfigError(
            f"{subject.files.bundle}: a calibrated bundle must be given, got one without an operating point; "
            "run `ich-ray calibrate` first"
        )
    card = card.model_copy(update={"openings": card.openings + 1})
    write_card(subject.files.bundle, card)
    probabilities = subject.bundle.calibrated(subject.bundle.logits(subject.slices))
    thresholds = {name: float(point["threshold"]) for name, point in card.operating_points.items()}
    evaluation = _evaluation(subject, probabilities, thresholds, card.openings)
    values = evaluation.model_dump(mode="json")
    _write_predictions(subject, probabilities)
    write_json(subject.files.evaluation, values)
    write_card(subject.files.bundle, card.model_copy(update={"test": values}))
    return evaluation


def _evaluation(
    subject: Subject, probabilities: NDArray[np.float64], thresholds: dict[str, float], opened: int
) -> Evaluation:
    slices = subject.slices
    figures = _figures(slices.labels, probabilities, slices.patients, thresholds)
    least = floors(slices.prevalence)
    chance = at_chance(figures["average_precision"].value, slices.prevalence)
    return Evaluation(
        slices=len(slices),
        patients=len(set(slices.patients)),
        positives=int(slices.labels.sum()),
        prevalence=slices.prevalence,
        opened=opened,
        time=time.time(),
        metrics={name: Figure.of(interval) for name, interval in figures.items() if "/" not in name},
        operating_points={
            name: PointFigures(
                threshold=threshold,
                confusion=_counts(confusion(slices.labels, probabilities, threshold)),
                **{metric: Figure.of(figures[f"{name}/{metric}"]) for metric in (*_POINT_METRICS, "f2")},
            )
            for name, threshold in thresholds.items()
        },
        floors=least,
        at_chance=chance,
        confidence=CONFIDENCE,
        resamples=RESAMPLES,
        notes=tuple(_notes(subject, opened, chance)),
    )


def _figures(
    labels: NDArray[np.float32],
    probabilities: NDArray[np.float64],
    patients: NDArray[Any],
    thresholds: dict[str, float],
) -> dict[str, Interval]:
    """All figures with their intervals; those of an operating point are named `point/metric`."""
    ranking = Ranking(labels, probabilities)

    def statistics(weights: NDArray[np.float64]) -> dict[str, float]:
        average_precision, area = ranking.statistics(weights)
        found = {
            "average_precision": average_precision,
            "roc_auc": area,
            "log_loss": log_loss(labels, probabilities, weights),
            "brier": brier(labels, probabilities, weights),
        }
        for name, threshold in thresholds.items():
            counts = confusion(labels, probabilities, threshold, weights)
            found |= {f"{name}/{metric}": getattr(counts, metric) for metric in _POINT_METRICS}
            found[f"{name}/f2"] = counts.f_beta(2)
        return found

    return patient_bootstrap(statistics, patients, resamples=RESAMPLES, confidence=CONFIDENCE)


def _counts(found: Confusion) -> dict[str, int]:
    return {name: int(getattr(found, name)) for name in ("tp", "fp", "fn", "tn")}


def _notes(subject: Subject, opened: int, chance: bool) -> list[str]:
    manifest, positives = subject.dataset.manifest, int(subject.slices.labels.sum())
    notes = []
    if chance:
        notes.append("the model is at chance: its average precision is at most 1.5 times the prevalence")
    if ranking := ranking_note(manifest.labels["any"], manifest.roles["validation"].positives):
        notes.append(ranking)
    if positives < _FEW_POSITIVES:
        notes.append(f"{positives} positives among the test slices are few: intervals are wide and rough")
    if opened > 1:
        notes.append(f"the test patients have been opened {opened} times for this bundle: figures may be optimistic")
    return notes


def _write_predictions(subject: Subject, probabilities: NDArray[np.float64]) -> None:
    rows = subject.slices.rows
    table = pa.table(
        {
            "slice_id": pa.array(subject.dataset.column("slice_id")[rows].tolist(), pa.string()),
            "patient": pa.array(subject.slices.patients.tolist(), pa.string()),
            "label": subject.slices.labels.astype(np.int8),
            "probability": probabilities,
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_bytes(subject.files.predictions, sink.getvalue().to_pybytes())
