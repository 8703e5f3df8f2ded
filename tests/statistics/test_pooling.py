from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from ich_ray.statistics.metrics import average_precision
from ich_ray.statistics.pooling import (
    FoldPart,
    Pooling,
    chance_of_better,
    chances_of_best,
    pooled_metrics,
    standardized,
)


def part(labels: list[int], logits: list[float], patients: str) -> FoldPart:
    columns = np.array(labels, np.float32)[:, None], np.array(logits, np.float32)[:, None]
    return FoldPart(*columns, np.array(list(patients)))


def measured(targets: NDArray[np.float32], logits: NDArray[np.float32]) -> dict[str, float]:
    return {
        "average_precision": average_precision(targets[:, -1], logits[:, -1]),
        "log_loss": float(logits.mean()),
    }


# Each ranks its own slices without a mistake, on a scale of its own.
LOW = part([1, 1, 0, 0], [-8, -9, -10, -11], "abcd")
HIGH = part([1, 1, 0, 0], [11, 10, 9, 8], "efgh")


@pytest.mark.parametrize(
    ("how", "expected"),
    # Pooled: two positives, then two negatives above the other two positives: (1 + 1 + 3/5 + 4/6) / 4.
    [("pooled", (2 + 3 / 5 + 4 / 6) / 4), ("scaled", 1.0), ("mean", 1.0)],
)
def test_folds_are_pooled_as_they_are_or_on_one_scale_or_one_by_one(how: Pooling, expected: float) -> None:
    metrics = pooled_metrics([LOW, HIGH], measured, how)
    assert metrics == {"average_precision": pytest.approx(expected), "log_loss": 0.0}


def test_the_mean_of_folds_leaves_out_what_is_undefined() -> None:
    without = part([0, 0], [1, 2], "ij")
    assert pooled_metrics([without, HIGH], measured, "mean")["average_precision"] == 1.0


def test_a_scale_is_of_the_other_patients_of_the_fold() -> None:
    logits = np.array([[1.0], [3.0], [10.0], [20.0]], np.float32)
    scaled = standardized(logits, np.array(["a", "a", "b", "c"]))
    # of a's: b and c have the mean 15 and the deviation 5; of b's: 1, 3 and 20; of c's: 1, 3 and 10
    b, c = np.array([1.0, 3.0, 20.0]), np.array([1.0, 3.0, 10.0])
    expected = [(1 - 15) / 5, (3 - 15) / 5, (10 - b.mean()) / b.std(), (20 - c.mean()) / c.std()]
    assert scaled[:, 0].tolist() == pytest.approx(expected, rel=1e-5)
    assert standardized(logits, np.array(["a"] * 4)) is logits


def trial(skill: float, seed: int, patients: int = 12, noise: float = 0.5) -> list[FoldPart]:
    """Two folds of a trial: every second patient is positive, and what is hard for one trial is for all."""
    hard = np.random.default_rng(0).normal(0, 1, patients * 6)
    own = np.random.default_rng(seed).normal(0, noise, patients * 6)
    names = np.repeat([f"p{number}" for number in range(patients)], 6)
    labels = (np.repeat(np.arange(patients), 6) % 2 == 0) & (np.arange(patients * 6) % 2 == 0)
    logits = (skill * labels + hard + own).astype(np.float32)[:, None]
    targets = labels.astype(np.float32)[:, None]
    half = patients // 2 * 6
    return [FoldPart(targets[rows], logits[rows], names[rows]) for rows in (slice(half), slice(half, None))]


@pytest.mark.parametrize("how", ["pooled", "scaled", "mean"])
@pytest.mark.parametrize("metric", ["average_precision", "roc_auc"])
def test_a_trial_that_is_clearly_worse_on_the_same_patients_has_no_chance(how: Pooling, metric: str) -> None:
    good, bad = trial(3, seed=1), trial(1, seed=2)
    chance = chance_of_better(bad, good, metric, how=how)
    assert chance is not None
    assert chance < 0.05
    back = chance_of_better(good, bad, metric, how=how)
    assert back is not None
    assert back > 0.95


def test_equal_trials_have_an_even_chance_and_the_same_trial_all_of_it() -> None:
    one, other = trial(2, seed=1, patients=40), trial(2, seed=2, patients=40)
    chance = chance_of_better(one, other, "average_precision")
    assert chance is not None
    assert 0.05 < chance < 0.95
    assert chance_of_better(one, one, "average_precision") == 1.0


def test_a_lower_log_loss_is_better() -> None:
    right, wrong = trial(6, seed=1), trial(-6, seed=1)
    assert chance_of_better(wrong, right, "log_loss") == 0.0


def test_few_positive_patients_or_another_metric_tell_nothing() -> None:
    few, more = trial(3, seed=1, patients=10), trial(3, seed=1, patients=12)  # half of them positive
    assert chance_of_better(few, few, "average_precision") is None
    assert chance_of_better(more, more, "average_precision") == 1.0
    assert chance_of_better(more, more, "f2") is None
    with pytest.raises(ValueError, match="same slices"):
        chance_of_better(few, more, "average_precision")
    assert math.isnan(pooled_metrics([part([0], [0], "a")], measured, "mean")["average_precision"])


def test_the_chances_of_being_the_best_are_shared_by_equals() -> None:
    good, bad = trial(3, seed=1), trial(1, seed=2)
    assert chances_of_best([good, good, bad], "average_precision") == [0.5, 0.5, 0.0]
    assert chances_of_best([bad, good], "log_loss") == pytest.approx([0.0, 1.0], abs=0.1)
    close = chances_of_best([trial(2, seed=seed, patients=40) for seed in (1, 2, 3)], "average_precision")
    assert close is not None
    assert sum(close) == pytest.approx(1.0)
    assert max(close) < 1.0


def test_the_best_of_few_positive_patients_is_not_known() -> None:
    few = trial(3, seed=1, patients=10)
    assert chances_of_best([few, few], "average_precision") is None
    with pytest.raises(ValueError, match="same slices"):
        chances_of_best([few, trial(3, seed=1, patients=12)], "average_precision")
