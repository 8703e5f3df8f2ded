from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from ich_ray.final.calibration import fit_temperature, prior_shift
from ich_ray.metrics import average_precision, log_loss, roc_auc


def sample(count: int = 40_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated logits with labels drawn from them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1.5, 2.0, count)
    return logits, (rng.random(count) < expit(logits)).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_temperature_that_was_put_in_comes_out(temperature: float) -> None:
    logits, labels = sample()
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.05)


def test_class_weights_are_undone() -> None:
    # 10 % positives: weights 1/n_c multiply the odds by 9, which is log 9 on the logit.
    assert prior_shift(100, 1000) == pytest.approx(-math.log(9))
    assert prior_shift(500, 1000) == 0.0


def test_undoing_the_weights_lowers_the_log_loss_of_weighted_training() -> None:
    logits, labels = sample()
    weighted = logits - prior_shift(int(labels.sum()), len(labels))
    corrected = weighted + prior_shift(int(labels.sum()), len(labels))
    assert log_loss(labels, expit(corrected)) < log_loss(labels, expit(weighted))


@given(
    st.floats(-5, 5),
    st.floats(0.05, 20),
    st.lists(st.floats(-8, 8).map(lambda value: round(value, 3)), min_size=4, max_size=40),
)
def test_calibration_never_changes_the_ranking(shift: float, temperature: float, values: list[float]) -> None:
    logits = np.array(values)
    labels = (np.arange(len(values)) % 2).astype(np.float32)
    calibrated = (logits + shift) / temperature
    assert average_precision(labels, calibrated) == pytest.approx(average_precision(labels, logits))
    assert roc_auc(labels, calibrated) == pytest.approx(roc_auc(labels, logits))
