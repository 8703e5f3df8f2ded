from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from ich_ray.bundle.logit_scaling import (
    METHODS,
    LogitScaling,
    Method,
    bound_note,
    fit_platt,
    fit_scaling,
    fit_temperature,
)
from ich_ray.statistics.metrics import Ranking, log_loss


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 2, 20_000)
    return (rng.random(20_000) < expit(logits)).astype(np.float32), logits


def test_it_shifts_then_tempers_then_moves() -> None:
    found = LogitScaling(prior_shift=-1.0, temperature=2.0, bias=0.25)(np.array([0.0, 2.0], np.float32))
    assert found == pytest.approx([1 / (1 + math.exp(0.25)), 1 / (1 + math.exp(-0.75))])


def test_the_temperature_of_overconfident_logits_is_found(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    labels, logits = drawn
    assert fit_temperature(labels, logits) == pytest.approx(1, abs=0.05)
    assert fit_temperature(labels, 3 * logits) == pytest.approx(3, abs=0.15)


def test_platt_is_logistic_regression(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    """scikit-learn's, without its penalty, on logits that are overconfident and moved by 4."""
    labels, logits = drawn
    given_logits = 3 * logits + 4
    temperature, bias = fit_platt(labels, given_logits)
    peer = LogisticRegression(C=math.inf, tol=1e-10).fit(given_logits[:, None], labels)
    assert 1 / temperature == pytest.approx(peer.coef_[0, 0], rel=1e-4)
    assert bias == pytest.approx(peer.intercept_[0], rel=1e-3)
    assert temperature == pytest.approx(3, abs=0.15)
    assert bias == pytest.approx(-4 / 3, abs=0.1)


def test_platt_is_never_worse_than_a_temperature(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    labels, logits = drawn
    one, two = (fit_scaling(method, labels, 2 * logits + 1, -0.5) for method in ("temperature", "platt"))
    assert log_loss(labels, two(2 * logits + 1)) < log_loss(labels, one(2 * logits + 1))
    assert (one.prior_shift, two.prior_shift, one.bias) == (-0.5, -0.5, 0.0)


def test_labels_against_the_logits_do_not_turn_the_ranking_round() -> None:
    labels, logits = np.array([1, 1, 0, 0]), np.array([-2.0, -1.0, 1.0, 2.0])
    assert fit_platt(labels, logits)[0] == pytest.approx(20)
    assert fit_temperature(labels, logits) == pytest.approx(20, rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_a_temperature_at_its_bound_is_noted(method: Method, drawn: tuple[np.ndarray, np.ndarray]) -> None:
    labels, logits = np.array([1, 1, 0, 0]), np.array([-2.0, -1.0, 1.0, 2.0])
    backwards, perfect = (bound_note(fit_scaling(method, labels, sign * logits, 0.0)) for sign in (1, -1))
    assert backwards is not None
    assert backwards.startswith("calibration: 0.05 < temperature < 20 must hold for a fit to mean something, got 20: ")
    assert "the wrong way round" in backwards
    assert perfect is not None
    assert "got 0.05: logits part these labels without a miss" in perfect
    assert bound_note(fit_scaling(method, *drawn, 0.0)) is None


@given(
    st.lists(st.floats(-12, 12, width=32), min_size=2, max_size=30),
    st.lists(st.booleans(), min_size=30, max_size=30),
    st.floats(-3, 3),
    st.floats(0.3, 20),
    st.floats(-5, 5),
)
def test_calibration_never_changes_the_ranking(
    logits: list[float], truth: list[bool], shift: float, temperature: float, bias: float
) -> None:
    raw, labels = np.array(logits, np.float32), np.array(truth[: len(logits)])
    scaled = LogitScaling(shift, temperature, bias)(raw)
    assert (np.diff(scaled[np.argsort(raw, kind="stable")]) >= 0).all()
    rounded = np.round(raw, 2).astype(np.float64)
    # Below this logit probabilities of logits so far apart are two numbers, above it float64 may make them one.
    apart = (rounded.max() + shift) / temperature + bias < 24
    if apart and 0 < labels.sum() < len(labels):
        after = Ranking(labels, LogitScaling(shift, temperature, bias)(rounded)).statistics()
        assert after == pytest.approx(Ranking(labels, rounded).statistics(), abs=1e-12)


@given(st.lists(st.floats(-12, 12), min_size=1, max_size=30), st.floats(-3, 3), st.floats(0.5, 20), st.floats(-5, 5))
def test_logits_are_found_again(logits: list[float], shift: float, temperature: float, bias: float) -> None:
    scaling = LogitScaling(shift, temperature, bias)
    raw = np.clip(logits, -12, 12) * min(temperature, 1.0)  # where float64 still tells a probability from 1
    again = scaling.logits(scaling(raw))
    assert scaling(again) == pytest.approx(scaling(raw), abs=1e-12)
    assert again == pytest.approx(raw, abs=1e-2)


@given(st.lists(st.tuples(st.booleans(), st.floats(-8, 8)), min_size=4, max_size=30))
def test_fitting_either_method_keeps_the_ranking(slices: list[tuple[bool, float]]) -> None:
    labels, logits = (np.array(column, np.float64) for column in zip(*slices, strict=True))
    if not 0 < labels.sum() < len(labels):
        return
    for method in ("temperature", "platt"):
        probabilities = fit_scaling(method, labels, logits, 0.3)(logits)
        assert (np.diff(probabilities[np.argsort(logits, kind="stable")]) >= 0).all()
