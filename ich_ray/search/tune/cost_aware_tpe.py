"""TPE that weighs every second draw by what it costs: expected improvement per second.

Expected improvement per second in every draw misses the best where only the dearest network will do; a power of cost
that falls as trials go by (Lee et al., Cost-aware Bayesian Optimization, 2020) gains with one slot and not with eight
(benchmarks/search_cost.py). So every other draw is TPE's own: a wrong guess costs at most half of the trials, and the
cheaper half. Both halves learn from each other, since most of what a rate or a dropout should be does not depend on the
network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.samplers import TPESampler

from ich_ray.errors import IchRayError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from ich_ray.search.plan.cost_table import CostTable

__all__ = ["CostAwareTpe"]


class CostAwareTpe(TPESampler):
    """TPE, one parameter at a time; `how` is of Optuna's own.

    Attributes:
        number: of the trial that is drawn, in the ledger; odd ones are weighed, before a resume and after it.
    """

    def __init__(self, costs: CostTable, **how: Any) -> None:
        super().__init__(**how)
        if not hasattr(TPESampler, "_compute_acquisition_func"):
            raise IchRayError("budget.unit: cost needs a release of Optuna that it knows, got another; install 5.0")
        self.number = 0
        self._costs = costs
        self._drawn: Mapping[str, Any] = {}
        self._from: BaseDistribution | None = None

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        self._drawn, self._from = trial.params, param_distribution
        return super().sample_independent(study, trial, param_name, param_distribution)

    def _compute_acquisition_func(self, samples: dict[str, Any], mpe_below: Any, mpe_above: Any) -> Any:
        expected = super()._compute_acquisition_func(samples, mpe_below, mpe_above)
        ((name, candidates),) = samples.items()
        if self.number % 2 == 0 or self._from is None or not self._costs.decides(name):
            return expected
        values = {one: self._from.to_external_repr(one) for one in set(candidates.tolist())}
        logarithms = {one: self._costs.log_seconds(self._drawn, name, value) for one, value in values.items()}
        return expected - np.array([logarithms[one] for one in candidates.tolist()])
