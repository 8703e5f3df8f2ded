"""Race of the trials that may be the best: who trains once more, who is out, and who is chosen.

Each training goes where it is expected to improve the choice most (the knowledge gradient of Frazier, Powell & Dayanik,
A Knowledge-Gradient Policy for Sequential Information Collection, 2008), by what search/value_model.py makes of all
trainings so far: trials that the search had stopped are among them. The state of a race follows from its trainings
alone. Knows nothing of Ray or files.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from ich_ray.refit.race_record import LEVEL

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from numpy.typing import NDArray

    from ich_ray.search.value_model import ValueModel
    from ich_ray.trial_records import TrialResult

__all__ = ["ENOUGH", "Race", "Standing"]

# No more trainings are needed where one is the best with this probability.
ENOUGH = 0.95
# Trials among whom the next training is placed.
_MOST = 20
_DRAWS = 4000
_NORMAL = ndtri((np.arange(20) + 0.5) / 20)  # a normal distribution in twenty equal parts


class Standing(NamedTuple):
    """What is known of each trial of the race, in the order of `Race.trials`.

    Attributes:
        mean: what it is worth at the end of its budget, higher for better; `covariance` of these.
        best: how probable it is that it is the best of all.
        chance: how probable it is that it is at least as good as the leader, which is the one with the best mean.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    best: NDArray[np.float64]
    chance: NDArray[np.float64]

    @property
    def deviation(self) -> NDArray[np.float64]:
        return np.sqrt(np.maximum(np.diag(self.covariance), 0))


class Race:
    """Trials of a search, and what their trainings say.

    Args:
        model: of the search's trials.
        trials: who takes part.
        by_fold: whether trainings are judged on folds, each of which is harder or easier as a whole.
    """

    def __init__(self, model: ValueModel, trials: Sequence[TrialResult], *, by_fold: bool) -> None:
        self._model, self._by_fold = model, by_fold
        self.trials = list(trials)
        self._place = {trial.number: place for place, trial in enumerate(self.trials)}

    def place_of(self, number: int) -> int | None:
        """Where a trial stands in `trials`, None where it takes no part."""
        return self._place.get(number)

    def standing(self, trained: Sequence[TrialResult]) -> Standing:
        """After these trainings, of which those that did not complete tell nothing."""
        more = [self._model.again(one, self._block(one)) for one in trained if one.state == "completed"]
        mean, covariance = self._model.ends(self.trials, more)
        random = np.random.default_rng(0)
        values, vectors = np.linalg.eigh(covariance)
        roots = vectors * np.sqrt(np.maximum(values, 0))
        drawn = mean + random.normal(size=(_DRAWS, len(mean))) @ roots.T
        best = np.bincount(drawn.argmax(1), minlength=len(mean)) / _DRAWS
        leader = int(mean.argmax())
        variance = np.diag(covariance) + covariance[leader, leader] - 2 * covariance[leader]
        chance = ndtr((mean - mean[leader]) / np.sqrt(np.maximum(variance, 1e-18)))
        chance[leader] = 1.0
        return Standing(mean, covariance, best, chance)

    def _block(self, training: TrialResult) -> int:
        return 1 + training.fold if self._by_fold and training.fold is not None else 0

    def next(
        self,
        trained: Sequence[TrialResult],
        count: int,
        *,
        last: bool = False,
        at_most: int | None = None,
        out: Container[int] = (),
    ) -> list[TrialResult]:
        """Whom to train next, the most telling first, perhaps twice; fewer if the race is decided.

        Args:
            trained: so far.
            count: of trainings at a time.
            last: whether there are none after these; the leader then is among them, if it has had none.
            at_most: trainings that one trial may have.
            out: numbers of trials that cannot be chosen.
        """
        standing = self.standing(trained)
        mean, covariance, noise = standing.mean, standing.covariance.copy(), self._model.noise
        had, able = Counter(one.repeats for one in trained), self._able(trained, out)
        leader = max(able, key=lambda place: mean[place], default=None)
        if leader is not None and had[self.trials[leader].number] and standing.best[leader] >= ENOUGH:
            return []
        hopeful = [int(place) for place in np.argsort(-(mean + 2 * standing.deviation), kind="stable")[:_MOST]]
        hopeful += [leader] if leader is not None and leader not in hopeful else []
        found: list[TrialResult] = []
        while len(found) < count:
            free = [
                place
                for place in hopeful
                if self.trials[place].number not in out
                and (at_most is None or had[self.trials[place].number] < at_most)
                and (standing.chance[place] >= LEVEL or place == leader)
            ]
            if not free:
                break
            if last and not found and leader in free and not had[self.trials[leader].number]:
                taken = leader
            else:
                taken = max(free, key=lambda place: _gain(mean, covariance, noise, place, [*able, place]))
            found.append(self.trials[taken])
            had[self.trials[taken].number] += 1
            able.add(taken)
            told = covariance[:, taken] / np.sqrt(covariance[taken, taken] + noise)
            covariance = covariance - np.outer(told, told)
        return found

    def _able(self, trained: Sequence[TrialResult], out: Container[int]) -> set[int]:
        """Places of those that could be chosen now: one training of theirs at least came to its end."""
        through = {one.repeats for one in trained if one.state == "completed"}
        return {
            place
            for place, trial in enumerate(self.trials)
            if trial.number not in out and (trial.state == "completed" or trial.number in through)
        }

    def chosen(
        self, trained: Sequence[TrialResult], out: Container[int] = (), *, standing: Standing | None = None
    ) -> TrialResult | None:
        """The best estimate among those that came to their end, in the search or since; None of none.

        Args:
            trained: so far.
            out: numbers of trials that cannot be chosen.
            standing: after these trainings, if it is known.
        """
        mean = (standing or self.standing(trained)).mean
        place = max(self._able(trained, out), key=lambda place: mean[place], default=None)
        return None if place is None else self.trials[place]


def _gain(
    mean: NDArray[np.float64], covariance: NDArray[np.float64], noise: float, place: int, able: Sequence[int]
) -> float:
    """What one more training of `place` is expected to make of the best mean of those `able`."""
    told = covariance[able, place] / np.sqrt(max(covariance[place, place], 0.0) + noise)
    return float((mean[able][:, None] + told[:, None] * _NORMAL).max(0).mean())
