"""The one opening of the test patients.

Knows a calibrated bundle and the test role. It chooses nothing: thresholds and temperature come from the card, which
were fitted without a test label. Each opening is written down before the first label is read.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError
from ich_ray.final.card import Card, OperatingPoint, write_card
from ich_ray.metrics import (
    Confusion,
    Interval,
    Ranking,
    at_chance,
    confusion,
    floors,
    losses,
    patient_bootstrap,
    ranking_note,
)
from ich_ray.progress import say
from ich_ray.results import open_search
from ich_ray.storage import Location, Record, write_json, write_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.data.dataset import DatasetManifest, SliceSet
    from ich_ray.results import SearchResult

__all__ = ["Estimate", "Evaluation", "evaluate"]

RESAMPLES = 1000
CONFIDENCE = 0.95
# With a hundred positives the 95 % interval of a sensitivity of one half is 0.2 wide, even if they were independent.
_FEW_POSITIVES = 100
_RATIOS = ("sensitivity", "specificity", "ppv", "npv", "f2", "accuracy")


class Estimate(Record):
    """A figure with its interval; None where undefined."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


class Counts(Record):
    """Decisions against labels."""

    tp: int
    fp: int
    fn: int
    tn: int


class PointFigures(Record):
    """An operating point on the test slices."""

    threshold: float
    confusion: Counts
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    npv: Estimate
    f2: Estimate
    accuracy: Estimate


class Evaluation(Record):
    """evaluation.json. Intervals draw patients, not slices.

    Attributes:
        opened: how often the test patients have been looked at with this bundle, this time included.
        floors: what knowing only the prevalence would give, beside each figure.
        at_chance: average precision is at most 1.5 times the prevalence.
    """

    format: Literal[1] = 1
    slices: int
    patients: int
    positives: int
    prevalence: float
    opened: int
    time: float
    metrics: dict[str, Estimate]
    operating_points: dict[str, PointFigures]
    floors: dict[str, float]
    at_chance: bool
    confidence: float = CONFIDENCE
    resamples: int = RESAMPLES
    notes: tuple[str, ...]

    @property
    def point(self) -> tuple[str, PointFigures] | None:
        """The operating point that decides: `f2`, or the first one if there is none of that name."""
        name = "f2" if "f2" in self.operating_points else next(iter(self.operating_points), None)
        return (name, self.operating_points[name]) if name else None


def evaluate(search: Location) -> Evaluation:
    """Measure the calibrated bundle on the test patients; write evaluation.json, predictions.parquet and the card.

    It may be done again, and the count says so: figures that followed a look at the test patients are no test.

    Raises:
        ConfigError: no bundle, a bundle that is not calibrated, or no test slice.
        IntegrityError: the bundle is damaged, or the dataset is another one.
    """
    from ich_ray.final.bundle import load_bundle  # loads PyTorch

    found = open_search(search)
    dataset = PreparedDataset.open(found.record.dataset, fingerprint=found.record.fingerprint)
    bundle = load_bundle(found.files.bundle)
    if not bundle.card.operating_points or not found.files.calibration.exists():
        raise ConfigError(
            f"{found.files.bundle}: a calibrated bundle must be there before its test, got one without operating "
            "points; run `ich-ray calibrate` first"
        )
    if not dataset.manifest.roles["test"].slices:
        raise ConfigError("test role: slices must be there, got none; prepare a dataset with more patients")
    card = bundle.card.model_copy(update={"openings": bundle.card.openings + 1, "test": None})
    write_card(found.files.bundle, card)
    slices = dataset.role("test")
    probabilities = bundle.calibrated(bundle.slice_logits(slices))
    evaluation = _measure(slices, probabilities, card, _notes(dataset.manifest, card))
    _write(found, slices, probabilities, evaluation)
    write_card(found.files.bundle, card.model_copy(update={"test": _summary(evaluation)}))
    _tell(evaluation)
    return evaluation


def _measure(slices: SliceSet, probabilities: NDArray[np.float64], card: Card, notes: tuple[str, ...]) -> Evaluation:
    labels, prevalence = slices.labels, slices.prevalence
    # What does not depend on the weights is computed once: a thousand resamples follow.
    ranking, loss, square = Ranking(labels, probabilities), losses(labels, probabilities), (probabilities - labels) ** 2

    def statistics(weights: NDArray[np.float64]) -> dict[str, float]:
        ap, auc = ranking.statistics(weights)
        figures = {
            "average_precision": ap,
            "roc_auc": auc,
            "log_loss": float(weights @ loss / weights.sum()),
            "brier": float(weights @ square / weights.sum()),
        }
        for name, point in card.operating_points.items():
            decisions = confusion(labels, probabilities, point.threshold, weights)
            figures |= {f"{name}.{ratio}": value for ratio, value in _ratios(decisions).items()}
        return figures

    found = patient_bootstrap(statistics, slices.patients, resamples=RESAMPLES, confidence=CONFIDENCE)
    estimates = {name: _estimate(interval) for name, interval in found.items()}
    chance = at_chance(found["average_precision"].value, prevalence)
    return Evaluation(
        slices=len(slices),
        patients=len(set(slices.patients)),
        positives=int(labels.sum()),
        prevalence=prevalence,
        opened=card.openings,
        time=time.time(),
        metrics={name: estimate for name, estimate in estimates.items() if "." not in name},
        operating_points={
            name: _tested(point, confusion(labels, probabilities, point.threshold), name, estimates)
            for name, point in card.operating_points.items()
        },
        floors=floors(prevalence),
        at_chance=chance,
        notes=(*notes, *(["At chance: average precision is at most 1.5 times the prevalence."] if chance else [])),
    )


def _ratios(decisions: Confusion) -> dict[str, float]:
    return {name: decisions.f_beta(2) if name == "f2" else getattr(decisions, name) for name in _RATIOS}


def _tested(point: OperatingPoint, decisions: Confusion, name: str, estimates: dict[str, Estimate]) -> PointFigures:
    counts = Counts(tp=int(decisions.tp), fp=int(decisions.fp), fn=int(decisions.fn), tn=int(decisions.tn))
    ratios: dict[str, Any] = {ratio: estimates[f"{name}.{ratio}"] for ratio in _RATIOS}
    return PointFigures(threshold=point.threshold, confusion=counts, **ratios)


def _estimate(interval: Interval) -> Estimate:
    value, low, high = (part if math.isfinite(part) else None for part in interval)
    return Estimate(value=value, low=low, high=high)


def _notes(manifest: DatasetManifest, card: Card) -> tuple[str, ...]:
    roles = manifest.roles
    ranked = ranking_note(sum(counts.positives for counts in roles.values()), roles["validation"].positives)
    notes = [ranked] if ranked else []
    if roles["test"].positives < _FEW_POSITIVES:
        notes.append(f"{roles['test'].positives} test positives: read the intervals, not the figures.")
    if card.openings > 1:
        notes.append(
            f"The test patients were opened {card.openings} times with this bundle: whatever was changed in between "
            "was chosen with knowledge of them."
        )
    return tuple(notes)


def _write(found: SearchResult, slices: SliceSet, probabilities: NDArray[np.float64], evaluation: Evaluation) -> None:
    table = pa.table(
        {
            "slice_id": slices.dataset.column("slice_id")[slices.rows],
            "patient": slices.patients,
            "label": slices.labels.astype(np.int8),
            "probability": probabilities,
        }
    )
    write_table(found.files.predictions, table)
    write_json(found.files.evaluation, evaluation.model_dump(mode="json"))


def _summary(evaluation: Evaluation) -> dict[str, Any]:
    kept = {"slices", "patients", "positives", "prevalence", "metrics", "operating_points", "floors", "at_chance"}
    return evaluation.model_dump(mode="json", include=kept | {"confidence", "notes"})


def _tell(evaluation: Evaluation) -> None:
    point, floor = evaluation.operating_points["f2"], evaluation.floors["average_precision"]
    ap, sensitivity, ppv = (
        "undefined" if estimate.value is None else f"{estimate.value:.3f}"
        for estimate in (evaluation.metrics["average_precision"], point.sensitivity, point.ppv)
    )
    say(
        f"  test: {evaluation.slices:,} slices of {evaluation.patients:,} patients, average precision {ap} (floor "
        f"{floor:.3f}), sensitivity {sensitivity}, PPV {ppv} at threshold {point.threshold:.3f}"
    )
