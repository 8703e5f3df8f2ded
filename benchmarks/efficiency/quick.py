"""Our search on computed problems, done over in arrays: the same rules, twenty times as fast, to try rules of cost.

Its parts are those of TPESampler, one parameter at a time, of tpe_history.py, and AshaRungs itself. It knows no ledger,
no failures and no folds: what it finds is tried with the real one, see benchmarks/search_cost.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtr, ndtri

from ich_ray.search.stopping.asha import AshaRungs

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from benchmarks.efficiency.course import Parameters, Training
    from ich_ray.search.space.space import ParameterSpec, SearchSpace

    Numbers = NDArray[np.float64]
    Weigh = Callable[[Numbers, Numbers, int], Numbers]

__all__ = ["Quick"]

STARTUP, CANDIDATES, SHOWN, BEST = 10, 24, 250, 25


@dataclass
class _Known:
    """A trial: its parameters as numbers, and how it stands: ended, completed, values at rungs."""

    drawn: dict[str, float]
    ended: bool = False
    completed: bool = False
    best: float = -math.inf
    at_rungs: dict[int, float] = field(default_factory=dict)

    @property
    def rank(self) -> tuple[int, int, float]:
        if self.completed:
            return 1, 0, self.best
        step, value = max(self.at_rungs.items(), default=(-1, 0.0))
        return 0, step, value


class Quick:
    """A search.

    Args:
        weigh: what becomes of what TPE expects of candidates, by the logarithms of their costs and the trial's number.
        pace: seconds an image by the number of the architecture; None where nothing is weighed.
        share: of random draws by the number of the architecture, for so many first trials.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        folder: Any,
        slots: int,
        weigh: Weigh | None = None,
        pace: Numbers | None = None,
        first: tuple[int, Numbers] | None = None,
    ) -> None:
        del folder
        self.slots, self._space, self._weigh, self._first = slots, space, weigh, first
        self._log_pace = None if pace is None else np.log(pace)
        self._random = np.random.default_rng((seed, 11))
        self._rungs, self._asha = space.rungs(), AshaRungs(space.budget, space.objective)
        self._known: list[_Known] = []

    def start(self, trial_id: str) -> Parameters:
        number = int(trial_id)
        below, above = self._split()
        drawn: dict[str, float] = {}
        parameters: Parameters = {}
        for spec in self._space.parameters:
            if not spec.active(parameters):
                continue
            if self._first and number < self._first[0] and spec.name == "architecture":
                drawn[spec.name] = float(self._random.choice(len(spec.values), p=self._first[1]))
            elif below is None or above is None:
                drawn[spec.name] = self._at_random(spec)
            else:
                good = np.array([one.drawn[spec.name] for one in below if spec.name in one.drawn])
                bad = np.array([one.drawn[spec.name] for one in above if spec.name in one.drawn])
                drawn[spec.name] = self._expected(spec, good, bad, number)
            parameters[spec.name] = _value(spec, drawn[spec.name])
        self._known.append(_Known(drawn))
        return parameters

    def goes_on(self, trial_id: str, training: Training, measured: float) -> bool:
        number, images = int(trial_id), training.images
        one = self._known[number]
        one.best = max(one.best, measured)
        for level in self._rungs:
            if images >= level and level not in one.at_rungs:
                one.at_rungs[level] = one.best
        if self._asha.offer(number, images, measured) is not None:
            one.ended = True
        if images >= self._space.budget.images:
            one.ended = one.completed = True
        return not one.ended

    def _split(self) -> tuple[list[_Known], list[_Known]] | tuple[None, None]:
        """The good ones and the others, each by number; None before there are enough."""
        ended = [number for number, one in enumerate(self._known) if one.ended]
        best = set(sorted(ended, key=lambda number: (self._known[number].rank, -number))[-BEST:])
        others = [number for number in ended if number not in best]
        room = min(SHOWN - len(best), len(others))
        shown = best | {others[-1 - at * len(others) // room] for at in range(room)}
        running = {number for number, one in enumerate(self._known) if not one.ended}
        ranked = [number for number in sorted(shown | running) if self._known[number].at_rungs]
        if len(ranked) < STARTUP:
            return None, None
        good = set(
            sorted(ranked, key=lambda number: self._known[number].rank, reverse=True)[
                : min(math.ceil(0.1 * len(ranked)), 25)
            ]
        )
        everything = sorted(shown | running)
        return [self._known[number] for number in sorted(good)], [
            self._known[number] for number in everything if number not in good
        ]

    def _at_random(self, spec: ParameterSpec) -> float:
        if spec.kind == "choice":
            return float(self._random.integers(len(spec.values)))
        low, high = _range(spec)
        drawn = self._random.uniform(low, high)
        return _rounded(spec, drawn)

    def _expected(self, spec: ParameterSpec, good: Numbers, bad: Numbers, number: int) -> float:
        if spec.kind == "choice":
            count = len(spec.values)
            likely, unlikely = _shares(good, count), _shares(bad, count)
            candidates = self._random.choice(count, size=CANDIDATES, p=likely)
            expected = (np.log(likely) - np.log(unlikely))[candidates]
            if spec.name == "architecture" and self._weigh and self._log_pace is not None:
                expected = self._weigh(expected, self._log_pace[candidates], number)
            return float(candidates[int(np.argmax(expected))])
        low, high = _range(spec)
        kernels, others = _Kernels(good, low, high), _Kernels(bad, low, high)
        drawn = kernels.sample(self._random)
        if spec.kind == "int":
            drawn = np.clip(np.round(drawn), low + 0.5, high - 0.5)
            expected = kernels.log_mass(drawn) - others.log_mass(drawn)
        else:
            expected = kernels.log_density(drawn) - others.log_density(drawn)
        return float(drawn[int(np.argmax(expected))])


class _Kernels:
    """Truncated normal distributions around observations, and one over the whole range."""

    def __init__(self, seen: Numbers, low: float, high: float) -> None:
        self._low, self._high = low, high
        order = np.argsort(seen)
        there = np.concatenate([[low], seen[order], [high]])
        widths = np.maximum(there[1:-1] - there[:-2], there[2:] - there[1:-1])
        if len(there) >= 4:
            widths[0], widths[-1] = there[2] - there[1], there[-2] - there[-3]
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        spread = high - low
        narrow = spread / min(100.0, 2.0 + len(seen))
        self._sigma = np.append(np.clip(widths[back], narrow, spread), spread)
        self._mu = np.append(seen, (low + high) / 2)
        self._weights = _weights(len(seen))
        self._from = ndtr((low - self._mu) / self._sigma)
        self._mass = ndtr((high - self._mu) / self._sigma) - self._from

    def sample(self, random: np.random.Generator) -> Numbers:
        chosen = random.choice(len(self._mu), size=CANDIDATES, p=self._weights)
        at = self._from[chosen] + random.random(CANDIDATES) * self._mass[chosen]
        drawn: Numbers = np.clip(self._mu[chosen] + self._sigma[chosen] * ndtri(at), self._low, self._high)
        return drawn

    def log_density(self, at: Numbers) -> Numbers:
        away = (at[:, None] - self._mu) / self._sigma
        density: Numbers = np.exp(-0.5 * away**2) @ (self._weights / (self._sigma * self._mass))
        return np.log(density)

    def log_mass(self, at: Numbers) -> Numbers:
        upper, lower = (ndtr((at[:, None] + half - self._mu) / self._sigma) for half in (0.5, -0.5))
        mass: Numbers = (upper - lower) @ (self._weights / self._mass)
        return np.log(mass)


def _weights(seen: int) -> Numbers:
    """The newest 25 count whole, older ones ever less; and one for what is believed before."""
    old = np.linspace(1 / seen, 1.0, seen - 25) if seen >= 25 else np.ones(0)
    weights = np.concatenate([old, np.ones(seen - len(old) + 1)])
    return weights / weights.sum()


def _shares(seen: Numbers, count: int) -> Numbers:
    """The probability of each choice."""
    if not len(seen):
        return np.full(count, 1 / count)
    rows = np.full((len(seen) + 1, count), 1 / (len(seen) + 1))
    rows[np.arange(len(seen)), seen.astype(int)] += 1
    rows /= rows.sum(axis=1, keepdims=True)
    shares: Numbers = _weights(len(seen)) @ rows
    return shares / shares.sum()


def _range(spec: ParameterSpec) -> tuple[float, float]:
    low, high = (float(value) for value in spec.values)  # type: ignore[arg-type]
    if spec.kind == "int":
        return low - 0.5, high + 0.5
    return (math.log(low), math.log(high)) if spec.kind == "loguniform" else (low, high)


def _rounded(spec: ParameterSpec, drawn: float) -> float:
    low, high = _range(spec)
    return min(max(round(drawn), low + 0.5), high - 0.5) if spec.kind == "int" else drawn


def _value(spec: ParameterSpec, drawn: float) -> Any:
    if spec.kind == "choice":
        return spec.values[int(drawn)]
    if spec.kind == "int":
        return int(drawn)
    if spec.kind == "loguniform":
        low, high = spec.values
        return min(max(math.exp(drawn), float(low)), float(high))
    return drawn
