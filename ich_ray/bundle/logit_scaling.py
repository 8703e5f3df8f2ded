"""From logits to probabilities by three numbers, and how these are fitted.

Knows logits and labels; knows nothing of files, roles or networks. The probability of a slice is
sigmoid((logit + prior_shift) / temperature + bias), in this order and only here: the logit is freed of the training
class weights, then tempered, then moved. Each step rises with the logit, so none changes a ranking.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit

from ich_ray.errors import IchRayError
from ich_ray.statistics.calibration_error import log_odds
from ich_ray.statistics.metrics import log_loss

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["METHODS", "LogitScaling", "Method", "bound_note", "fit_platt", "fit_scaling", "fit_temperature"]

Method = Literal["temperature", "platt"]
METHODS: tuple[Method, ...] = ("temperature", "platt")

# Wide enough for any network that learned something; reached only by labels that the logits part perfectly, or not at
# all. A temperature is never negative: that would turn the ranking round.
_TEMPERATURES = (0.05, 20.0)
_BIASES = (-30.0, 30.0)


@dataclass(frozen=True)
class LogitScaling:
    """What turns logits into probabilities; the default is the plain sigmoid.

    Raises:
        IchRayError: a number is not finite, or the temperature not above 0.
    """

    prior_shift: float = 0.0
    temperature: float = 1.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and all(map(math.isfinite, (self.prior_shift, self.temperature, self.bias)))):
            raise IchRayError(
                f"scaling: temperature > 0 and finite numbers must hold, got temperature {self.temperature:g}, "
                f"prior_shift {self.prior_shift:g}, bias {self.bias:g}; calibrate again"
            )

    def __call__(self, logits: NDArray[Any]) -> NDArray[np.float64]:
        """Probabilities float64 `[n]` of logits `[n]`.

        NaN, which is no probability, where the logit is not finite or leaves float64 on its way: the sigmoid would make
        0 or 1 of an infinity, and a decision of a fault.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = (np.asarray(logits, np.float64) + self.prior_shift) / self.temperature + self.bias
        return np.where(np.isfinite(scaled), expit(scaled), np.nan)

    def logits(self, probabilities: NDArray[Any]) -> NDArray[np.float64]:
        """The logits float64 `[n]` of these probabilities; 0 and 1 are moved by a float64 epsilon."""
        return (log_odds(probabilities) - self.bias) * self.temperature - self.prior_shift


def fit_temperature(labels: NDArray[Any], logits: NDArray[np.float64]) -> float:
    """The T that minimizes the log loss of sigmoid(logit / T), for logits float `[n]`.

    Guo et al., "On calibration of modern neural networks" (2017), section 4.2, with one class. The loss is convex in
    1 / T, so a bounded search finds its minimum.
    """

    def loss(log_temperature: float) -> float:
        return log_loss(labels, expit(logits / math.exp(log_temperature)))

    bounds = tuple(map(math.log, _TEMPERATURES))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x)


def fit_platt(labels: NDArray[Any], logits: NDArray[np.float64]) -> tuple[float, float]:
    """The T and b that minimize the log loss of sigmoid(logit / T + b).

    Platt, "Probabilistic outputs for support vector machines" (1999), without his smoothing of the labels, which
    matters below a few dozen of them; the same as logistic recalibration (Cox 1958). The loss is convex in (1 / T, b).
    """
    truth = np.asarray(labels, np.float64)

    def loss(numbers: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        moved = numbers[0] * logits + numbers[1]
        error = (expit(moved) - truth) / len(truth)
        return float(np.mean(np.logaddexp(0, moved) - truth * moved)), np.array([error @ logits, error.sum()])

    bounds = [(1 / _TEMPERATURES[1], 1 / _TEMPERATURES[0]), _BIASES]
    found = minimize(
        loss, np.array([1.0, 0.0]), jac=True, bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-9}
    )
    return float(1 / found.x[0]), float(found.x[1])


def fit_scaling(method: Method, labels: NDArray[Any], logits: NDArray[Any], prior_shift: float) -> LogitScaling:
    """The scaling with the least log loss on `labels` `[n]`, given the shift of class weights."""
    shifted = np.asarray(logits, np.float64) + prior_shift
    if method == "temperature":
        return LogitScaling(prior_shift, fit_temperature(labels, shifted))
    return LogitScaling(prior_shift, *fit_platt(labels, shifted))


def bound_note(scaling: LogitScaling) -> str | None:
    """What to say when the temperature lies at an end of what is searched, else None."""
    lowest, highest = _TEMPERATURES
    got = f"{lowest:g} < temperature < {highest:g} must hold for a fit to mean something, got {scaling.temperature:.4g}"
    if scaling.temperature > 0.99 * highest:
        return (
            f"calibration: {got}: logits say nothing of these labels, or rank them the wrong way round, and all "
            "probabilities are nearly alike; check the labels, or train again"
        )
    if scaling.temperature < 1.01 * lowest:
        return (
            f"calibration: {got}: logits part these labels without a miss, and all probabilities are nearly 0 or 1; "
            "calibrate on more patients before reading them as such"
        )
    return None
