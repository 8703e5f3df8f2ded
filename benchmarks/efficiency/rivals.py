"""Floors and published methods, as contestants: whoever does not beat them has nothing.

Each is the other package's own code where it has some. Syne Tune and PriorBand are no dependencies: they stand in where
they can be imported.
"""

from __future__ import annotations

import logging
import math
import random
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna

from benchmarks.efficiency.computed import PACES
from benchmarks.efficiency.methods import METRIC, Ours, Random, Stock
from ich_ray.search.space.space import RandomSuggest
from ich_ray.search.tune.sampler import _Asked

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from benchmarks.efficiency.course import Parameters, Training
    from ich_ray.search.space.space import ParameterSpec, SearchSpace

ONE_PASS = 3000  # images: what the training patients of the phantom have
ROUND, BEST = 27, 3


class OnePass:
    """One pass over the data for everybody, then the best few to the end, in rounds without a model of anything.

    Source: Egele et al., The unreasonable effectiveness of early discarding after one epoch in neural network
    hyperparameter optimization, Neurocomputing 2024. There the number of trials is known beforehand; here it is rounds
    of so many, of which the best go on, so that it can be asked when it has found what.
    """

    def __init__(self, space: SearchSpace, seed: int, folder: Path, slots: int) -> None:
        del folder
        self.slots, self._space, self._suggest = slots, space, RandomSuggest(seed)
        self._round: list[tuple[float, str]] = []
        self._waiting: list[str] = []
        self._chosen: set[str] = set()

    def start(self, trial_id: str) -> Parameters | str:
        del trial_id
        if not self._waiting:
            return self._space.draw(self._suggest).parameters
        chosen = self._waiting.pop(0)
        self._chosen.add(chosen)
        return chosen

    def goes_on(self, trial_id: str, training: Training, measured: float) -> bool:
        if trial_id in self._chosen:
            return math.isfinite(measured) and training.images < self._space.budget.images
        if math.isfinite(measured) and training.images < ONE_PASS:
            return True
        self._round.append((max(training.values) if math.isfinite(measured) else -math.inf, trial_id))
        if len(self._round) == ROUND:
            self._waiting += [one for _, one in sorted(self._round, reverse=True)[:BEST]]
            self._round = []
        return False


class OptunaHyperband:
    """Optuna alone: its default TPE with its HyperbandPruner."""

    def __init__(self, space: SearchSpace, seed: int, folder: Path, slots: int) -> None:
        del folder
        self.slots, self._space, budget = slots, space, space.budget
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        pruner = optuna.pruners.HyperbandPruner(
            min_resource=budget.first_rung // budget.report_every,
            max_resource=budget.images // budget.report_every,
            reduction_factor=budget.reduction,
        )
        self._study = optuna.create_study(
            study_name=str(seed), sampler=optuna.samplers.TPESampler(seed=seed), pruner=pruner, direction="maximize"
        )
        self._trials: dict[str, optuna.Trial] = {}

    def start(self, trial_id: str) -> Parameters:
        trial = self._trials[trial_id] = self._study.ask()
        return dict(self._space.draw(_Asked(trial)).parameters)

    def goes_on(self, trial_id: str, training: Training, measured: float) -> bool:
        trial = self._trials[trial_id]
        if not math.isfinite(measured):
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return False
        trial.report(measured, training.images // self._space.budget.report_every)
        if training.images >= self._space.budget.images:
            self._study.tell(trial, measured)
            return False
        if trial.should_prune():
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return False
        return True


class SyneCqr:
    """Syne Tune's ASHACQR. Its spaces are flat: what another parameter rules out is drawn and left out."""

    def __init__(self, space: SearchSpace, seed: int, folder: Path, slots: int) -> None:
        del folder
        from syne_tune import config_space
        from syne_tune.optimizer.baselines import ASHACQR

        logging.getLogger().setLevel(logging.ERROR)
        domains: Mapping[str, Any] = {
            "int": lambda low, high: config_space.randint(int(low), int(high)),
            "choice": lambda *values: config_space.choice(list(values)),
            "uniform": config_space.uniform,
            "loguniform": config_space.loguniform,
        }
        self.slots, self._space, budget = slots, space, space.budget
        drawn = {one.name: domains[one.kind](*one.values) for one in space.parameters if one.kind != "fixed"}
        np.random.seed(seed % 2**32)  # noqa: NPY002  (the scheduler's own source of randomness)
        self._scheduler = ASHACQR(
            drawn, metric=METRIC, time_attr="reports", max_t=budget.images // budget.report_every,
            grace_period=budget.first_rung // budget.report_every, reduction_factor=budget.reduction,
            do_minimize=False, random_seed=seed % 2**31,
        )  # fmt: skip
        self._trials: dict[str, Any] = {}

    def start(self, trial_id: str) -> Parameters:
        from syne_tune.backend.trial_status import Trial

        config = self._scheduler.suggest().config
        trial = self._trials[trial_id] = Trial(int(trial_id), config, datetime.now(UTC))
        self._scheduler.on_trial_add(trial)
        return fitted(self._space, config)

    def goes_on(self, trial_id: str, training: Training, measured: float) -> bool:
        trial = self._trials[trial_id]
        if not math.isfinite(measured):
            self._scheduler.on_trial_error(trial)
            return False
        result = {METRIC: measured, "reports": training.images // self._space.budget.report_every}
        if training.images >= self._space.budget.images:
            self._scheduler.on_trial_complete(trial, result)
            return False
        if self._scheduler.on_trial_result(trial, result) == "STOP":
            self._scheduler.on_trial_remove(trial)
            return False
        return True


def fitted(space: SearchSpace, flat: Mapping[str, Any]) -> Parameters:
    """Of a flat draw what the space has under its conditions."""
    drawn: Parameters = {}
    for one in space.parameters:
        if one.active(drawn):
            value = one.values[0] if one.kind == "fixed" else flat[one.name]
            drawn[one.name] = value.item() if isinstance(value, np.generic) else value
    return drawn


class PriorBand:
    """NePS's PriorBand on asynchronous Hyperband, whose trials pause at a rung until they are promoted.

    Its beliefs are the middle of each range, held lightly: knowledge that is neither right nor wrong on purpose.
    """

    def __init__(self, space: SearchSpace, seed: int, folder: Path, slots: int) -> None:
        del folder
        import botorch.models.gp_regression
        import torch
        from botorch.models.transforms.outcome import Log

        botorch.models.gp_regression.Log = Log  # what neps 0.17 imports from there, and does not use here
        import neps

        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        self.slots, self._space, budget = slots, space, space.budget
        drawn = {one.name: _domain(neps, one) for one in space.parameters if one.kind != "fixed"}
        reports = neps.HPOInteger(
            budget.first_rung // budget.report_every, budget.images // budget.report_every, is_fidelity=True
        )
        method = neps.algorithms.priorband(
            neps.SearchSpace({**drawn, "reports": reports}), eta=budget.reduction, base="async_hb"
        )
        self._optimizer = neps.AskAndTell(method)
        self._ours: dict[str, str] = {}  # our trial by the number of its configuration
        self._asked: dict[str, Any] = {}

    def start(self, trial_id: str) -> Parameters | str:
        asked = self._optimizer.ask()
        number = asked.metadata.id.split("_")[0]
        begun = self._ours.setdefault(number, trial_id)
        self._asked[begun] = asked
        return begun if asked.metadata.previous_trial_id else fitted(self._space, asked.config)

    def goes_on(self, trial_id: str, training: Training, measured: float) -> bool:
        asked = self._asked[trial_id]
        if not math.isfinite(measured):
            self._optimizer.tell(asked, 1.0)
            return False
        if training.images < asked.config["reports"] * self._space.budget.report_every:
            return True
        self._optimizer.tell(asked, 1 - max(training.values))
        return False


def _domain(neps: Any, one: ParameterSpec) -> Any:
    believed = {"prior_confidence": "low"}
    if one.kind == "choice":
        return neps.HPOCategorical(list(one.values), prior=one.values[0], **believed)
    low, high = one.values
    if one.kind == "int":
        return neps.HPOInteger(low, high, prior=(low + high) // 2, **believed)  # type: ignore[operator]
    logarithmic = one.kind == "loguniform"
    middle = math.sqrt(low * high) if logarithmic else (low + high) / 2  # type: ignore[operator]
    return neps.HPOFloat(low, high, log=logarithmic, prior=middle, **believed)


class PerCost(optuna.samplers.TPESampler):
    """TPE that weighs what it expects of an architecture by the seconds that an image of it takes."""

    def _compute_acquisition_func(self, samples: dict[str, Any], mpe_below: Any, mpe_above: Any) -> Any:
        expected = super()._compute_acquisition_func(samples, mpe_below, mpe_above)
        if "architecture" not in samples:
            return expected
        paces = np.log(list(PACES.values()))
        return expected - paces[samples["architecture"].astype(int)]


def per_cost(seed: int) -> PerCost:
    return PerCost(multivariate=False, constant_liar=True, seed=seed)


def multivariate(seed: int) -> optuna.samplers.TPESampler:
    return optuna.samplers.TPESampler(multivariate=True, constant_liar=True, seed=seed)


def grouped(seed: int) -> optuna.samplers.TPESampler:
    return optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed)


CONTESTANTS = {
    "ours": Ours,
    "random": Random,
    "stock": Stock,
    "one pass": OnePass,
    "hyperband of Ray": partial(Stock, brackets=4),
    "hyperband of Optuna": OptunaHyperband,
    "ours, multivariate": partial(Ours, sampler=multivariate),
    "ours, grouped": partial(Ours, sampler=grouped),
    "ours, hedge 1/8": partial(Ours, hedge=0.125),
    "ours, hedge 1/4": partial(Ours, hedge=0.25),
    "ours, per cost": partial(Ours, sampler=per_cost),
    "ours, unit: cost": partial(Ours, costs=PACES),
    "ASHACQR": SyneCqr,
    "PriorBand": PriorBand,
}
