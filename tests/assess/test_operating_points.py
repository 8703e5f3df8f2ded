from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta as beta_distribution
from sklearn.metrics import precision_recall_curve

from ich_ray.assess.operating_points import OperatingPointSpec, operating_points
from ich_ray.assess.point_rules import (
    POINT_RULES,
    PointRule,
    ScoredSlices,
    effective_positives,
    sensitivity_bound,
    sensitivity_threshold,
)
from ich_ray.errors import ConfigError, SensitivityError
from ich_ray.statistics.metrics import confusion

# Ten positives of 0.1 to 1.0 and ten negatives 0.05 below each.
PROBABILITIES = np.concatenate([np.arange(1, 11) / 10, np.arange(1, 11) / 10 - 0.05])
LABELS = np.repeat([1, 0], 10)
PATIENTS = np.arange(20)

rows = st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.integers(0, 5)), min_size=4, max_size=40)


@pytest.mark.parametrize(("target", "threshold"), [(0.9, 0.175), (0.89, 0.175), (0.5, 0.575), (0.91, 0.075)])
def test_the_highest_threshold_that_reaches_a_sensitivity(target: float, threshold: float) -> None:
    assert sensitivity_threshold(LABELS, PROBABILITIES, PATIENTS, target) == pytest.approx(threshold)


def test_a_target_that_nothing_reaches_says_what_can_be_reached() -> None:
    """The lowest positive lies below all negatives: 0.75 is the most without calling everything positive.

    It is reached first at 0.7, half-way from there to 0.3, and again at the two negatives below.
    """
    labels, probabilities = np.array([1, 1, 1, 1, 0, 0]), np.array([0.9, 0.8, 0.7, 0.1, 0.2, 0.3])
    with pytest.raises(SensitivityError, match=r"got at most 0\.7500, at threshold 0\.5000; ask for less") as caught:
        sensitivity_threshold(labels, probabilities, np.arange(6), 0.9)
    assert (caught.value.best, caught.value.threshold) == (0.75, pytest.approx(0.5))
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert (again.best, str(again)) == (0.75, str(caught.value))


def test_equal_probabilities_cannot_be_parted() -> None:
    message = r"slice positive, got a probability of 0\.5000 for every slice, which no threshold can part; train"
    with pytest.raises(SensitivityError, match=message) as caught:
        sensitivity_threshold(np.array([1, 0]), np.array([0.5, 0.5]), np.arange(2), 0.5)
    assert caught.value.best == 0
    assert math.isnan(caught.value.threshold)


def test_the_bound_is_that_of_clopper_and_pearson() -> None:
    assert sensitivity_bound(1.0, 20) == pytest.approx(0.05 ** (1 / 20))  # all of n found: alpha ** (1 / n)
    assert sensitivity_bound(45 / 50, 50) == pytest.approx(beta_distribution.ppf(0.05, 45, 6))
    assert sensitivity_bound(0.0, 50) == 0


def test_positive_slices_of_one_patient_are_worth_one() -> None:
    labels = np.array([1, 1, 1, 1, 1, 1, 0, 0])
    assert effective_positives(labels, np.arange(8)) == 6
    assert effective_positives(labels, np.array([0, 0, 0, 1, 1, 1, 2, 2])) == 2
    assert effective_positives(labels, np.array([0, 0, 0, 0, 0, 1, 2, 2])) == pytest.approx(36 / 26)


def test_a_conservative_target_needs_more_patients() -> None:
    """20 positives, all found above every negative: the bound is 0.861, so 0.85 is reached and 0.9 is not."""
    labels, probabilities, patients = np.repeat([1, 0], 20), np.repeat([0.8, 0.2], 20), np.arange(40)
    assert sensitivity_threshold(labels, probabilities, patients, 0.85, conservative=True) == pytest.approx(0.5)
    with pytest.raises(SensitivityError, match=r"lower 95 % bound of the sensitivity of at least 0.9") as caught:
        sensitivity_threshold(labels, probabilities, patients, 0.9, conservative=True)
    assert caught.value.best == pytest.approx(0.05 ** (1 / 20))
    with pytest.raises(SensitivityError):
        sensitivity_threshold(labels, probabilities, patients // 2, 0.85, conservative=True)


def test_the_bound_covers_where_slices_cluster() -> None:
    """Of 400 draws of 60 patients who are found more or less as a whole, at most 5 % (and a little luck) exceed it."""
    rng, truth = np.random.default_rng(0), 0.9
    patients = np.repeat(np.arange(60), 6)
    clustered = independent = 0
    for _ in range(400):
        found = (rng.random(360) < rng.beta(0.9, 0.1, 60)[patients]).mean()
        clustered += sensitivity_bound(found, effective_positives(np.ones(360), patients)) > truth
        independent += sensitivity_bound(found, 360) > truth
    assert clustered / 400 <= 0.06
    assert independent / 400 > 0.1


def test_the_usual_points_and_those_asked_for() -> None:
    rng = np.random.default_rng(1)
    labels = (rng.random(2000) < 0.2).astype(float)
    probabilities = np.clip(rng.normal(0.25 + 0.3 * labels, 0.15), 0.001, 0.999)
    found, notes = operating_points(
        labels, probabilities, np.arange(2000), OperatingPointSpec(beta=0.5, sensitivity=0.975)
    )
    assert list(found) == ["f2", "f0.5", "sensitivity_90", "sensitivity_95", "sensitivity_97.5", "sensitivity_98"]
    assert notes == ()
    assert found["f0.5"].threshold > found["f2"].threshold > found["sensitivity_98"].threshold
    for target in (90, 95, 97.5, 98):
        point = found[f"sensitivity_{target}"]
        assert point.sensitivity is not None
        assert target / 100 <= point.sensitivity < target / 100 + 0.01
    ppv, sensitivity, _ = precision_recall_curve(labels, probabilities)
    best = (1.25 * ppv * sensitivity / np.maximum(0.25 * ppv + sensitivity, 1e-12)).max()
    assert confusion(labels, probabilities, found["f0.5"].threshold).f_beta(0.5) == pytest.approx(best)
    assert found["sensitivity_95"].rule == "sensitivity at least 0.95"


def test_a_usual_point_out_of_reach_is_a_note_and_one_asked_for_an_error() -> None:
    labels, probabilities = np.repeat([1, 0], 20), np.repeat([0.8, 0.2], 20)
    found, notes = operating_points(labels, probabilities, np.arange(40), OperatingPointSpec(conservative=True))
    assert list(found) == ["f2"]
    assert len(notes) == 3
    assert "at least 0.9 must be reached" in notes[0]
    assert "got at most 0.8609" in notes[0]
    with pytest.raises(SensitivityError):
        operating_points(labels, probabilities, np.arange(40), OperatingPointSpec(sensitivity=0.95, conservative=True))


def test_an_f_beta_of_calling_every_slice_positive_is_noted() -> None:
    """A constant probability of 0.4 puts the threshold at 0.2, half-way to 0: nothing is left out."""
    labels = np.repeat([1, 0], [2, 8])
    found, notes = operating_points(labels, np.full(10, 0.4), np.arange(10), OperatingPointSpec(beta=1))
    assert (found["f2"].threshold, found["f2"].sensitivity, found["f2"].specificity) == (pytest.approx(0.2), 1, 0)
    assert notes[0].startswith(
        "operating point f2: a threshold must leave a slice out to decide anything, got the highest"
    )
    assert "at threshold 0.2000; decide by a sensitivity" in notes[0]
    assert notes[1].startswith("operating point f1: ")
    assert len(notes) == 5
    assert not any("nan" in note for note in notes)
    backwards = np.array([0.1] + [0.6] * 9)  # the highest F2 is that of everything: 5 / (4 + 10)
    assert any(
        "operating point f2" in note
        for note in operating_points(np.arange(10) == 0, backwards, np.arange(10), OperatingPointSpec())[1]
    )
    apart = np.repeat([0.8, 0.2], [2, 8])
    assert operating_points(labels, apart, np.arange(10), OperatingPointSpec())[1] == ()


@pytest.mark.parametrize(
    ("point", "refused"),
    [
        (
            "sensitivty=0.9",
            "must be one of f_beta, sensitivity, got 'sensitivty' (did you mean 'sensitivity'?)",
        ),
        ("sensitivity", "sensitivity=NUMBER must be given, got 'sensitivity'"),
        ("sensitivity=high", "a number must be given, got 'high'"),
        ("sensitivity=93", "0 < sensitivity < 1 must hold, got 93; try 0.95"),
        ("f_beta=-1", "a number above 0 must be given, got -1; 2 weighs sensitivity twice"),
        ("f_beta=nan", "a number above 0 must be given, got nan"),
    ],
)
def test_a_point_that_no_rule_finds_is_refused(point: str, refused: str) -> None:
    with pytest.raises(ConfigError) as caught:
        OperatingPointSpec(points=(point,))
    assert str(caught.value).startswith("--point")
    assert refused in str(caught.value)


def test_points_by_rule_are_those_of_the_flags() -> None:
    data = (LABELS, PROBABILITIES, PATIENTS)
    by_rule, _ = operating_points(*data, OperatingPointSpec(points=("sensitivity=0.8", "f_beta=1")))
    by_flag, _ = operating_points(*data, OperatingPointSpec(beta=1, sensitivity=0.8))
    assert by_rule == by_flag
    assert list(by_rule)[:3] == ["f2", "f1", "sensitivity_80"]
    with pytest.raises(SensitivityError, match=r"at least 0\.95 must be reached"):
        operating_points(*data, OperatingPointSpec(points=("sensitivity=0.95",), conservative=True))


class Wrong(PointRule):
    def threshold(self, slices: ScoredSlices, number: float) -> float:
        return math.nan

    def words(self, number: float) -> str:
        return "none"


def test_a_rule_without_a_threshold_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(POINT_RULES, "registered", {"wrong": Wrong()})
    with pytest.raises(ConfigError, match="operating point wrong: its rule must give a threshold from 0 to 1, got nan"):
        operating_points(LABELS, PROBABILITIES, PATIENTS, OperatingPointSpec(points=("wrong",)))


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"beta": math.nan}, {"sensitivity": 1.0}, {"sensitivity": 90}])
def test_impossible_wishes_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"must be given|must hold"):
        OperatingPointSpec(**wrong)


@given(rows, st.sampled_from([0.3, 0.5, 0.9, 0.95]), st.booleans())
def test_what_is_found_reaches_its_target_and_nothing_higher_does(
    rows: list[tuple[bool, int, int]], target: float, conservative: bool
) -> None:
    labels, steps, patients = (np.array(column) for column in zip(*rows, strict=True))
    if not 0 < labels.sum() < len(labels):
        return
    probabilities, worth = steps / 20, effective_positives(labels, patients)

    def reached(threshold: float) -> float:
        sensitivity = confusion(labels, probabilities, threshold).sensitivity
        return float(sensitivity_bound(sensitivity, worth)) if conservative else sensitivity

    distinct = np.unique(probabilities)
    feasible = distinct[[(probabilities >= step).sum() < len(labels) for step in distinct]]
    best = max(map(reached, feasible), default=0)
    if best < target - 1e-9:
        with pytest.raises(SensitivityError) as caught:
            sensitivity_threshold(labels, probabilities, patients, target, conservative)
        assert caught.value.best == pytest.approx(best)
        if best > 0:
            assert reached(caught.value.threshold) == pytest.approx(best)
            assert all(
                reached(higher) < best for higher in probabilities[probabilities > caught.value.threshold] + 1e-9
            )
        return
    threshold = sensitivity_threshold(labels, probabilities, patients, target, conservative)
    assert reached(threshold) >= target - 1e-9
    assert (probabilities >= threshold).sum() < len(labels)
    assert all(reached(higher) < target for higher in probabilities[probabilities > threshold] + 1e-9)


@given(rows)
def test_a_higher_target_never_has_a_higher_threshold(rows: list[tuple[bool, int, int]]) -> None:
    labels, steps, patients = (np.array(column) for column in zip(*rows, strict=True))
    if not 0 < labels.sum() < len(labels):
        return
    found, _ = operating_points(labels, steps / 20, patients, OperatingPointSpec())
    thresholds = [point.threshold for name, point in found.items() if name.startswith("sensitivity")]
    assert thresholds == sorted(thresholds, reverse=True)
