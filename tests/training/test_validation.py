from __future__ import annotations

import numpy as np
import pytest

from ich_ray.data.dataset import PreparedDataset
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.statistics.metrics import METRICS
from ich_ray.training.loop import TrainingBudget, train
from ich_ray.training.validation import VALIDATION_METRICS, validation_metrics

LABELS = np.array([1, 1, 0, 0, 0], np.float32)
LOGITS = np.array([2.0, -1.0, 1.0, -2.0, -3.0], np.float32)


def test_the_figures_of_five_slices() -> None:
    """In order of logits the labels are 1, 0, 1, 0, 0: an AP of (1 + 2/3) / 2, and 5 of 6 pairs in order."""
    found = validation_metrics(LABELS, LOGITS, shift=0.0)
    assert found["average_precision"] == pytest.approx(5 / 6)
    assert found["roc_auc"] == pytest.approx(5 / 6)
    assert found["f2"] == pytest.approx(10 / 11)  # both found with one false alarm
    assert 1 / (1 + np.exp(2)) < found["f2_threshold"] < 1 / (1 + np.exp(1))
    assert (found["sensitivity_at_half"], found["specificity_at_half"]) == (0.5, pytest.approx(2 / 3))


def test_a_shift_moves_probabilities_and_neither_order_nor_decisions_at_half() -> None:
    plain, shifted = (validation_metrics(LABELS, LOGITS, shift) for shift in (0.0, 1.5))
    moved = {name for name in plain if plain[name] != pytest.approx(shifted[name])}
    assert moved == {"f2_threshold", "log_loss"}


def test_every_metric_of_a_report_is_described(dataset: PreparedDataset) -> None:
    roles = dataset.role("train"), dataset.role("validation")
    (report,) = train(Hyperparameters(filters=4, dense=4), *roles, budget=TrainingBudget(32, 32), seed=0)
    assert report.metrics.keys() - METRICS.keys() == {*VALIDATION_METRICS.names()}  # which others describe


def test_every_report_has_the_metrics_that_a_search_may_optimize() -> None:
    objectives = {name for name, metric in METRICS.items() if metric.is_objective}
    assert objectives - validation_metrics(LABELS, LOGITS, 0.0).keys() == set()
