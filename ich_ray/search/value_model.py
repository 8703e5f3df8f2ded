"""What trials are worth at the end of their budget, judged by all reports of all trials at once.

A Gaussian process over parameters and images: trials with like parameters tell of each other, those that were stopped
early of those that were not, and what one seed gave by luck is told from what its neighbors gave (freeze-thaw in the
words of Swersky et al., 2014; the kernel is that of ordinary Bayesian optimization, Snoek et al., NIPS 2012). It draws
nothing and decides nothing: refit/racing.py asks it. Knows nothing of Ray or files.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ich_ray.search.space.space import same

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ich_ray.search.space.space import ParameterSpec, SearchSpace
    from ich_ray.trial_records import TrialResult

__all__ = ["Observation", "ValueModel", "smoothed_best"]

# The share of a training over which reports are averaged, and of its images from one observation to the next.
_THIRD = 3
# A fit takes seconds with so many observations, and its time grows with their cube.
_MOST = 400
# With fewer trials there is nothing to learn of their parameters.
_FEWEST = 10
# What belongs to a seed, of all that parameters do not explain; the rest is of each report.
_OF_SEED = 0.5


class Observation(NamedTuple):
    """What one training had reached.

    Attributes:
        place: its parameters and how much of its images it had seen, each from 0 to 1.
        value: higher for better.
        training: which one; its observations share the luck of its seed.
        block: of patients on whom it was judged; those of one block share what is hard in it.
    """

    place: NDArray[np.float64]
    value: float
    training: int
    block: int = 0


class ValueModel:
    """The values of places, given observations.

    Args:
        space: of the search.
        trials: of the search; those that failed or reported nothing tell nothing.

    Attributes:
        trials: those that it goes by, in the order of their numbers; of very many the best.
    """

    def __init__(self, space: SearchSpace, trials: Sequence[TrialResult]) -> None:
        self._space = space
        self._sign = space.objective.sign
        told = [trial for trial in trials if trial.state != "failed" and trial.value is not None]
        self._seen = self._observed(told)
        seen = {one.training for one in self._seen}
        self.trials = [trial for trial in sorted(told, key=lambda trial: trial.number) if trial.number in seen]
        values = np.array([one.value for one in self._seen])
        self._middle, self._scale = float(np.median(values)), float(values.std()) or 1.0
        self._fit()

    def _observed(self, trials: Sequence[TrialResult]) -> list[Observation]:
        """Of the trials that are best, where there are too many."""
        found: list[Observation] = []
        for trial in sorted(trials, key=lambda one: -self._sign * (one.value or 0.0)):
            own = self._of_trial(trial)
            if len(found) + len(own) > _MOST:
                break
            found += own
        return found

    def _of_trial(self, trial: TrialResult) -> list[Observation]:
        """At geometric distances of images, so that a long training weighs little more than a short one."""
        reports = [report for report in trial.reports if report.network == 0]
        values = [report.metrics.get(trial.objective.metric) for report in reports]
        known = [value for value in values if value is not None and math.isfinite(value)]
        whole = self._space.drawn.images_of(trial.parameters, self._space.budget.images)
        steps = {_THIRD**power for power in range(len(known).bit_length())}
        found = [
            (reports[step - 1].images_seen / whole, smoothed_best(known[:step], self._sign))
            for step in sorted({step for step in steps if step < len(known)} | {len(known)})
            if known
        ]
        if trial.folds_done > 1 and trial.value is not None:  # of several networks, which one alone is no match for
            found = [*found[:-1], (1.0, trial.value)]
        return [
            Observation(self.place(trial, share), self._sign * value, trial.number) for share, value in found if share
        ]

    def again(self, training: TrialResult, block: int) -> Observation:
        """A trial that a confirmation has trained once more, to its end."""
        values = [report.metrics.get(training.objective.metric) for report in training.judged_reports]
        known = [value for value in values if value is not None]
        number = -1 - training.number  # of another ledger
        return Observation(self.place(training), self._sign * smoothed_best(known, self._sign), number, block)

    def place(self, trial: TrialResult, share: float = 1.0) -> NDArray[np.float64]:
        """Where a trial stands when it has seen a share of its images."""
        reports = max(2, self._space.budget.images // self._space.budget.report_every)
        coordinates = [one for spec in self._space.parameters for one in _coordinates(spec, trial)]
        return np.array([*coordinates, 1 + math.log(min(1.0, max(share, 1 / reports))) / math.log(reports)])

    def _fit(self) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        places = np.stack([one.place for one in self._seen])
        lengths = np.full(places.shape[1], 0.7)
        kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(lengths, (0.05, 20.0), nu=2.5)
        kernel += WhiteKernel(0.05, (1e-5, 1.0))
        if len({one.training for one in self._seen}) >= _FEWEST:
            process = GaussianProcessRegressor(kernel, random_state=0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # a parameter that does not matter is at a bound
                kernel = process.fit(places, self._scaled(self._seen)).kernel_
        self._kernel, self._noise = kernel.k1, float(kernel.k2.noise_level)

    def _scaled(self, seen: Sequence[Observation]) -> NDArray[np.float64]:
        return np.array([(one.value - self._middle) / self._scale for one in seen])

    @property
    def noise(self) -> float:
        """The variance of one training about what its parameters are worth."""
        return self._noise * self._scale**2

    def ends(
        self, trials: Sequence[TrialResult], more: Sequence[Observation] = ()
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and covariance of what trials are worth with all their images, whoever trains them.

        Args:
            trials: of the search.
            more: beside what the search has seen.
        """
        seen = [*self._seen, *more]
        places, at = np.stack([one.place for one in seen]), np.stack([self.place(trial) for trial in trials])
        training, block = (np.array([getattr(one, name) for one in seen]) for name in ("training", "block"))
        noise = self._noise * ((1 - _OF_SEED) * np.eye(len(seen)) + _OF_SEED * (training[:, None] == training))
        shared = (block[:, None] == block) & (block > 0)  # the search's own patients are the measure
        covariance = self._kernel(places) + noise + shared
        between = self._kernel(at, places)
        solved = np.linalg.solve(covariance, np.column_stack([self._scaled(seen), between.T]))
        mean = between @ solved[:, 0] * self._scale + self._middle
        spread = (self._kernel(at) - between @ solved[:, 1:]) * self._scale**2
        return mean, (spread + spread.T) / 2


def smoothed_best(values: Sequence[float], sign: float = 1.0) -> float:
    """The best mean of a third of the reports in a row; the best report alone is the luckiest, too."""
    width = max(1, len(values) // _THIRD)
    means = np.convolve(np.asarray(values, np.float64), np.full(width, 1 / width), "valid")
    return float(sign * (sign * means).max())


def _coordinates(spec: ParameterSpec, trial: TrialResult) -> list[float]:
    """One number from 0 to 1, or one for each value that has no order; the middle where it does not exist."""
    if spec.kind == "fixed" or len(spec.values) < 2:
        return []
    value = trial.parameters.get(spec.name)
    if spec.kind == "choice":
        numbers = [one for one in spec.values if isinstance(one, int | float) and not isinstance(one, bool)]
        if len(numbers) < len(spec.values):
            return [float(same(value, one)) for one in spec.values]
        ordered = sorted(numbers)
        return [ordered.index(value) / (len(ordered) - 1)] if value in ordered else [0.5]
    if not isinstance(value, int | float):
        return [0.5]
    low, high, own = (float(one) for one in (*spec.values, value))
    if spec.kind == "loguniform":
        low, high, own = math.log(low), math.log(high), math.log(own)
    return [(own - low) / (high - low) if high > low else 0.5]
