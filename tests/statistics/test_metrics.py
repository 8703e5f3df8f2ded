from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from ich_ray.statistics.metrics import (
    METRICS,
    Confusion,
    at_chance,
    average_precision,
    best_f_beta,
    brier,
    chance_bound,
    confusion,
    f_beta,
    floors,
    log_loss,
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


def test_arrays_of_counts_have_the_ratios_of_each() -> None:
    each = [(3.0, 1.0, 2.0, 4.0), (0.0, 0.0, 5.0, 5.0), (0.0, 0.0, 0.0, 9.0)]
    found = Confusion(*np.array(each).T)
    assert found.ppv == pytest.approx([0.75, math.nan, math.nan], nan_ok=True)
    assert found.f_beta(2) == pytest.approx([15 / 24, 0.0, math.nan], nan_ok=True)
    assert found.accuracy == pytest.approx([0.7, 0.5, 1.0])


# Table 1 of report B: F2, accuracy, sensitivity, "specificity".
REPORT_B = {
    "m1": (0.5360824742268042, 0.478, 0.9059233449477352, 0.20360219263899765),
    "m2": (0.27452415812591513, 0.8225, 0.2613240418118467, 0.3440366972477064),
    "m4": (0.46023091725465043, 0.1585, 1.0, 0.14568527918781726),
    "m5": (0.4577157802964254, 0.8053333333333333, 0.4883720930232558, 0.36585365853658536),
    "m6": (0.4555084745762712, 0.14333333333333334, 1.0, 0.14333333333333334),
    "m7": (0.5818181818181818, 0.797, 0.6697674418604651, 0.38145695364238413),
    "m8": (0.4203792551976239, 0.8231666666666667, 0.42790697674418604, 0.3927427961579509),
    "m9": (0.5938308090136682, 0.7418333333333333, 0.7479643272586274, 0.3255146810664867),
    "m10": (0.6188475390156063, 0.7333888888888889, 0.7995347033734005, 0.325031525851198),
}


@pytest.mark.parametrize("name", REPORT_B)
def test_the_specificity_column_of_report_b_is_precision(name: str) -> None:
    """Its own F2 follows from the column only if that is PPV, and accuracy is then that of another specificity."""
    f2, accuracy, sensitivity, column = REPORT_B[name]
    assert f_beta(column, sensitivity, 2) == pytest.approx(f2, rel=1e-9)
    false_alarms = sensitivity * (1 - column) / column  # for each positive
    prevalence = (1 - accuracy) / (1 - sensitivity + false_alarms)
    assert prevalence == pytest.approx(RSNA_PREVALENCE, abs=0.003)
    specificity = 1 - false_alarms * prevalence / (1 - prevalence)
    assert accuracy == pytest.approx(sensitivity * prevalence + specificity * (1 - prevalence))
    assert abs(specificity - column) > 0.12
    if name == "m10":
        assert specificity == pytest.approx(0.722, abs=5e-4)


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


@pytest.mark.parametrize(
    ("prevalence", "bound"), [(0.02, 0.03), (0.25, 0.375), (1 / 3, 0.5), (0.5, 0.625), (0.7, 0.775), (0.9, 0.925)]
)
def test_chance_is_half_the_prevalence_above_it_or_a_quarter_of_the_room(prevalence: float, bound: float) -> None:
    assert chance_bound(prevalence) == pytest.approx(bound)
    assert at_chance(bound - 1e-9, prevalence)
    assert not at_chance(bound + 1e-9, prevalence)


@given(st.floats(1e-6, 1 - 1e-6))
def test_a_perfect_ranking_is_never_at_chance_and_a_blind_one_always(prevalence: float) -> None:
    assert not at_chance(1.0, prevalence)
    assert at_chance(prevalence, prevalence)


def test_ranking_note() -> None:
    assert ranking_note(63, 9, 4) == (
        "63 positives are too few to rank models: 9 of them lie in validation, worth 4 independent ones as slices of a "
        "patient are alike, where the standard error of average precision is up to 0.25; trials closer than 0.50 "
        "cannot be told apart, and 1,000 independent validation positives would part them at 0.03"
    )
    assert "no average precision" in (ranking_note(5, 0) or "")
    assert "no average precision" in (ranking_note(5, 0, 0.0) or "")


def test_a_ranking_rests_on_patients_and_says_so_where_it_does_not_know_them() -> None:
    """400 positives of 40 patients: 0.066 in simulations, 0.5 / sqrt(40) at most, and not the 0.5 / sqrt(400)."""
    note = ranking_note(4000, 400, 40)
    assert note is not None
    assert "up to 0.08" in note
    unknown = ranking_note(4000, 400)
    assert unknown is not None
    assert "would be up to 0.03 were slices independent, and is more as those of a patient are not" in unknown
    assert "63 positives are too few to rank models: 42 of them lie in train and validation, worth 20 independent" in (
        ranking_note(63, 42, 20, where="train and validation") or ""
    )
    assert ranking_note(7000, 1000) is None
    assert ranking_note(7000, 1000, 1000) is None
    assert "up to 0.05" in (ranking_note(7000, 1000, 100) or "")


def test_floors_by_hand() -> None:
    """At a prevalence of 1/4: F2 is 5/4 / 2 of calling all positive, log loss -(ln(1/4) / 4 + 3 ln(3/4) / 4)."""
    expected = {
        "average_precision": 0.25,
        "roc_auc": 0.5,
        "log_loss": 0.562335,
        "brier": 0.1875,
        "ppv": 0.25,
        "f2": 0.625,
    }
    assert floors(0.25) == pytest.approx({**expected, "accuracy": 0.75}, abs=1e-6)
    assert floors(0.0)["log_loss"] == 0
    assert {name for name, metric in METRICS.items() if metric.better == "min"} == {
        "log_loss", "brier", "ece", "train_loss", "weighted_log_loss",
    }  # fmt: skip
