"""A stopping rule from outside: the median rule of Golovin et al., Google Vizier, KDD 2017, section 3.2.2."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import fmean, median

import pytest

from ich_ray.runtime import connected
from ich_ray.search.run import run_search
from ich_ray.search.space.space import Budget
from ich_ray.search.stopping import STOPPING_RULES, StoppingRule
from ich_ray.trial_records import Objective
from tests.prepared import make_dataset
from tests.search.fakes import FakeTrainer

SPACE = """
name: medians
budget: {images: 400, report_every: 100, first_rung: 200, min_peers: 2, rule: median}
candidates: [{learning_rate: 0.001}, {learning_rate: 0.002}, {learning_rate: 0.0001}, {learning_rate: 0.0011}]
"""  # of tests.search.fakes.curve, which is best at 0.001


class MedianRule(StoppingRule):
    """A trial must be as good as the median of what the others were on average by then."""

    def __init__(self, budget: Budget, objective: Objective) -> None:
        super().__init__(budget, objective)
        self.told: defaultdict[int, dict[int, float]] = defaultdict(dict)

    def offer(self, number: int, images_seen: int, value: float | None) -> str | None:
        if value is None:
            return None
        self.told[number][images_seen] = value
        others = [
            fmean(one for images, one in reports.items() if images <= images_seen)
            for other, reports in self.told.items()
            if other != number and max(reports) >= images_seen
        ]
        if images_seen < self.budget.first_rung or len(others) < self.budget.min_peers:
            return None
        best = self.objective.best(self.told[number].values())
        return "median" if self.objective.better(median(others), best) else None


def test_a_search_stops_trials_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STOPPING_RULES, "registered", {})  # for this test alone
    STOPPING_RULES.register("median", MedianRule)
    data, space, out = tmp_path / "data", tmp_path / "space.yaml", tmp_path / "search"
    make_dataset(data, patients=20)
    space.write_text(SPACE)
    with connected(cpus=2):
        found = run_search(data, space, out, concurrent=1, _trainer=FakeTrainer())
    assert [trial.reason or trial.state for trial in found.trials] == ["completed", "completed", "median", "completed"]
    assert found.trials[2].images_seen == 200
