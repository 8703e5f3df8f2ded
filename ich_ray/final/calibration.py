"""Probabilities and thresholds, fitted on the calibration patients and on nobody else.

Knows logits and labels of that role, and from the manifest how many training slices of each class there were. It reads
neither images nor labels of any other role.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit

from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError
from ich_ray.final.card import OperatingPoint, write_card
from ich_ray.metrics import best_f_beta, confusion, log_loss
from ich_ray.progress import say
from ich_ray.results import open_search
from ich_ray.storage import Location, Record, write_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.data.dataset import SliceSet

__all__ = ["Calibration", "calibrate", "fit_temperature"]

# Wide enough for any network that learned something; reached only by labels that the logits part perfectly.
_LOG_TEMPERATURE = (math.log(0.05), math.log(20.0))


class Calibration(Record):
    """calibration.json.

    Attributes:
        prior_shift: log(w0 / w1) of the training class weights, added to the logit before the temperature divides it.
        log_loss_before: of the raw network, `log_loss_after`: of the calibrated one, both on the calibration slices.
        operating_points: thresholds on the calibrated probability, with what they gave on these same slices.
    """

    format: Literal[1] = 1
    slices: int
    patients: int
    positives: int
    prevalence: float
    temperature: float
    prior_shift: float
    log_loss_before: float
    log_loss_after: float
    operating_points: dict[str, OperatingPoint]


def fit_temperature(labels: NDArray[np.float32], logits: NDArray[np.float64]) -> float:
    """The T that minimizes the log loss of sigmoid(logit / T), for logits float `[n]`.

    Guo et al., "On calibration of modern neural networks" (2017), section 4.2, with one class. The loss is convex in
    1 / T, so a bounded search finds its minimum.
    """

    def loss(log_temperature: float) -> float:
        return log_loss(labels, expit(logits / math.exp(log_temperature)))

    return math.exp(minimize_scalar(loss, bounds=_LOG_TEMPERATURE, method="bounded", options={"xatol": 1e-6}).x)


def calibrate(search: Location) -> Calibration:
    """Fit the temperature and the F2-optimal threshold; write calibration.json and the bundle's card.

    Test figures that the card may hold belong to the calibration before and are taken out; the count of openings stays.

    Raises:
        ConfigError: no bundle, or calibration patients without a positive or a negative slice.
        IntegrityError: the bundle is damaged, or the dataset is another one.
    """
    from ich_ray.final.bundle import load_bundle  # loads PyTorch
    from ich_ray.model.training import prior_shift

    found = open_search(search)
    dataset = PreparedDataset.open(found.record.dataset, fingerprint=found.record.fingerprint)
    bundle = load_bundle(found.files.bundle)
    slices = dataset.role("calibration")
    positives = int(slices.labels.sum())
    if not 0 < positives < len(slices):
        raise ConfigError(
            f"calibration role: slices with and without haemorrhage must be there, got {positives} positive of "
            f"{len(slices)}; prepare a dataset with more patients"
        )
    counts = dataset.manifest.roles["train"]
    shift = prior_shift(bundle.card.parameters.loss, counts.positives, counts.slices - counts.positives)
    calibration = _fit(slices, bundle.slice_logits(slices), shift)
    write_json(found.files.calibration, calibration.model_dump(mode="json"))
    fitted = {name: getattr(calibration, name) for name in ("temperature", "prior_shift", "operating_points")}
    write_card(found.files.bundle, bundle.card.model_copy(update={**fitted, "test": None}))
    point = calibration.operating_points["f2"]
    say(
        f"  calibrated on {len(slices):,} slices: temperature {calibration.temperature:.2f}, log loss "
        f"{calibration.log_loss_before:.3f} -> {calibration.log_loss_after:.3f}, threshold {point.threshold:.3f}"
    )
    return calibration


def _fit(slices: SliceSet, raw: NDArray[np.float32], shift: float) -> Calibration:
    labels, logits = slices.labels, raw.astype(np.float64)
    temperature = fit_temperature(labels, logits + shift)
    probabilities = expit((logits + shift) / temperature)
    threshold, f2 = best_f_beta(labels, probabilities, 2.0)
    decisions = confusion(labels, probabilities, threshold)
    point = OperatingPoint(
        threshold=threshold,
        sensitivity=decisions.sensitivity,
        specificity=decisions.specificity,
        ppv=decisions.ppv,
        f2=f2,
    )
    return Calibration(
        slices=len(slices),
        patients=len(set(slices.patients)),
        positives=int(labels.sum()),
        prevalence=slices.prevalence,
        temperature=temperature,
        prior_shift=shift,
        log_loss_before=log_loss(labels, expit(logits)),
        log_loss_after=log_loss(labels, probabilities),
        operating_points={"f2": point},
    )
