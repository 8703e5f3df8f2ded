from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from ich_ray.statistics.bootstrap import PatientDraws, interval
from ich_ray.statistics.calibration_error import (
    bin_of,
    ece,
    ece_null_band,
    log_odds,
    recalibration,
    recalibration_terms,
    stepped,
)


def binormal(slices: int, seed: int, distance: float = 1.5, prevalence: float = 0.143) -> tuple[np.ndarray, np.ndarray]:
    """Labels and the probabilities of a perfect model: of two normals `distance` apart."""
    rng = np.random.default_rng(seed)
    labels = rng.random(slices) < prevalence
    score = rng.normal(distance * labels, 1)
    return labels, expit(math.log(prevalence / (1 - prevalence)) + distance * score - distance**2 / 2)


def test_the_error_by_hand() -> None:
    """Bins of one fifteenth: {0.01, 0.02} holds 1 of 2, {0.5} holds none, {1.0} one: (0.97 + 0.5 + 0) / 4."""
    labels, probabilities = np.array([0, 1, 0, 1]), np.array([0.01, 0.02, 0.5, 1.0])
    assert bin_of(probabilities).tolist() == [0, 0, 7, 14]
    assert ece(labels, probabilities) == pytest.approx((0.97 + 0.5 + 0) / 4)
    assert math.isnan(ece(np.empty(0), np.empty(0)))


def test_a_perfect_model_of_2000_slices_shows_0_018() -> None:
    found = [ece(*binormal(2000, seed)) for seed in range(200)]
    assert np.median(found) == pytest.approx(0.018, abs=0.001)
    band = ece_null_band(binormal(2000, 0)[1], simulations=500)
    assert band.value == pytest.approx(0.018, abs=0.002)
    assert band.low < 0.0125
    assert band.high > 0.024
    inside = np.mean([band.low <= value <= band.high for value in found])
    assert 0.90 <= inside <= 0.99


def test_the_null_band_narrows_with_slices_and_is_seeded() -> None:
    few, many = (ece_null_band(binormal(slices, 1)[1], simulations=200) for slices in (500, 20_000))
    assert many.high < few.low
    probabilities = binormal(300, 1)[1]
    assert ece_null_band(probabilities, simulations=50) == ece_null_band(probabilities, simulations=50)
    assert ece_null_band(probabilities, simulations=50) != ece_null_band(probabilities, simulations=50, seed=1)
    assert math.isnan(ece_null_band(np.empty(0)).value)


def test_an_overconfident_model_lies_outside_the_band() -> None:
    labels, probabilities = binormal(5000, 0)
    sharper = expit(2 * log_odds(probabilities))
    assert ece(labels, sharper) > ece_null_band(sharper, simulations=200).high


@pytest.mark.parametrize(("stretch", "move"), [(1.0, 0.0), (2.0, 0.0), (0.5, 1.0), (3.0, -2.0)])
def test_slope_and_intercept_are_those_of_logistic_regression(stretch: float, move: float) -> None:
    labels, probabilities = binormal(4000, 3)
    wrong = expit(stretch * log_odds(probabilities) + move)
    slope, intercept = recalibration(labels, wrong)
    peer = LogisticRegression(C=math.inf, tol=1e-10).fit(log_odds(wrong)[:, None], labels)
    assert slope == pytest.approx(peer.coef_[0, 0], rel=1e-4)
    assert slope == pytest.approx(1 / stretch, rel=0.1)
    moved = expit(log_odds(wrong) + intercept)
    assert moved.mean() == pytest.approx(labels.mean(), abs=1e-9), "the score equation of an intercept"
    assert (intercept < 0) == (wrong.mean() > labels.mean())


def test_where_slope_and_intercept_do_not_exist() -> None:
    assert all(math.isnan(part) for part in recalibration(np.zeros(5), np.full(5, 0.2)))
    parted = recalibration(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9]))
    assert math.isnan(parted[0])
    constant = recalibration(np.array([0, 0, 0, 1]), np.full(4, 0.5))
    assert math.isnan(constant[0])
    assert constant[1] == pytest.approx(math.log(1 / 3))


def test_one_step_is_as_good_as_a_new_fit() -> None:
    """Intervals of 100 resamples of 150 patients, against refitting each."""
    labels, probabilities = binormal(1500, 4)
    patients = np.repeat(np.arange(150), 10)
    draws = PatientDraws(patients, resamples=100, seed=1)
    values = recalibration(labels, probabilities)
    stepwise = stepped(draws.sums(recalibration_terms(labels, probabilities, *values)), *values)
    again = []
    for times in draws.times:
        rows = np.repeat(np.arange(1500), times[draws.of_slice].astype(int))
        again.append(recalibration(labels[rows], probabilities[rows]))
    for value, one, other in zip(values, stepwise, np.array(again).T, strict=True):
        assert interval(value, one) == pytest.approx(interval(value, other), abs=0.02)
