from __future__ import annotations

import math

import numpy as np
import pytest

from ich_ray.data.series_order import SeriesOrder, ordered_series
from ich_ray.statistics.metrics import log_loss
from ich_ray.statistics.smoothing import SIGMAS, fit_sigmas, smoothed
from tests.sequences import make_series


def smooth(order: SeriesOrder, logits: list[float], sigma: float) -> list[float]:
    found = smoothed(np.array(logits)[:, None], order.place, order.starts, [sigma])
    return [float(value) for value in found[:, 0]]


def order(series: list[int], places: list[float]) -> SeriesOrder:
    return ordered_series(np.array(series), np.array(places))


def test_a_slice_has_the_weighted_mean_of_its_series() -> None:
    near, far = math.exp(-1 / 2), math.exp(-2)
    found = smooth(order([0, 0, 0], [0, 5, 10]), [3, 0, 0], 1.0)
    assert found == pytest.approx([3 / (1 + near + far), 3 * near / (1 + 2 * near), 3 * far / (1 + near + far)])


def test_rows_may_lie_in_any_order_and_series_do_not_mix() -> None:
    together = smooth(order([0, 1, 0, 1, 0], [10, 0, 0, 5, 5]), [3, 7, 1, 7, 2], 0.8)
    alone = smooth(order([0, 0, 0], [0, 5, 10]), [1, 2, 3], 0.8)
    assert together == pytest.approx([alone[2], 7, alone[0], 7, alone[1]])


def test_a_gap_is_a_step_like_any_other_and_a_lone_slice_stays() -> None:
    assert smooth(order([0, 0, 0], [0, 5, 90]), [1, 2, 6], 1.0) == pytest.approx(
        smooth(order([0, 0, 0], [0, 5, 10]), [1, 2, 6], 1.0)
    )
    assert smooth(order([0, -1, 1], [0, 5, 5]), [1, 2, 6], 2.0) == pytest.approx([1, 2, 6])


def test_slices_at_one_place_have_their_mean() -> None:
    assert smooth(order([0, 0, 0], [0, 5, 5]), [1, 2, 4], 0.0) == [1, 3, 3]


def test_each_label_has_a_width_of_its_own() -> None:
    given = order([0, 0, 0], [0, 5, 10])
    logits = np.array([[1.0, 1], [5, 5], [3, 3]])
    found = smoothed(logits, given.place, given.starts, [0.0, 1.0])
    assert found[:, 0].tolist() == [1, 5, 3]
    assert found[:, 1] == pytest.approx(smooth(given, [1, 5, 3], 1.0))
    assert found.dtype == np.float32


def test_the_width_has_the_least_log_loss() -> None:
    given = make_series(120, noise=1.0)
    logits = 1.5 * np.asarray(given.features[:, [1, 0]], np.float64) - 2
    *_, sigma = fit_sigmas(logits, given.targets, given.order.place, given.order.starts)

    def loss(width: float) -> float:
        scores = smoothed(logits, given.order.place, given.order.starts, [0, width])[:, 1].astype(np.float64)
        return log_loss(given.targets[:, 1], 1 / (1 + np.exp(-scores)))

    assert 0.5 < sigma < 3
    assert loss(sigma) == pytest.approx(min(map(loss, SIGMAS)), rel=1e-6)
    assert loss(sigma) < 0.95 * loss(0)


def test_a_rare_label_has_the_width_of_any() -> None:
    given = make_series(120, noise=1.0)
    logits = 1.5 * np.asarray(given.features[:, [1, 0]], np.float64) - 2
    targets = np.array(given.targets)
    positive = np.flatnonzero(targets[:, 0] == 1)
    targets[positive[19:], 0] = np.nan
    rare, of_any = fit_sigmas(logits, targets, given.order.place, given.order.starts)
    assert rare == of_any > 0
    assert fit_sigmas(logits, np.zeros_like(targets), given.order.place, given.order.starts) == (0, 0)


def test_independent_slices_are_not_smoothed() -> None:
    random = np.random.default_rng(0)
    labels = (random.random(600) < 0.3).astype(float)
    given = ordered_series(np.repeat(np.arange(30), 20), np.tile(np.arange(20) * 5.0, 30))
    logits = np.where(labels == 1, 2.0, -3.0)[:, None]
    assert fit_sigmas(logits, labels[:, None], given.place, given.starts) == (0,)
