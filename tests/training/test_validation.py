from __future__ import annotations

import math

import numpy as np
import pytest

from ich_ray import registry
from ich_ray.training.validation import VALIDATION_METRICS, validation_metrics

LABELS = np.array([1, 0, 1, 0, 0], np.float32)
# As probabilities 0.8, 0.75, 0.6, 0.25 and 0.2.
LOGITS = np.log(np.array([4, 3, 1.5, 1 / 3, 1 / 4])).astype(np.float32)


def test_the_metrics_of_a_report() -> None:
    found = validation_metrics(LABELS, LOGITS, 0.0)
    assert list(found) == [
        "average_precision", "roc_auc", "f2", "f2_threshold", "log_loss", "sensitivity_at_half", "specificity_at_half",
    ]  # fmt: skip
    assert found == pytest.approx(
        {
            "average_precision": (1 + 2 / 3) / 2,
            "roc_auc": 5 / 6,
            "f2": 5 * 2 / (2 + 1 + 4 * 2),
            "f2_threshold": (0.6 + 0.25) / 2,
            "log_loss": -(math.log(0.8) + math.log(0.25) + math.log(0.6) + math.log(0.75) + math.log(0.8)) / 5,
            "sensitivity_at_half": 1.0,
            "specificity_at_half": 2 / 3,
        }
    )


def test_a_correction_moves_probabilities_and_not_the_decisions_of_the_network() -> None:
    found = validation_metrics(LABELS, LOGITS, math.log(1 / 3))
    assert found["f2_threshold"] == pytest.approx((1.5 / 4.5 + 1 / 10) / 2)
    assert (found["sensitivity_at_half"], found["specificity_at_half"]) == pytest.approx((1.0, 2 / 3))


def test_a_metric_from_outside_stands_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ANNOUNCED", {})
    monkeypatch.setattr(VALIDATION_METRICS, "registered", {})  # for this test alone
    VALIDATION_METRICS.register("specificity_at_0.7", lambda labels, logits: float((logits[labels < 1] < 0.85).mean()))
    VALIDATION_METRICS.register("roc_auc", lambda *_: 2.0)
    found = validation_metrics(LABELS, LOGITS, 0.0)
    assert list(found) == ["average_precision", "roc_auc", "f2", "f2_threshold", "log_loss", "specificity_at_0.7"]
    assert (found["roc_auc"], found["specificity_at_0.7"]) == pytest.approx((5 / 6, 2 / 3))
