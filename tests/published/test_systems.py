"""Arithmetic on published figures: what shows that a column was called by another's name, and what the truth was."""

from __future__ import annotations

import pytest

from ich_ray.published.systems import REPORT_A, REPORT_B, PublishedCandidate, implied
from ich_ray.statistics.metrics import Confusion, f_beta, floors

M10 = REPORT_B.candidates[9]


@pytest.mark.parametrize("row", REPORT_B.candidates, ids=lambda row: row.name)
def test_the_column_called_specificity_is_the_ppv(row: PublishedCandidate) -> None:
    """Its F2 is that of sensitivity and this column, to the last digit: F2 is defined on the PPV."""
    assert row.f2_of_printed == pytest.approx(row.f2, abs=1e-12)


@pytest.mark.parametrize("row", [row for row in REPORT_B.candidates if row.sensitivity], ids=lambda row: row.name)
def test_it_cannot_be_the_specificity(row: PublishedCandidate) -> None:
    """As a specificity it would have to be consistent with accuracy and sensitivity at the prevalence of the set."""
    as_specificity = REPORT_B.prevalence * row.sensitivity + (1 - REPORT_B.prevalence) * row.printed
    assert abs(as_specificity - row.accuracy) > 0.1
    assert row.decisions.f_beta() == pytest.approx(row.f2, abs=1e-9)


def test_what_m10_really_had() -> None:
    decisions = M10.decisions
    assert decisions.specificity == pytest.approx(0.722, abs=5e-4)
    assert decisions.ppv == pytest.approx(0.325, abs=5e-5)
    assert decisions.tp + decisions.fn == pytest.approx(0.1433, abs=5e-5)
    assert f_beta(0.3250, 0.7995) == pytest.approx(0.61885, abs=5e-5)


def test_its_holdout() -> None:
    holdout = REPORT_B.holdout
    assert (holdout.ppv, holdout.sensitivity, holdout.specificity) == pytest.approx((0.3605, 0.8102, 0.7597), abs=5e-5)
    assert holdout.f_beta() == pytest.approx(0.6484, abs=5e-5)
    assert round(holdout.f_beta(), 3) == REPORT_B.holdout_f2
    assert holdout.tp + holdout.fn + holdout.fp + holdout.tn == 150_507


def test_floors_at_its_prevalence() -> None:
    floor = floors(REPORT_B.prevalence)
    assert floor["f2"] == pytest.approx(0.4556, abs=5e-5)
    assert floor["log_loss"] == pytest.approx(0.411, abs=5e-4)
    assert floor["accuracy"] == pytest.approx(0.857, abs=5e-4)
    assert floor["accuracy"] == pytest.approx(REPORT_A.accuracy, abs=5e-3)
    assert floor["ppv"] == pytest.approx(REPORT_A.precision, abs=1e-2)


def test_what_is_implied_can_be_turned_round() -> None:
    truth = Confusion(tp=0.1, fp=0.2, fn=0.05, tn=0.65)
    found = implied(truth.accuracy, truth.sensitivity, truth.ppv)
    assert (found.tp, found.fp, found.fn, found.tn) == pytest.approx((0.1, 0.2, 0.05, 0.65))
    nothing = implied(0.8565, 0.0, 0.0)
    assert (nothing.tp, nothing.fp, nothing.specificity) == (0.0, 0.0, 1.0)
