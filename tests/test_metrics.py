from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn import metrics as sklearn_metrics

from ich_ray.metrics import (
    Confusion,
    Ranking,
    at_chance,
    average_precision,
    best_f_beta,
    brier,
    confusion,
    f_beta,
    floors,
    log_loss,
    patient_bootstrap,
    ranking_note,
    roc_auc,
)

RSNA_PREVALENCE = 107_933 / 752_803
HOLDOUT = Confusion(tp=17_471, fp=30_991, fn=4_094, tn=97_951)

# Scores on a coarse grid, so that ties are common.
rows = st.lists(st.tuples(st.booleans(), st.integers(0, 8), st.integers(0, 3)), min_size=2, max_size=40)


def columns(rows: list[tuple[bool, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, scores, weights = zip(*rows, strict=True)
    return np.array(labels, np.float32), np.array(scores) / 8, np.array(weights, float)


def test_the_holdout_of_report_b() -> None:
    assert HOLDOUT.ppv == pytest.approx(0.3605, abs=5e-5)
    assert HOLDOUT.sensitivity == pytest.approx(0.8102, abs=5e-5)
    assert HOLDOUT.specificity == pytest.approx(0.7597, abs=5e-5)
    assert HOLDOUT.f_beta(2) == pytest.approx(0.6484, abs=5e-5)
    assert HOLDOUT.f_beta(2) == pytest.approx(f_beta(HOLDOUT.ppv, HOLDOUT.sensitivity, 2))


def test_the_specificity_column_of_report_b_is_precision() -> None:
    assert f_beta(0.3250, 0.7995, 2) == pytest.approx(0.61885, abs=1e-4)


def test_floors_at_the_prevalence_of_rsna() -> None:
    found = floors(RSNA_PREVALENCE)
    assert round(found["log_loss"], 3) == 0.411
    assert round(found["f2"], 3) == 0.456
    assert round(found["f2"], 4) == 0.4556
    assert round(found["accuracy"], 3) == 0.857
    assert round(found["average_precision"], 3) == 0.143
    assert found["ppv"] == found["average_precision"]
    assert found["brier"] == pytest.approx(0.1228, abs=1e-4)
    assert found["roc_auc"] == 0.5


@pytest.mark.parametrize("prevalence", [0.0, 1.0])
def test_floors_at_the_edges(prevalence: float) -> None:
    assert floors(prevalence)["log_loss"] == 0
    assert floors(prevalence)["accuracy"] == 1


def test_floors_are_what_constant_forecasts_reach() -> None:
    labels, p = np.array([1.0] * 3 + [0.0] * 17), 0.15
    assert floors(p)["log_loss"] == pytest.approx(log_loss(labels, np.full(20, p)))
    assert floors(p)["brier"] == pytest.approx(brier(labels, np.full(20, p)))
    assert floors(p)["f2"] == pytest.approx(confusion(labels, np.full(20, p), 0.0).f_beta(2))


def test_confusion_by_hand() -> None:
    found = confusion(np.array([1, 1, 0, 0, 0]), np.array([0.9, 0.4, 0.5, 0.2, 0.1]), 0.5)
    assert found == Confusion(tp=1, fp=1, fn=1, tn=2)
    assert isinstance(found.tp, int)
    assert (found.npv, found.accuracy) == (2 / 3, 3 / 5)


def test_undefined_is_nan_and_missed_is_zero() -> None:
    nothing_called = Confusion(tp=0, fp=0, fn=3, tn=7)
    assert math.isnan(nothing_called.ppv)
    assert nothing_called.f_beta(2) == 0
    no_positives = Confusion(tp=0, fp=0, fn=0, tn=7)
    assert math.isnan(no_positives.f_beta(2))
    assert math.isnan(no_positives.sensitivity)
    negatives = np.zeros(3)
    assert math.isnan(average_precision(negatives, np.arange(3)))
    assert math.isnan(roc_auc(negatives, np.arange(3)))
    assert math.isnan(roc_auc(np.ones(3), np.arange(3)))
    assert all(math.isnan(part) for part in best_f_beta(negatives, np.arange(3) / 3))
    assert math.isnan(average_precision(np.zeros(0), np.zeros(0)))


@given(rows)
def test_ranking_equals_sklearn(rows: list[tuple[bool, int, int]]) -> None:
    labels, scores, weights = columns(rows)
    if 0 < labels.sum() < len(labels):
        assert average_precision(labels, scores) == pytest.approx(
            sklearn_metrics.average_precision_score(labels, scores), abs=1e-12
        )
        assert roc_auc(labels, scores) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)
    if 0 < labels @ weights < weights.sum():
        assert average_precision(labels, scores, weights) == pytest.approx(
            sklearn_metrics.average_precision_score(labels, scores, sample_weight=weights), abs=1e-12
        )
        assert roc_auc(labels, scores, weights) == pytest.approx(
            sklearn_metrics.roc_auc_score(labels, scores, sample_weight=weights), abs=1e-12
        )


@given(rows)
def test_losses_equal_sklearn(rows: list[tuple[bool, int, int]]) -> None:
    labels, scores, weights = columns(rows)
    if weights.sum() == 0:
        weights[0] = 1
    assert log_loss(labels, scores, weights) == pytest.approx(
        sklearn_metrics.log_loss(labels, scores, sample_weight=weights, labels=[0, 1]), abs=1e-9
    )
    assert brier(labels, scores, weights) == pytest.approx(
        sklearn_metrics.brier_score_loss(labels, scores, sample_weight=weights, labels=[0, 1]), abs=1e-12
    )


@given(rows, st.floats(0, 1), st.floats(0, 1))
def test_lowering_a_threshold_never_lowers_sensitivity(
    rows: list[tuple[bool, int, int]], one: float, other: float
) -> None:
    labels, scores, _ = columns(rows)
    lower, higher = confusion(labels, scores, min(one, other)), confusion(labels, scores, max(one, other))
    assert lower.tp >= higher.tp
    assert lower.tn <= higher.tn
    assert lower.tp + lower.fp + lower.fn + lower.tn == len(labels)


@given(rows, st.sampled_from([0.5, 1.0, 2.0]))
def test_the_best_f_beta_is_reached_and_not_beaten(rows: list[tuple[bool, int, int]], beta: float) -> None:
    labels, scores, _ = columns(rows)
    threshold, value = best_f_beta(labels, scores, beta)
    if labels.sum() == 0:
        return
    assert confusion(labels, scores, threshold).f_beta(beta) == pytest.approx(value)
    assert all(confusion(labels, scores, other).f_beta(beta) <= value + 1e-12 for other in scores)


def test_the_best_threshold_lies_between_probabilities() -> None:
    threshold, value = best_f_beta(np.array([1, 1, 0, 0]), np.array([0.9, 0.5, 0.3, 0.1]))
    assert (threshold, value) == (pytest.approx(0.4), 1.0)
    next_float = np.nextafter(0.5, 1)
    assert best_f_beta(np.array([1, 0]), np.array([next_float, 0.5]))[0] == next_float


def test_at_chance() -> None:
    assert at_chance(0.2144, 0.143)
    assert not at_chance(0.2146, 0.143)
    assert at_chance(math.nan, 0.143)


def test_ranking_note() -> None:
    note = ranking_note(63, 9)
    assert note is not None
    assert note.startswith("63 positives are too few to rank models: 9 of them lie in validation")
    assert "up to 0.17" in note
    assert "no average precision" in (ranking_note(5, 0) or "")
    assert ranking_note(7000, 1000) is None


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


def test_a_thousand_resamples_of_75000_slices_take_seconds() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(75_000) < 0.14
    ranking, patients = Ranking(labels, rng.random(75_000) + labels), np.repeat(np.arange(1_875), 40)
    started = time.perf_counter()
    patient_bootstrap(lambda w: dict(zip(("ap", "auc"), ranking.statistics(w), strict=True)), patients, resamples=100)
    assert time.perf_counter() - started < 3
