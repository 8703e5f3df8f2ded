from __future__ import annotations

import numpy as np
import pytest

from ich_ray.assess.interval_estimates import RATIOS, Cases, Estimate, GroupFigures, PointFigures, measure
from ich_ray.bundle.operating_point import OperatingPoint
from ich_ray.html_report import tables
from ich_ray.statistics.bootstrap import PatientDraws
from ich_ray.statistics.calibration_error import ece
from ich_ray.statistics.metrics import METRICS

SLICES = 8  # of each patient


def measured(
    positive: list[int], probabilities: np.ndarray | None = None, stated: float | None = None, patients: int = 30
) -> GroupFigures:
    """Patients of 8 slices, of whom the first have so many positive ones, found at 0.9 unless it is said otherwise."""
    held = np.array(positive + [0] * (patients - len(positive)))
    labels = (np.arange(SLICES) < held[:, None]).ravel().astype(float)
    found = np.where(labels > 0.5, 0.9, 0.1) if probabilities is None else probabilities
    point = OperatingPoint(threshold=0.5, sensitivity=None, specificity=None, ppv=None, f2=None)
    draws = PatientDraws(np.repeat(np.arange(patients), SLICES), resamples=200)
    return measure(Cases(labels, found, np.arange(len(labels)), calibrated=True), {"f2": point}, draws, stated)


def bounds(estimate: Estimate) -> tuple[float | None, float | None]:
    return estimate.low, estimate.high


def test_one_positive_patient_without_a_miss_leaves_nearly_everything_open() -> None:
    """8 slices found of 1 patient are worth one found: from 0.025 on; 29 patients without: from 0.025 ** (1 / 29)."""
    point = measured([8]).operating_points["f2"]
    cleared = pytest.approx(0.025 ** (1 / 29))
    assert (point.sensitivity.value, *bounds(point.sensitivity)) == (1, pytest.approx(0.025), 1)
    assert (point.specificity.value, *bounds(point.specificity)) == (1, cleared, 1)
    assert (point.ppv.value, *bounds(point.ppv)) == (1, pytest.approx(0.025), 1)
    assert (point.npv.value, *bounds(point.npv)) == (1, cleared, 1)
    assert (point.accuracy.value, *bounds(point.accuracy)) == (1, pytest.approx(0.025 ** (1 / 30)), 1)
    assert (point.f2.value, *bounds(point.f2)) == (1, None, None)


def test_where_few_patients_are_positive_no_ranking_and_no_probability_has_an_interval() -> None:
    rng = np.random.default_rng(0)
    for held, known in (([3] * 5, False), ([3] * 6, True)):
        found = measured(held, rng.random(30 * SLICES))
        for name in ("average_precision", "roc_auc", "log_loss", "brier", "calibration_slope"):
            assert found.metrics[name].value is not None
            assert (None not in bounds(found.metrics[name])) == known, name
        assert None not in bounds(found.operating_points["f2"].sensitivity)
    perfect = measured([3] * 20)
    assert [
        (perfect.metrics[name].value, *bounds(perfect.metrics[name])) for name in ("average_precision", "roc_auc")
    ] == [(1, None, None)] * 2


def test_a_miss_in_the_only_positive_patient_is_no_knowledge_either() -> None:
    probabilities = np.full(30 * SLICES, 0.1)
    probabilities[:6] = 0.9  # 6 of 8
    point = measured([8], probabilities).operating_points["f2"]
    assert point.sensitivity.value == 0.75
    assert point.sensitivity.low is not None
    assert point.sensitivity.low < 0.1
    assert point.sensitivity.high == pytest.approx(1, abs=0.01)


def test_ppv_at_another_prevalence_is_no_surer_than_what_it_follows_from() -> None:
    """Bayes of the lower bounds, 0.025 and 0.025 ** (1 / 29), at a prevalence of 0.1; of the upper bounds: 1."""
    stated = measured([8], stated=0.1).operating_points["f2"].stated
    assert stated is not None
    specificity = 0.025 ** (1 / 29)
    assert (stated.ppv.value, stated.npv.value) == (1, 1)
    assert bounds(stated.ppv) == (pytest.approx(0.0025 / (0.0025 + 0.9 * (1 - specificity))), 1)
    assert bounds(stated.npv) == (pytest.approx(0.9 * specificity / (0.9 * specificity + 0.1 * 0.975)), 1)


def test_nothing_clears_its_floor_by_an_interval_that_has_collapsed() -> None:
    found = measured([8])
    point = found.operating_points["f2"]
    row = tables._row("sensitivity", point.sensitivity, 8 / 240)  # what flagging 8 of 240 blindly gives
    assert (row.interval, row.clears) == ("0.025 to 1.000", False)
    for name in ("average_precision", "roc_auc", "log_loss"):
        row = tables._row(name, found.metrics[name], found.floors[name])
        assert (row.interval, row.clears) == ("–", None)


def test_the_calibration_error_has_no_interval() -> None:
    """Draws raise it: the value of a perfect model would often lie below what they span."""
    rng = np.random.default_rng(0)
    probabilities = rng.random(60 * SLICES)
    labels = (rng.random(60 * SLICES) < probabilities).astype(float)
    draws = PatientDraws(np.repeat(np.arange(60), SLICES), resamples=200)
    found = measure(Cases(labels, probabilities, np.arange(len(labels)), calibrated=True), {}, draws).metrics
    assert found["ece"].value == pytest.approx(ece(labels, probabilities))
    assert bounds(found["ece"]) == (None, None)
    drawn = [
        ece(labels[rows], probabilities[rows])
        for rows in (np.repeat(np.arange(480), w.astype(int)) for w in draws.weights())
    ]
    assert np.mean(drawn) > found["ece"].value + 0.005
    assert None not in bounds(found["brier"])


def test_every_figure_is_described() -> None:
    found = measured([3] * 10)
    of_points = {name for name, field in PointFigures.model_fields.items() if field.annotation is Estimate}
    assert of_points == {*RATIOS}
    assert {*found.metrics, *found.floors, *of_points} - METRICS.keys() == set()
