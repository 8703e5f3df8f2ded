from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ich_ray.search.ledger import Verdict
from ich_ray.search.space.space import Budget
from ich_ray.search.stopping.asha import AshaRungs
from ich_ray.search.stopping.fold_race import FoldRace
from ich_ray.search.tune.quarantine import DECLINED
from ich_ray.search.tune.scheduler import StoppingScheduler
from ich_ray.trial_records import Objective

BUDGET = Budget(images=900, report_every=100, first_rung=100, reduction=3, min_peers=2)


def test_a_trial_of_few_epochs_ends_before_the_budget() -> None:
    scheduler = StoppingScheduler(BUDGET, Objective(), AshaRungs(BUDGET, Objective()), lambda: None)

    def decision(number: int, images_seen: int, **parameters: int) -> str:
        trial = SimpleNamespace(config={"number": number, "parameters": parameters})
        report = {"images_seen": images_seen, "metrics/average_precision": 0.5}
        return scheduler.on_trial_result(None, trial, report)  # type: ignore[arg-type]

    assert decision(0, 200, epochs=4, training_slices=100) == "CONTINUE"
    assert decision(0, 400, epochs=4, training_slices=100) == "STOP"
    assert scheduler.verdicts[0].state == "completed"
    assert decision(1, 400) == "CONTINUE"
    assert decision(1, 900) == "STOP"


def test_a_trial_that_a_sick_machine_declines_ends_with_the_time_of_the_search() -> None:
    over: list[Verdict] = []
    scheduler = StoppingScheduler(
        BUDGET, Objective(), AshaRungs(BUDGET, Objective()), lambda: over[0] if over else None
    )
    trial: Any = SimpleNamespace(config={"number": 4})
    assert scheduler.on_trial_result(None, trial, {"lost": DECLINED}) == "CONTINUE"
    over.append(Verdict("pruned", "hours"))
    assert scheduler.on_trial_result(None, trial, {"lost": DECLINED}) == "STOP"
    assert scheduler.verdicts == {4: Verdict("pruned", "hours")}


def test_nobody_is_compared_with_a_trial_that_failed_without_a_report() -> None:
    objective = Objective(folds=3)
    race = FoldRace(BUDGET, objective, lambda *_: 0.0)
    without_rungs = AshaRungs(BUDGET.model_copy(update={"first_rung": 900}), objective)
    scheduler = StoppingScheduler(BUDGET, objective, without_rungs, lambda: None, race)

    def decision(number: int, value: float) -> str:
        report = {
            "images_seen": 900,
            "metrics/average_precision": value,
            "fold/number": 0,
            "fold/images_seen": 900,
            "fold/whole": True,
            "fold/value": value,
            "fold/logits/file": f"logits/{number}",
            "fold/logits/sha256": "0" * 64,
        }
        trial = SimpleNamespace(config={"number": number})
        return scheduler.on_trial_result(None, trial, report)  # type: ignore[arg-type]

    assert decision(0, 0.9) == "CONTINUE"
    scheduler.failed(0)
    assert decision(1, 0.5) == "CONTINUE"
    assert decision(2, 0.1) == "STOP"
    assert scheduler.verdicts[2].reason == "folds_1"
