"""Which parameters the objective hung on, by Optuna's PED-ANOVA on a study rebuilt from the ledger.

Trials that were stopped early saw fewer images than those that were not, so all are compared where all can be: by
their best report up to the first rung. Conditional parameters take part (Conditional PED-ANOVA, arXiv 2601.20800).
PED-ANOVA finds something in pure luck, too, so an importance is told in multiples of what it finds in the same trials
with their values shuffled.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.errors import ConfigError
from ich_ray.html_report.style import MODEL, REFERENCE, blank, count, plain
from ich_ray.search.space.yaml_file import parse_space

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import optuna
    import plotly.graph_objects as go
    from numpy.typing import NDArray

    from ich_ray.results import SearchResult
    from ich_ray.search.space.space import SearchSpace
    from ich_ray.trial_records import TrialResult

__all__ = ["LEAST_TRIALS", "Importances", "importance_bars", "importances"]

LEAST_TRIALS = 20
# The best tenth says what it takes to be good; Optuna's own advice is five trials in it at least.
_BEST_SHARE, _LEAST_BEST = 0.1, 5
_SHUFFLES = 40
_BEYOND_LUCK = 0.95
# Enough for a ranking; the page must not wait for thousands of them.
_MOST_TRIALS = 300


@dataclass(frozen=True)
class Importances:
    """Of each parameter, the most important one first.

    Attributes:
        images: where trials are compared.
        trials: how many were.
        found: importance, in multiples of what luck stays below 19 times in 20: above 1 it is more than that.
        problem: why there is none; empty if there is.
    """

    images: int
    trials: int
    found: dict[str, float] = field(default_factory=dict)
    problem: str = ""


def importances(search: SearchResult, level: int) -> Importances:
    """Of the parameters that the space leaves open, for the objective after `level` images."""
    try:
        space = parse_space(search.record.space, str(search.files.search))
    except ConfigError:
        return Importances(level, 0, problem="This version cannot read the search space, so no importance is known.")
    values = {trial.number: _value(trial, level) for trial in search.trials}
    measured = [trial for trial in search.trials if values[trial.number] is not None]
    trials = _as_completed(space, measured[:_MOST_TRIALS], values)
    if len(trials) < LEAST_TRIALS:
        return Importances(
            level,
            len(trials),
            problem=f"How much each parameter mattered cannot be told from {count(len(trials))} trials that saw "
            f"{count(level)} images: it takes {LEAST_TRIALS} at least.",
        )
    names = sorted({name for trial in trials for name in trial.params if not trial.distributions[name].single()})
    if len(names) < 2:
        return Importances(level, len(trials), problem="One open parameter alone has nothing to be compared with.")
    measure = _measure(trials, names, search.objective.mode)
    targets, rng = np.array([trial.value for trial in trials], np.float64), np.random.default_rng(0)
    found = measure(targets)
    lucky = np.quantile([measure(rng.permutation(targets)) for _ in range(_SHUFFLES)], _BEYOND_LUCK, axis=0)
    ratios = found / np.maximum(lucky, np.finfo(float).tiny)
    return Importances(level, len(trials), {names[at]: float(ratios[at]) for at in np.argsort(-ratios, kind="stable")})


def _value(trial: TrialResult, level: int) -> float | None:
    """The objective of the best report up to `level` images, None if the trial did not get there."""
    if trial.images_seen < level:
        return None
    return trial.model_copy(update={"reports": tuple(r for r in trial.reports if r.images_seen <= level)}).value


def _as_completed(
    space: SearchSpace, trials: Sequence[TrialResult], values: dict[int, float | None]
) -> list[optuna.trial.FrozenTrial]:
    """Each with its value at the level; points that the space itself could not draw are left out."""
    import optuna

    from ich_ray.search.optuna_adapter import as_optuna

    found = []
    for trial in trials:
        try:
            told = as_optuna(space, trial)
        except ValueError:
            continue
        found.append(
            optuna.trial.create_trial(value=values[trial.number], params=told.params, distributions=told.distributions)
        )
    return found


def _measure(
    trials: Sequence[optuna.trial.FrozenTrial], names: Sequence[str], mode: str
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """What gives the importance of each name for values of these trials, in their order."""
    import optuna

    optuna.logging.disable_default_handler()
    study = optuna.create_study()
    study.add_trials(trials)
    best = max(_BEST_SHARE, min(0.5, _LEAST_BEST / len(trials)))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=best)
    sign = -1.0 if mode == "max" else 1.0

    def measure(values: NDArray[np.float64]) -> NDArray[np.float64]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that low is good for it, which the sign sees to
            found = evaluator.evaluate(study, params=[*names], target=lambda trial: sign * values[trial.number])
        return np.array([found[name] for name in names])

    return measure


def importance_bars(found: Importances) -> go.Figure:
    """A bar for each parameter, the largest on top, and an upright where luck ends."""
    names = list(reversed(found.found))
    ratios = [found.found[name] for name in names]
    figure = blank("importance, in multiples of what luck stays below", "")
    figure.add_bar(
        x=ratios,
        y=[plain(name) for name in names],
        orientation="h",
        marker={"color": [MODEL if ratio > 1 else REFERENCE for ratio in ratios]},
        showlegend=False,
        hovertemplate="%{y}: %{x:.2f} times<extra></extra>",
    )
    figure.add_vline(x=1, line={"color": REFERENCE, "width": 1.5, "dash": "dash"})
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(type="category", showgrid=False)
    return figure.update_layout(margin={"t": 14})
