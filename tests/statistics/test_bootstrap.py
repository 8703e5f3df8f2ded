from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from ich_ray.statistics.bootstrap import (
    Interval,
    PatientDraws,
    effective_count,
    exact_interval,
    interval,
    lower_bound,
    share_interval,
)
from ich_ray.statistics.metrics import Ranking


def patient_bootstrap(
    statistic: Callable[[np.ndarray], float], patients: np.ndarray, resamples: int, seed: int = 0
) -> Interval:
    """The interval of a figure, given as a function of the weights of slices."""
    draws = PatientDraws(patients, resamples=resamples, seed=seed)
    return interval(statistic(np.ones(len(patients))), np.array([statistic(weights) for weights in draws.weights()]))


def test_bootstrap_draws_patients() -> None:
    """With one slice value per patient the interval must be that of the patients, however many slices each has."""
    rng = np.random.default_rng(1)
    per_patient = rng.random(100)
    few = patient_bootstrap(lambda w: float(w @ per_patient / w.sum()), np.arange(100), resamples=500)
    values = np.repeat(per_patient, 20)
    many = patient_bootstrap(lambda w: float(w @ values / w.sum()), np.repeat(np.arange(100), 20), resamples=500)
    assert_allclose(few, many)
    assert few.low < few.value < few.high


def test_bootstrap_ignores_undefined_resamples() -> None:
    labels, scores = np.array([1, 0, 0, 0]), np.array([0.3, 0.4, 0.9, 0.2])
    ranking = Ranking(labels, scores)
    found = patient_bootstrap(lambda w: ranking.statistics(w)[0], np.arange(4), resamples=50)
    assert found.value == pytest.approx(1 / 3)
    assert found.low < 1 / 3 < found.high
    assert all(math.isnan(part) for part in patient_bootstrap(lambda _: math.nan, np.arange(4), resamples=5))


def test_clustered_intervals_cover() -> None:
    """Of 200 simulations 92 to 98 % of the 95 % intervals hold the truth; intervals that draw slices do not."""
    rng = np.random.default_rng(0)
    patients, slices, truth, covered, covered_by_slices = 80, 8, 0.7, 0, 0
    group = np.repeat(np.arange(patients), slices)
    for number in range(200):
        skill = rng.beta(truth * 3, (1 - truth) * 3, patients)
        found = rng.random(patients * slices) < skill[group]

        def mean(weights: np.ndarray, found: np.ndarray = found) -> float:
            return float(weights @ found / weights.sum())

        clustered = patient_bootstrap(mean, group, resamples=200, seed=number)
        covered += clustered.low <= truth <= clustered.high
        naive = patient_bootstrap(mean, np.arange(len(group)), resamples=200, seed=number)
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
    assert interval(3.0, np.array([math.nan, 2.0, 2.0, 4.0]), 0.5) == (3.0, 2.0, 3.0)


@pytest.mark.parametrize("drawn", [[1.0, 1.0, 1.0], [1.0, math.nan], [1.0, 1.0 + 1e-12]])
def test_what_no_resample_moves_has_no_interval(drawn: list[float]) -> None:
    assert interval(1.0, np.array(drawn)) == (
        1.0,
        pytest.approx(math.nan, nan_ok=True),
        pytest.approx(math.nan, nan_ok=True),
    )


def test_slices_of_one_patient_are_worth_one() -> None:
    assert effective_count(np.arange(6)) == 6
    assert effective_count(np.array([0, 0, 0, 1, 1, 1])) == 2
    assert effective_count(np.array([0, 0, 0, 0, 0, 1])) == pytest.approx(36 / 26)
    assert effective_count(np.array([])) == 0


def test_the_lower_bound_by_hand() -> None:
    assert lower_bound(np.array([0.0, 1.0]), 10, 0.05).tolist() == [0.0, pytest.approx(0.05 ** (1 / 10))]
    assert lower_bound(0.8, 10, 0.025) == exact_interval(0.8, 10).low


def test_the_exact_interval_by_hand() -> None:
    """All of n: from (alpha / 2) ** (1 / n); 8 of 10 as in any table."""
    assert exact_interval(1.0, 10) == (1.0, pytest.approx(0.025 ** (1 / 10)), 1.0)
    assert exact_interval(0.0, 10) == (0.0, 0.0, pytest.approx(1 - 0.025 ** (1 / 10)))
    assert exact_interval(0.8, 10) == (0.8, pytest.approx(0.4439, abs=1e-4), pytest.approx(0.9748, abs=1e-4))
    assert exact_interval(1.0, 1, 0.9) == (1.0, pytest.approx(0.05), 1.0)
    assert math.isnan(exact_interval(math.nan, 5).low)
    assert math.isnan(exact_interval(math.nan, 0).low)


@given(st.integers(0, 500), st.floats(1, 1e4), st.floats(0.5, 0.99))
def test_an_exact_interval_holds_its_share_and_mirrors(part: int, count: float, confidence: float) -> None:
    share = part / 500
    found, mirrored = exact_interval(share, count, confidence), exact_interval(1 - share, count, confidence)
    assert 0 <= found.low <= share <= found.high <= 1
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((found.low, found.high), abs=1e-6)


def test_a_share_is_drawn_where_draws_can_tell_and_exact_elsewhere() -> None:
    moving, still = np.arange(101) / 100, np.ones(101)
    assert share_interval(0.5, moving, np.arange(6), 0.9) == interval(0.5, moving, 0.9)
    assert share_interval(0.5, moving, np.arange(5), 0.9) == exact_interval(0.5, 5, 0.9)
    assert share_interval(1.0, still, np.arange(200) // 2) == exact_interval(1.0, 100)
    assert share_interval(0.75, np.full(9, 0.75), np.zeros(8)) == exact_interval(0.75, 1)


def test_intervals_cover_where_hardly_anything_is_missed() -> None:
    """Of 400 draws of 12 patients, of whom each is found or missed as a whole, 95 % and more hold the truth of 0.95."""
    rng, truth, covered, collapsed = np.random.default_rng(0), 0.95, 0, 0
    patients = np.repeat(np.arange(12), 5)
    draws = PatientDraws(patients, resamples=200)
    for _ in range(400):
        found = (rng.random(12) < truth)[patients]
        drawn = draws.sums(found[:, None])[:, 0] / len(patients)
        one = share_interval(float(found.mean()), drawn, patients)
        covered += one.low <= truth <= one.high
        collapsed += math.isnan(interval(float(found.mean()), drawn).low)
    assert covered / 400 >= 0.95
    assert collapsed / 400 == pytest.approx(truth**12, abs=0.05)
