"""Whether probabilities mean what they say: expected calibration error, slope and intercept.

Knows labels and probabilities; nothing of files, networks or patients. A model that is calibrated perfectly still shows
an expected calibration error above 0, the more the fewer slices there are, so that figure is never given without its
null band. Shapes are those of statistics/metrics.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit, logit

from ich_ray.statistics.bootstrap import Interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BINS", "bin_of", "ece", "ece_null_band", "log_odds", "recalibration", "recalibration_terms", "stepped"]

BINS = 15  # of equal width, as in Guo et al. (2017)
_SIMULATED_AT_ONCE = 2_000_000  # labels: 16 MB of random numbers
_NEWTON_STEPS = 50


def bin_of(probabilities: NDArray[Any]) -> NDArray[np.int64]:
    """Which of `BINS` bins of equal width each probability lies in; 1 lies in the last."""
    return np.minimum((np.asarray(probabilities, np.float64) * BINS).astype(np.int64), BINS - 1)


def ece(labels: NDArray[Any], probabilities: NDArray[Any]) -> float:
    """Expected calibration error: the mean of |mean probability - share of positives| by bin.

    Bins weigh as much as they have slices. Naeini, Cooper & Hauskrecht, "Obtaining well calibrated probabilities using
    Bayesian binning" (2015), with `BINS` bins. NaN without a slice.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if not len(probabilities):
        return math.nan
    gaps = np.bincount(bin_of(probabilities), probabilities - np.asarray(labels, np.float64), BINS)
    return float(np.abs(gaps).sum() / len(probabilities))


def ece_null_band(
    probabilities: NDArray[Any], *, simulations: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """The median and central range of the error of a perfect model.

    Labels are drawn from the probabilities. Given its probability each simulated slice is independent of the others,
    which is what perfect calibration of every single slice would mean.
    """
    ordered = np.sort(np.asarray(probabilities, np.float64))
    if not len(ordered):
        return Interval(math.nan, math.nan, math.nan)
    held, starts = np.unique(bin_of(ordered), return_index=True)
    expected = np.add.reduceat(ordered, starts)
    rng, found = np.random.default_rng(seed), np.empty(simulations)
    step = max(1, _SIMULATED_AT_ONCE // len(ordered))
    for first in range(0, simulations, step):
        drawn = rng.random((min(step, simulations - first), len(ordered))) < ordered
        positives = np.add.reduceat(drawn, starts, axis=1, dtype=np.int64).reshape(-1, len(held))
        found[first : first + step] = np.abs(positives - expected).sum(axis=1) / len(ordered)
    low, middle, high = np.quantile(found, [(1 - confidence) / 2, 0.5, (1 + confidence) / 2])
    return Interval(float(middle), float(low), float(high))


def log_odds(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """log(p / (1 - p)), with 0 and 1 moved by one float64 epsilon."""
    tiny = np.finfo(np.float64).eps
    return np.asarray(logit(np.clip(np.asarray(probabilities, np.float64), tiny, 1 - tiny)))


def recalibration(labels: NDArray[Any], probabilities: NDArray[Any]) -> tuple[float, float]:
    """Calibration slope and calibration intercept; 1 and 0 are perfect.

    The slope is b of logit P(y = 1) = a + b logit(p): below 1 the probabilities are too extreme. The intercept is a of
    logit P(y = 1) = a + logit(p): below 0 they are too high on the whole (Cox 1958; Van Calster et al., "Calibration:
    the Achilles heel of predictive analytics", 2019). Both are NaN without both kinds of slices or where the
    probabilities part them perfectly.
    """
    truth, odds = np.asarray(labels, np.float64), log_odds(probabilities)
    _, slope = _newton(truth, np.column_stack([np.ones(len(odds)), odds]), np.zeros(len(odds)))
    (intercept,) = _newton(truth, np.ones((len(odds), 1)), odds)
    return slope, intercept


def _newton(truth: NDArray[np.float64], design: NDArray[np.float64], offset: NDArray[np.float64]) -> tuple[float, ...]:
    """The coefficients `[columns]` of a logistic regression with an offset; NaN where there are none."""
    coefficients: NDArray[np.float64] = np.zeros(design.shape[1])
    undefined = tuple([math.nan] * int(design.shape[1]))
    if not 0 < truth.sum() < len(truth):
        return undefined
    for _ in range(_NEWTON_STEPS):
        gradient, hessian = _derivatives(truth, design, offset + design @ coefficients)
        try:
            step = np.linalg.solve(hessian.sum(axis=0), gradient.sum(axis=0))
        except np.linalg.LinAlgError:
            return undefined
        # Probabilities far too extreme make the first steps overshoot.
        coefficients += step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-10:
            return tuple(map(float, coefficients))
    return undefined


def _derivatives(
    truth: NDArray[np.float64], design: NDArray[np.float64], moved: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each slice's part of the gradient `[n, k]` and of the negative Hessian `[n, k, k]` of the log likelihood."""
    probability = expit(moved)
    spread = probability * (1 - probability)
    gradient = (truth - probability)[:, None] * design
    return gradient, spread[:, None, None] * design[:, :, None] * design[:, None, :]


def recalibration_terms(
    labels: NDArray[Any], probabilities: NDArray[Any], slope: float, intercept: float
) -> NDArray[np.float64]:
    """Terms by slice whose sums move slope and intercept one Newton step, for a bootstrap.

    One step from the estimate is as good as a new fit for resamples of more than a few dozen positives, and makes
    thousands of them one matrix product (Moulton & Zeger, "Bootstrapping generalized linear models", 1991).

    Returns:
        `[n, 7]`: gradient of (a, b); the three distinct second derivatives; gradient and second derivative of the
        intercept. See `stepped`.
    """
    truth, odds = np.asarray(labels, np.float64), log_odds(probabilities)
    alone = np.ones((len(odds), 1))
    design = np.column_stack([alone[:, 0], odds])
    start = _newton(truth, design, np.zeros(len(odds)))[0] + slope * odds
    gradient, hessian = _derivatives(truth, design, start)
    gradient_of_one, hessian_of_one = _derivatives(truth, alone, odds + intercept)
    second = np.column_stack([hessian[:, 0, 0], hessian[:, 0, 1], hessian[:, 1, 1]])
    return np.column_stack([gradient, second, gradient_of_one, hessian_of_one[:, :, 0]])


def stepped(
    sums: NDArray[np.float64], slope: float, intercept: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Slopes and intercepts `[resamples]` from the sums `[resamples, 7]` of `recalibration_terms`."""
    a, b, aa, ab, bb, one, one_one = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return slope + (aa * b - ab * a) / (aa * bb - ab * ab), intercept + one / one_one
