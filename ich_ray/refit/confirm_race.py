"""A race run over rounds of trainings, and what its trainings say: who was out when, and why.

What stands in the ledger of a confirmation is all its state: a race that was killed goes on where it was, and its
record is made from the trainings in their order.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from ich_ray.errors import ConfigError
from ich_ray.progress import say
from ich_ray.refit.race_record import LEVEL, Dropped
from ich_ray.search.space.space import Listed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ich_ray.refit.racing import Race, Standing
    from ich_ray.search.ledger import Ledger
    from ich_ray.trial_records import TrialResult

__all__ = ["SHARE", "Runner", "dropped", "standing_trainings", "trainings_allowed", "unusable"]

# Of the images of a search, what a race may spend upon them.
SHARE = 0.15
# With fewer there is nothing to compare.
_FEWEST = 2
# So that what the first trainings say decides who has the others, however many fit at a time.
_ROUNDS = 3


def trainings_allowed(share: float, images: int, each: int) -> int:
    """Trainings of `each` images that a share of a search's images pays for, two at least.

    Raises:
        ConfigError: it is no share.
    """
    if not (math.isfinite(share) and 0 < share <= 10):
        raise ConfigError(f"--budget: must be a share of the search's images above 0, got {share:g}; 0.15 is usual")
    paid = int(share * images / each)
    if paid < _FEWEST:
        say(f"confirm: {share:.0%} of the search's images pay for {paid} trainings, {_FEWEST} at least are compared")
    return max(_FEWEST, paid)


class Runner:
    """Runs what a ledger lacks of a race.

    Args:
        race: of the search's trials.
        ledger: of the confirmation.
        parts: the folds or seeds that one candidate may have, in their order.
        allowed: trainings in all.
        at_a_time: trainings that fit beside each other.
    """

    def __init__(
        self, race: Race, ledger: Ledger, parts: Sequence[int | None], *, allowed: int, at_a_time: int
    ) -> None:
        self._race, self._ledger, self._parts, self._allowed = race, ledger, parts, allowed
        fewest = 2 if parts[0] is not None else 1  # one alone tells little of a fold that nobody else has trained on
        self._round = max(fewest, min(at_a_time, -(-allowed // _ROUNDS)))
        self._began = ledger.next_number

    def run(self, train: Callable[[list[Listed]], None]) -> None:
        """Train until the images are spent or one is the best; `train` runs also what was left unfinished."""
        if self._ledger.unfinished:
            train([])
        while (left := self._allowed - len(self._spent())) > 0:
            spent, count = self._spent(), min(self._round, left)
            upcoming = self._race.next(spent, count, last=count == left, at_most=len(self._parts), out=unusable(spent))
            if not upcoming:
                return
            numbers = ", ".join(str(trial.number) for trial in upcoming)
            say(f"confirm: trial {numbers} once more, {left} trainings left")
            train(self._listed(upcoming))

    def _there(self) -> list[TrialResult]:
        return [trial for _, trial in sorted(self._ledger.trials.items())]

    def _spent(self) -> list[TrialResult]:
        """Trainings that count: what failed before, other than by diverging, may be tried again."""
        return [
            one
            for one in self._there()
            if one.state != "failed" or one.reason == "diverged" or one.number >= self._began
        ]

    def _listed(self, upcoming: Sequence[TrialResult]) -> list[Listed]:
        """Each on its first part that it has not had."""
        had = Counter((one.repeats, one.fold) for one in self._spent())
        found = []
        for trial in upcoming:
            part = min(self._parts, key=lambda fold: had[trial.number, fold])
            had[trial.number, part] += 1
            found.append(Listed(trial.parameters, trial.number, part))
        return found


def unusable(trained: Sequence[TrialResult]) -> dict[int, str]:
    """Numbers of trials that cannot be chosen, and why: one training failed and was not made good."""
    failed = [one for one in standing_trainings(trained) if one.state == "failed"]
    failed.sort(key=lambda one: one.reason == "diverged")  # the reason that stays
    return {one.repeats: one.reason for one in failed if one.repeats is not None}


def standing_trainings(trained: Sequence[TrialResult]) -> list[TrialResult]:
    """Without those that failed and were made good, in whatever order.

    On a fold, by one of the same trial and fold that completed; with seeds each that completed makes one good. What
    diverged would do so again, and stands.
    """
    completed = Counter((one.repeats, one.fold) for one in trained if one.state == "completed")
    standing = []
    for one in trained:
        part = (one.repeats, one.fold)
        if one.state == "failed" and one.reason != "diverged" and completed[part]:
            completed[part] -= one.fold is None
        else:
            standing.append(one)
    return standing


def dropped(race: Race, trained: Sequence[TrialResult]) -> tuple[list[Standing], dict[int, Dropped]]:
    """The standing before the first training and after each, and who was out for good, and since when."""
    standings = [race.standing(trained[:count]) for count in range(len(trained) + 1)]
    failed = unusable(trained)
    found = {}
    for place, trial in enumerate(race.trials):
        since = len(standings)
        while since and standings[since - 1].chance[place] < LEVEL:
            since -= 1
        if trial.number in failed:
            since = min(since, max(at for at, one in enumerate(trained, 1) if one.repeats == trial.number))
        if since < len(standings):
            standing = standings[since]
            leader = race.trials[int(standing.mean.argmax())].number
            chance, reason = float(standing.chance[place]), failed.get(trial.number, "")
            found[trial.number] = Dropped(trainings=since, chance=chance, leader=leader, reason=reason)
    return standings, found
