"""Probabilities and operating points, fitted on calibration patients whom nobody trained or selected on.

Sees logits and labels of the calibration role only; the test role is never opened here. A calibration is monotone, so
it changes what a score means and never how slices are ranked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.optimize import minimize_scalar
from scipy.special import expit

from ich_ray.data.dataset import PreparedDataset, Role, SliceSet
from ich_ray.errors import ConfigError
from ich_ray.metrics import best_f_beta, confusion, log_loss
from ich_ray.results import open_search
from ich_ray.storage import Location, SearchFiles, write_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.final.bundle import Bundle

__all__ = ["Calibration", "OperatingPoint", "Subject", "calibrate", "fit_temperature", "open_subject", "prior_shift"]

# e-fold bounds: a temperature outside 0.05 to 20 means that the logits carry no probabilities at all.
_LOG_TEMPERATURE = (-3.0, 3.0)


class OperatingPoint(BaseModel):
    """A threshold on calibrated probabilities, and what it gave on the calibration patients."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float
    sensitivity: float
    specificity: float
    ppv: float
    f2: float


class Calibration(BaseModel):
    """calibration.json.

    Attributes:
        prior_shift: added to a logit first: undoes the class weights of training.
        temperature: then divides it.
        log_loss_before: of the logits as trained; `log_loss_after` of the calibrated probabilities.
        weights_sha256: of the bundle that was calibrated.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    slices: int
    patients: int
    positives: int
    prevalence: float
    prior_shift: float
    temperature: float
    log_loss_before: float
    log_loss_after: float
    operating_points: dict[str, OperatingPoint]
    weights_sha256: str


@dataclass(frozen=True)
class Subject:
    """A retrained bundle with the slices of one role of the dataset that it was trained on."""

    files: SearchFiles
    bundle: Bundle
    dataset: PreparedDataset
    slices: SliceSet


def open_subject(search: Location, role: Role) -> Subject:
    """The bundle of a search and the slices of `role`.

    Raises:
        ConfigError: there is no bundle yet, the dataset is another one, or the role lacks positive or negative slices.
    """
    from ich_ray.final.bundle import load_bundle

    found = open_search(search)
    if not (found.files.bundle / "card.json").exists():
        raise ConfigError(f"{found.files.bundle}: a bundle must be there, got none; run `ich-ray retrain` first")
    bundle, dataset = load_bundle(found.files.bundle), PreparedDataset.open(found.record.dataset)
    trained_on = bundle.card.dataset["fingerprint"]
    if dataset.manifest.fingerprint != trained_on:
        raise ConfigError(
            f"{dataset.files.root}: the dataset of the bundle ({trained_on}) must lie there, "
            f"got {dataset.manifest.fingerprint}; prepare it again as it was"
        )
    slices = dataset.role(role)
    positives = int(slices.labels.sum())
    if not 0 < positives < len(slices):
        raise ConfigError(
            f"{dataset.files.root}: role {role} must have positive and negative slices, got {positives} positive of "
            f"{len(slices)}; prepare a dataset with more patients"
        )
    return Subject(found.files, bundle, dataset, slices)


def calibrate(search: Location) -> Calibration:
    """Fit the bundle of a search on the calibration patients; write calibration.json and the bundle's card.

    Figures of an earlier evaluation are taken off the card: they were another operating point's. The count of openings
    of the test patients stays.

    Raises:
        ConfigError: see `open_subject`.
    """
    from ich_ray.final.bundle import write_card

    subject = open_subject(search, "calibration")
    bundle, slices = subject.bundle, subject.slices
    train = subject.dataset.manifest.roles["train"]
    weighted = bundle.card.parameters.get("loss", "weighted") == "weighted"
    shift = prior_shift(train.positives, train.slices) if weighted else 0.0
    logits = bundle.logits(slices).astype(np.float64)
    temperature = fit_temperature(logits + shift, slices.labels)
    probabilities = expit((logits + shift) / temperature)
    calibration = Calibration(
        slices=len(slices),
        patients=len(set(slices.patients)),
        positives=int(slices.labels.sum()),
        prevalence=slices.prevalence,
        prior_shift=shift,
        temperature=temperature,
        log_loss_before=log_loss(slices.labels, expit(logits)),
        log_loss_after=log_loss(slices.labels, probabilities),
        operating_points={"f2": _f2_point(slices.labels, probabilities)},
        weights_sha256=bundle.card.weights["sha256"],
    )
    values = calibration.model_dump(mode="json")
    settings = {key: values[key] for key in ("prior_shift", "temperature", "operating_points")}
    write_json(subject.files.calibration, values)
    write_card(subject.files.bundle, bundle.card.model_copy(update={**settings, "test": None}))
    return calibration


def prior_shift(positives: int, slices: int) -> float:
    """What class weights of 1 / n_c added to a logit, taken back: log(n_1 / n_0).

    Weighted cross-entropy is minimized by odds multiplied by w_1 / w_0 = n_0 / n_1 (Elkan, The Foundations of
    Cost-Sensitive Learning, IJCAI 2001, theorem 2, for weights in place of sampling).
    """
    return math.log(positives / (slices - positives))


def fit_temperature(logits: NDArray[np.float64], labels: NDArray[np.float32]) -> float:
    """The temperature with the least log loss of sigmoid(logit / temperature).

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2.
    """
    found = minimize_scalar(
        lambda log_temperature: log_loss(labels, expit(logits / math.exp(log_temperature))),
        bounds=_LOG_TEMPERATURE,
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(float(found.x))


def _f2_point(labels: NDArray[np.float32], probabilities: NDArray[np.float64]) -> OperatingPoint:
    threshold, f2 = best_f_beta(labels, probabilities)
    counts = confusion(labels, probabilities, threshold)
    return OperatingPoint(
        threshold=threshold, sensitivity=counts.sensitivity, specificity=counts.specificity, ppv=counts.ppv, f2=f2
    )
