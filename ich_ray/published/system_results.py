"""Measure one system on the test patients: by its own threshold, by ours, beside chance.

Reads a search that has been retrained, calibrated and evaluated; opens no test patient again. Its own way is a
threshold on the network's uncorrected output, tuned on the very slices that it was trained on, or left at one half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit

from ich_ray.assess.evaluation import Evaluation
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError
from ich_ray.html_report.inputs import read_predictions
from ich_ray.results import open_search
from ich_ray.statistics.calibration_error import log_odds
from ich_ray.statistics.metrics import Confusion, best_f_beta, confusion, log_loss
from ich_ray.storage import Count, JsonValue, Line, Location, Record, Seconds, Share, read_record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.bundle.bundle import Bundle

__all__ = ["Decided", "System", "leaked_patients", "measured"]


class Decided(Record):
    """What a threshold decides on the test slices.

    Attributes:
        threshold: as its author would write it: on the uncorrected output, or on the calibrated probability.
        tuned_on: slices that chose it, empty if nothing did.
    """

    threshold: float
    tuned_on: Line
    tp: Count
    fp: Count
    fn: Count
    tn: Count

    @property
    def confusion(self) -> Confusion:
        return Confusion(tp=self.tp, fp=self.fp, fn=self.fn, tn=self.tn)


class System(Record):
    """One system on its test patients.

    Attributes:
        name: as the page calls it.
        split: what its roles were drawn by.
        leaked: patients of the test slices who are also among those trained on.
        floors: what knowing only the prevalence gives.
        half: its own decisions at one half of the uncorrected output.
        trained: at the threshold with the highest F2 on the slices it was trained on.
        ours: at the threshold with the highest F2 on the calibration patients.
    """

    name: Line
    split: Line
    patients: Count
    leaked: Count
    slices: Count
    prevalence: Share
    average_precision: tuple[float | None, float | None, float | None]
    log_loss: float | None
    uncorrected_log_loss: float
    at_chance: bool
    floors: dict[Line, float]
    half: Decided
    trained: Decided
    ours: Decided
    parameters: dict[Line, JsonValue]
    seconds: Seconds


def leaked_patients(dataset: PreparedDataset) -> int:
    """Patients with slices in the training role and in the test role."""
    return len(set(dataset.role("train").patients) & set(dataset.role("test").patients))


def measured(name: str, search: Location) -> System:
    """Read what a finished road has left.

    Raises:
        ConfigError: no search, or it has not been evaluated.
        IntegrityError: a file of it is damaged.
    """
    from ich_ray.bundle.bundle import load_bundle

    found = open_search(search)
    evaluation = read_record(found.files.evaluation, Evaluation, "evaluate again")
    predictions = read_predictions(found.files.predictions, evaluation.slices)
    if predictions is None:
        raise ConfigError(f"{found.files.predictions}: what evaluate writes must be there, got none; evaluate again")
    labels, probabilities = predictions.labels.astype(np.float64), predictions.probabilities
    dataset = PreparedDataset.of_search(found)
    bundle = load_bundle(found.files.bundle)
    point = bundle.operating_point()
    threshold = _tuned_on_training(bundle, dataset)
    precision = evaluation.metrics["average_precision"]
    return System(
        name=name,
        split=dataset.manifest.split,
        patients=evaluation.patients,
        leaked=leaked_patients(dataset),
        slices=evaluation.slices,
        prevalence=evaluation.prevalence,
        average_precision=(precision.value, precision.low, precision.high),
        log_loss=evaluation.metrics["log_loss"].value,
        uncorrected_log_loss=_uncorrected_loss(bundle, labels, probabilities),
        at_chance=evaluation.at_chance,
        floors=evaluation.floors,
        half=_decided(labels, probabilities, _on_our_scale(bundle, 0.5), 0.5, ""),
        trained=_decided(labels, probabilities, _on_our_scale(bundle, threshold), threshold, "training slices"),
        ours=_decided(labels, probabilities, point.threshold, point.threshold, "calibration patients"),
        parameters=bundle.card.parameters.model_dump(),
        seconds=sum(trial.reports[-1].elapsed_s for trial in found.trials if trial.reports),
    )


def _tuned_on_training(bundle: Bundle, dataset: PreparedDataset) -> float:
    """The threshold on the uncorrected output with the highest F2 on the training slices: report B's way."""
    train = dataset.role("train")
    return best_f_beta(train.labels, expit(bundle.slice_logits(train).astype(np.float64)))[0]


def _on_our_scale(bundle: Bundle, output: float) -> float:
    """The calibrated probability of an uncorrected output: scaling keeps the order, so decisions are the same."""
    return float(bundle.card.scaling(log_odds(np.array([output])))[0])


def _uncorrected_loss(bundle: Bundle, labels: NDArray[np.float64], probabilities: NDArray[np.float64]) -> float:
    """Log loss of the network's own outputs, which class weights have moved away from probabilities."""
    return log_loss(labels, expit(bundle.card.scaling.logits(probabilities)))


def _decided(
    labels: NDArray[np.float64], probabilities: NDArray[np.float64], at: float, threshold: float, tuned_on: str
) -> Decided:
    found = confusion(labels, probabilities, at)
    counts = {name: int(getattr(found, name)) for name in ("tp", "fp", "fn", "tn")}
    return Decided(threshold=threshold, tuned_on=tuned_on, **counts)
