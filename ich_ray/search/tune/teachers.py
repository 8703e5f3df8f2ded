"""Weigh what earlier searches know by how alike this one is, and say it on this search's own scale.

The average precision of another dataset is not on the scale of this one, so of another search only the order of its
trials is taken: its best tenth counts as much as the best tenth here. How many of its trials are shown falls with the
rank correlation between what they say of the trials of this search and what came out, so that a bad teacher fades.

Knows Optuna's trials; nothing of samplers, of the ledger, or of where the searches lie.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import numpy as np
from optuna.distributions import CategoricalDistribution

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

__all__ = ["Teacher", "as_here", "likeness"]

_SHOWN = 50  # trials of a teacher that is trusted wholly
_TRUSTED = 10  # own trials that weigh as much as the belief that a teacher knows
_ALIKE = 0.5  # a rank correlation from which on a search counts as the same: half of the ranks is noise
_TREES = 50


class Teacher:
    """The trials of one earlier search, in the order in which TPE ranks them.

    Attributes:
        trials: best first; none that failed.
    """

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        self.trials = list(trials)
        self._encoding = _Encoding(self.trials)
        self._said: dict[int, float] = {}
        if len(self.trials) > 1:
            from sklearn.ensemble import ExtraTreesRegressor  # takes a second, and most searches have no teacher

            self._surrogate = ExtraTreesRegressor(_TREES, min_samples_leaf=2, random_state=0)
            places = np.arange(len(self.trials)) / (len(self.trials) - 1)
            self._surrogate.fit(self._encoding.of(self.trials), places)

    def weight(self, own: Sequence[FrozenTrial]) -> float:
        """How far the teacher is trusted, from 0 to 1; `own` are trials of this search, best first."""
        return likeness([self._place(trial) for trial in own])

    def _place(self, trial: FrozenTrial) -> float:
        """Where a trial of this search would stand among the teacher's, 0 for the best."""
        if len(self.trials) < 2:
            return 0.0
        if trial.number not in self._said:
            self._said[trial.number] = float(self._surrogate.predict(self._encoding.of([trial]))[0])
        return self._said[trial.number]

    def shown(self, weight: float) -> list[FrozenTrial]:
        """As many as the weight grants: the best ones, and of the others an even part; best first."""
        count = min(round(weight * _SHOWN), len(self.trials))
        best = math.ceil(count / 10)
        rest = len(self.trials) - best
        others = (best + at * rest // (count - best) for at in range(count - best))
        return [self.trials[place] for place in (*range(best), *others)]


def likeness(places: Sequence[float]) -> float:
    """The trust in a teacher that gives the trials of this search, best first, these places.

    Places are 0 for the best. Whole before there is any, half after 10 trials that it knew nothing of, none after 5
    whose order it reversed.
    """
    count = len(places)
    correlation = _rank_correlation(places)
    return min(max((_TRUSTED + count * min(correlation / _ALIKE, 1.0)) / (_TRUSTED + count), 0.0), 1.0)


def _rank_correlation(places: Sequence[float]) -> float:
    if len(set(places)) < 2:
        return 0.0
    from scipy.stats import spearmanr

    return float(spearmanr(places, range(len(places))).statistic)


def as_here(shown: Sequence[Sequence[FrozenTrial]], own: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials of teachers with the outcomes of the trials of this search that stand where they do.

    Where this search has none yet, as they are.

    Args:
        shown: of each teacher, best first.
        own: of this search, best first.

    Returns:
        Best first, so that equal outcomes keep their order.
    """
    placed = [((at + 0.5) / len(trials), trial) for trials in shown for at, trial in enumerate(trials)]
    placed.sort(key=lambda one: one[0])
    return [_with_outcome(trial, own[int(place * len(own))]) if own else trial for place, trial in placed]


def _with_outcome(trial: FrozenTrial, like: FrozenTrial) -> FrozenTrial:
    told = copy.copy(trial)
    told.state, told.intermediate_values = like.state, like.intermediate_values
    told.values = like.values
    return told


class _Encoding:
    """Parameters as numbers between 0 and 1: a column a range, one a value of a choice, one for what may be missing."""

    def __init__(self, trials: Iterable[FrozenTrial]) -> None:
        self._known: dict[str, BaseDistribution] = {}
        for trial in trials:
            self._known |= trial.distributions

    def of(self, trials: Sequence[FrozenTrial]) -> NDArray[np.float64]:
        """`[trials, columns]`."""
        return np.array([self._row(trial) for trial in trials])

    def _row(self, trial: FrozenTrial) -> list[float]:
        row: list[float] = [0.0]  # a space may leave nothing to choose
        for name, drawn_from in self._known.items():
            value = trial.params.get(name)
            row.append(float(name in trial.params))
            if isinstance(drawn_from, CategoricalDistribution):
                row += [float(value == choice) for choice in drawn_from.choices]
            else:
                row.append(0.0 if value is None else _scaled(float(value), drawn_from))
        return row


def _scaled(value: float, drawn_from: BaseDistribution) -> float:
    low, high = drawn_from.low, drawn_from.high  # type: ignore[attr-defined]
    if drawn_from.log:  # type: ignore[attr-defined]
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low) if high > low else 0.0
