"""The searches: our sampler, rungs and ledger (in memory); Ray's OptunaSearch and AsyncHyperBandScheduler; luck."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from ich_ray.search.ledger import Ledger
from ich_ray.search.plan.cost_table import CostTable
from ich_ray.search.space.space import RandomSuggest
from ich_ray.search.stopping.asha import AshaRungs
from ich_ray.search.tune.sampler import LedgerSampler, _Asked
from ich_ray.search.tune.scheduler import StoppingScheduler
from ich_ray.search_records import SearchRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from optuna.samplers import BaseSampler

    from benchmarks.efficiency.course import Parameters, Training
    from ich_ray.search.space.space import SearchSpace

METRIC = "average_precision"
MANY = 10**6  # trials


class Random:
    """Independent draws, each trained to its end."""

    def __init__(self, space: SearchSpace, seed: int, folder: Path, slots: int) -> None:
        del folder
        self.slots, self._space, self._suggest = slots, space, RandomSuggest(seed)

    def start(self, trial_id: str) -> Parameters:
        del trial_id
        return self._space.draw(self._suggest).parameters

    def goes_on(self, trial_id: str, training: Training, measured: float) -> bool:
        del trial_id
        return math.isfinite(measured) and training.images < self._space.budget.images


class Ours:
    """LedgerSampler, AshaRungs and StoppingScheduler as search/tune/driver.py puts them together.

    Args:
        hedge: `budget.hedge`.
        sampler: of Optuna, by its seed, in place of ours.
        costs: seconds an image by architecture, as a table of `budget.unit: cost`.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        folder: Path,
        slots: int,
        hedge: float = 0.0,
        sampler: Callable[[int], BaseSampler] | None = None,
        costs: Mapping[str, float] | None = None,
    ) -> None:
        self.slots = slots
        space = replace(space, budget=space.budget.model_copy(update={"hedge": hedge}))
        record = SearchRecord(
            name=space.name, space=space.source, dataset="", fingerprint="0" * 32, prevalence=0.15, seed=seed,
            trials=MANY, versions={}, created=0.0,
        )  # fmt: skip
        self.ledger = Ledger.create(folder, record)
        table = CostTable([({"architecture": name}, math.log(pace)) for name, pace in costs.items()]) if costs else None
        self._sampler = LedgerSampler(
            space, self.ledger, wanted=MANY, concurrent=lambda: slots, out_of_time=lambda: False, costs=table
        )
        if sampler:
            self._sampler._study.sampler = sampler(seed)
        self._halving = StoppingScheduler(
            space.budget, space.objective, AshaRungs(space.budget, space.objective), lambda: None
        )
        self._configs: dict[str, dict[str, Any]] = {}

    def start(self, trial_id: str) -> Parameters:
        self._configs[trial_id] = self._sampler.suggest(trial_id)
        return dict(self._configs[trial_id]["parameters"])

    def goes_on(self, trial_id: str, training: Training, measured: float) -> bool:
        config = self._configs[trial_id]
        number, metrics = config["number"], {METRIC: measured}
        result = {"images_seen": training.images, f"metrics/{METRIC}": measured}
        decision = self._halving.on_trial_result(None, SimpleNamespace(config=config), result)  # type: ignore[arg-type]
        if decision == TrialScheduler.CONTINUE:  # in Tune's order: scheduler, sampler, ledger
            self._sampler.on_trial_result(trial_id, result)
        end = self._halving.verdicts.get(number)
        self.ledger.report(number, training.images, metrics, training.images / 1000, end=end)
        if end:
            self._sampler.on_trial_complete(trial_id, {})
        return bool(decision == TrialScheduler.CONTINUE)


class Stock:
    """OptunaSearch with AsyncHyperBandScheduler, told what Tune tells them.

    Args:
        brackets: of the scheduler; the first of them is successive halving from the first rung.
    """

    def __init__(self, space: SearchSpace, seed: int, folder: Path, slots: int, brackets: int = 1) -> None:
        del folder
        self.slots = slots
        np.random.seed(seed)  # noqa: NPY002  (the scheduler's own source of randomness)
        self._space, budget = space, space.budget

        def define(trial: Any) -> None:
            space.draw(_Asked(trial))

        self._search = OptunaSearch(define, metric=METRIC, mode="max", seed=seed)
        self._scheduler = AsyncHyperBandScheduler(
            time_attr="images_seen", metric=METRIC, mode="max", max_t=budget.images,
            grace_period=budget.first_rung, reduction_factor=budget.reduction,
            brackets=brackets,
        )  # fmt: skip

    def start(self, trial_id: str) -> Parameters:
        drawn = self._search.suggest(trial_id)
        assert isinstance(drawn, dict)
        self._scheduler.on_trial_add(None, SimpleNamespace(trial_id=trial_id))  # type: ignore[arg-type]
        fixed = {spec.name: spec.values[0] for spec in self._space.parameters if spec.kind == "fixed"}
        return {**fixed, **drawn}

    def goes_on(self, trial_id: str, training: Training, measured: float) -> bool:
        result = {
            "images_seen": training.images,
            METRIC: measured,
            "training_iteration": training.images // self._space.budget.report_every,
        }
        trial = SimpleNamespace(trial_id=trial_id)
        if not math.isfinite(measured):  # the training raised
            self._scheduler.on_trial_error(None, trial)  # type: ignore[arg-type]
            self._search.on_trial_complete(trial_id, error=True)
            return False
        decision = self._scheduler.on_trial_result(None, trial, result)  # type: ignore[arg-type]
        if decision == TrialScheduler.CONTINUE:
            self._search.on_trial_result(trial_id, result)
            return True
        self._scheduler.on_trial_complete(None, trial, result)  # type: ignore[arg-type]
        self._search.on_trial_complete(trial_id, result)
        return False


METHODS = {"ours": Ours, "random": Random, "stock": Stock}
