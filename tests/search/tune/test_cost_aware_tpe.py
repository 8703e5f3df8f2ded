from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from optuna.samplers import TPESampler

from ich_ray.errors import IchRayError
from ich_ray.search.ledger import Ledger, Verdict
from ich_ray.search.plan.cost_table import CostTable
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.search.tune.cost_aware_tpe import CostAwareTpe
from ich_ray.search.tune.sampler import LedgerSampler
from tests.records import make_record

SOURCE = {
    "name": "paced",
    "budget": {"images": 100, "report_every": 100, "first_rung": 100, "unit": "cost"},
    "parameters": {
        "architecture": {"choice": ["plain_cnn", "resnet18"]},
        "dropout": {"uniform": [0.0, 0.6]},
    },
}
COSTS = CostTable([({"architecture": "plain_cnn"}, 0.0), ({"architecture": "resnet18"}, math.log(1000.0))])


def drawn(folder: Path, costs: CostTable | None) -> list[dict[str, Any]]:
    """What 40 trials draw of which the dear network is the better one."""
    ledger = Ledger.create(folder, make_record(space=SOURCE))
    space = parse_space(SOURCE, "x.yaml")
    sampler = LedgerSampler(space, ledger, wanted=40, concurrent=lambda: 1, out_of_time=lambda: False, costs=costs)
    for number in range(40):
        parameters = sampler.suggest(f"t{number}")["parameters"]
        value = 0.5 + 0.2 * (parameters["architecture"] == "resnet18") + 0.01 * parameters["dropout"]
        ledger.report(number, 100, {"average_precision": value}, 1.0, end=Verdict("completed"))
        sampler.on_trial_complete(f"t{number}", {})
    return [trial.parameters for _, trial in sorted(ledger.trials.items())]


def test_every_second_draw_is_of_the_cheap_network(tmp_path: Path) -> None:
    found = drawn(tmp_path / "s", COSTS)[20:]  # after those at random
    even, odd = (Counter(one["architecture"] for one in found[start::2]) for start in (0, 1))
    assert odd["plain_cnn"] >= 8  # of 10
    assert even["resnet18"] >= 8


def test_where_all_cost_the_same_it_draws_what_it_drew_before(tmp_path: Path) -> None:
    alike = CostTable([(values, 0.0) for values, _ in COSTS.rows])
    assert drawn(tmp_path / "a", None) == drawn(tmp_path / "b", alike)


def test_an_optuna_that_it_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(TPESampler, "_compute_acquisition_func")
    with pytest.raises(IchRayError, match="needs a release of Optuna that it knows, got another;"):
        CostAwareTpe(COSTS, seed=0)
