from __future__ import annotations

import math
import time

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ich_ray.metrics import Ranking
from ich_ray.resampling import PatientDraws, interval, patient_bootstrap


def test_bootstrap_draws_patients() -> None:
    """With one slice value per patient the interval must be that of the patients, however many slices each has."""
    rng = np.random.default_rng(1)
    per_patient = rng.random(100)
    few = patient_bootstrap(lambda w: {"m": float(w @ per_patient / w.sum())}, np.arange(100), resamples=500)
    values = np.repeat(per_patient, 20)
    many = patient_bootstrap(lambda w: {"m": float(w @ values / w.sum())}, np.repeat(np.arange(100), 20), resamples=500)
    assert_allclose(few["m"], many["m"])
    assert few["m"].low < few["m"].value < few["m"].high


def test_bootstrap_ignores_undefined_resamples() -> None:
    labels, scores = np.array([1, 0, 0, 0]), np.array([0.9, 0.4, 0.3, 0.2])
    ranking = Ranking(labels, scores)
    found = patient_bootstrap(lambda w: {"ap": ranking.statistics(w)[0]}, np.arange(4), resamples=50)
    assert found["ap"] == (1.0, 1.0, 1.0)
    none = patient_bootstrap(lambda w: {"x": math.nan}, np.arange(4), resamples=5)
    assert all(math.isnan(part) for part in none["x"])


def test_clustered_intervals_cover() -> None:
    """Of 200 simulations 92 to 98 % of the 95 % intervals hold the truth; intervals that draw slices do not."""
    rng = np.random.default_rng(0)
    patients, slices, truth, covered, covered_by_slices = 80, 8, 0.7, 0, 0
    group = np.repeat(np.arange(patients), slices)
    for number in range(200):
        skill = rng.beta(truth * 3, (1 - truth) * 3, patients)
        found = rng.random(patients * slices) < skill[group]

        def mean(weights: np.ndarray, found: np.ndarray = found) -> dict[str, float]:
            return {"sensitivity": float(weights @ found / weights.sum())}

        interval = patient_bootstrap(mean, group, resamples=200, seed=number)["sensitivity"]
        covered += interval.low <= truth <= interval.high
        naive = patient_bootstrap(mean, np.arange(len(group)), resamples=200, seed=number)["sensitivity"]
        covered_by_slices += naive.low <= truth <= naive.high
    assert 0.92 <= covered / 200 <= 0.98
    assert covered_by_slices / 200 < 0.9


def test_sums_are_those_of_the_weights() -> None:
    rng = np.random.default_rng(2)
    patients, values = rng.integers(0, 9, 40), rng.random((40, 3))
    draws, some = PatientDraws(patients, resamples=20, seed=4), np.array([3, 5, 17])
    assert (draws.times.sum(axis=1) == draws.patients).all()
    assert_allclose(draws.sums(values), [weights @ values for weights in draws.weights()])
    assert_allclose(draws.sums(values[some], some), [weights @ values[some] for weights in draws.weights(some)])


def test_the_interval_is_of_percentiles() -> None:
    assert interval(3.0, np.arange(101.0), 0.9) == (3.0, pytest.approx(5), pytest.approx(95))
    assert interval(3.0, np.array([math.nan, 2.0])) == (3.0, 2.0, 2.0)


def test_a_thousand_resamples_of_75000_slices_take_seconds() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(75_000) < 0.14
    ranking, patients = Ranking(labels, rng.random(75_000) + labels), np.repeat(np.arange(1_875), 40)
    started = time.perf_counter()
    patient_bootstrap(lambda w: dict(zip(("ap", "auc"), ranking.statistics(w), strict=True)), patients, resamples=100)
    assert time.perf_counter() - started < 3
