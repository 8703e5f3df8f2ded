from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ich_ray.data.dataset import PreparedDataset
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.statistics.metrics import METRICS
from ich_ray.training.loop import TrainingBudget, train
from ich_ray.training.validation import VALIDATION_METRICS, label_metrics, validation_metrics
from ich_ray.vocabulary import LABELS as LABELS_OF_A_SLICE

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


NAN = np.nan
# epidural: unknown in one slice and nowhere positive; the others: one positive, ranked first, last, ...
TARGETS = np.array([[0, 1, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0], [NAN, 0, 1, 0, 1, 1], [0, 0, 0, 0, 0, 0]], np.float32)
OF_LABELS = np.array([[0, 2, -1, 0, 0, 3], [0, 0, 0, 0, 0, 0], [0, 0, -2, 0, 1, 1], [0, 3, 0, 0, 0, -1]], np.float32)


def test_the_figures_of_subtypes() -> None:
    found = label_metrics(TARGETS, OF_LABELS, (0.0,) * 6, LABELS_OF_A_SLICE)
    assert np.isnan(found["average_precision_epidural"])
    assert np.isnan(found["roc_auc_epidural"])
    assert (found["average_precision_intraparenchymal"], found["roc_auc_intraparenchymal"]) == (
        0.5,
        pytest.approx(2 / 3),
    )
    assert (found["average_precision_intraventricular"], found["roc_auc_intraventricular"]) == (0.25, 0.0)
    assert (found["average_precision_subdural"], found["roc_auc_subdural"]) == (1.0, 1.0)
    assert found["average_precision_subtypes"] == pytest.approx((0.5 + 0.25 + 1) / 3)
    assert found["roc_auc_subtypes"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert found["subtypes_measured"] == 3


def test_the_log_loss_of_the_competition_leaves_unknown_labels_out() -> None:
    found = label_metrics(TARGETS, OF_LABELS, (0.0,) * 6, LABELS_OF_A_SLICE)["weighted_log_loss"]
    weights = np.array([1, 1, 1, 1, 1, 2]) * ~np.isnan(TARGETS)
    wrong_way = np.where(np.nan_to_num(TARGETS) == 1, -OF_LABELS, OF_LABELS)
    assert found == pytest.approx(np.mean((np.log1p(np.exp(wrong_way)) * weights).sum(1) / weights.sum(1)))


def test_labels_have_shifts_of_their_own() -> None:
    plain = label_metrics(TARGETS, OF_LABELS, (0.0,) * 6, LABELS_OF_A_SLICE)
    moved = label_metrics(TARGETS, OF_LABELS - np.arange(6, dtype=np.float32), range(6), LABELS_OF_A_SLICE)
    assert moved == pytest.approx(plain, nan_ok=True)


@pytest.mark.parametrize("labels", ["any", "all"])
def test_every_metric_of_a_report_is_described(dataset: PreparedDataset, labels: Any) -> None:
    roles = dataset.role("train"), dataset.role("validation")
    parameters = Hyperparameters(filters=4, dense=4, labels=labels)
    (report,) = train(parameters, *roles, budget=TrainingBudget(32, 32), seed=0)
    assert report.metrics.keys() - METRICS.keys() == {*VALIDATION_METRICS.names()}  # which others describe
    objectives = {
        name for name, metric in METRICS.items() if metric.is_objective and (labels == "all" or not metric.label)
    }
    assert objectives - report.metrics.keys() == set()
