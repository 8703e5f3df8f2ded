"""Replayed searches: curves in, a choice and its images out."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.few_patients import FOLDS, Draw, Replay, ranked
from ich_ray.search.space.space import Budget
from ich_ray.statistics.pooling import FoldPart

BUDGET = Budget(images=200, report_every=100, first_rung=100, min_peers=1)


def draw(skill: float, lucky: float) -> Draw:
    """Two reports of everything: folds that tell the skill, and seeds that tell how lucky it was."""
    random = np.random.default_rng(7)
    labels = np.tile([1.0, 0.0, 0.0], 12).astype(np.float32)[:, None]
    patients = np.array([f"p{number // 3}" for number in range(36)])
    folds = []
    for _ in range(FOLDS):
        noise = random.normal(size=(36, 1)).astype(np.float32)
        folds.append(
            [FoldPart(labels, (part * skill * labels + noise).astype(np.float32), patients) for part in (1, 2)]
        )
    return Draw(folds, np.full((3, 2), lucky), worth=skill)


DRAWS = [draw(0.2, 0.9), draw(0.5, 0.6), draw(2.0, 0.7)]


def test_a_search_by_folds_chooses_by_them_and_counts_their_images() -> None:
    replay = Replay(DRAWS, BUDGET)
    chosen, tried, images = replay.by_role([0, 1, 2], np.inf)
    # Two images' reports of the first; one each of the others, which are worse at the rung.
    assert (chosen, tried, images) == (0, 3, 200 + 100 + 100)
    assert replay.regret(chosen) == pytest.approx(1.8)
    chosen, tried, images = replay.by_folds([0, 1, 2], np.inf, "pooled")
    assert (chosen, tried, replay.regret(chosen)) == (2, 3, 0.0)
    assert images >= 2 * 200 * FOLDS // 2
    assert replay.by_folds([0, 1, 2], 300, "pooled") == (None, 1, 300)
    assert replay.regret(None) == pytest.approx(2.0 - 2.7 / 3)


def test_whole_trials_are_ranked_by_each_way_to_score_them() -> None:
    found = ranked(DRAWS)
    assert found["one validation role"] == (pytest.approx(-1 / 3), pytest.approx(1.8))
    assert found[f"{FOLDS} folds, pooled"] == (1.0, 0.0)
    assert found[f"{FOLDS} folds, mean"] == (1.0, 0.0)
