"""Ends a search that has found enough: a target, or no more than noise for a while.

Both go by the model of value_model.py, which knows what one training gave by luck: the best report of many is too good,
and a search would end by it too soon. Time limits are in time_budget.py.
"""

from __future__ import annotations

import math
import re
import time
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np

from ich_ray.errors import ConfigError
from ich_ray.search.ledger import Verdict
from ich_ray.search.value_model import ValueModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ich_ray.search.space.space import SearchSpace
    from ich_ray.trial_records import Objective, TrialResult

__all__ = ["EarlyEnd", "EndWatch", "Patience", "end_of", "parse_patience"]

Unit = Literal["trials", "images", "hours", "gpu-hours"]
# With fewer trials that reported the model knows nothing of their parameters, and little of the noise.
_FEWEST = 10
# One-sided 95 %.
_SURE = 1.645
# A look at 100 trials takes a second; looks take at most so much of the driver's time.
_SHARE_OF_TIME = 0.05


class Patience(NamedTuple):
    """So much may bring nothing before a search ends."""

    amount: float
    unit: Unit

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}"


class EarlyEnd(NamedTuple):
    """When a search ends before its last trial.

    Attributes:
        target: a value of the objective that a completed trial is worth with 95 %.
        patience: that may bring less than the noise of a training.
    """

    target: float | None = None
    patience: Patience | None = None

    def check(self, objective: Objective) -> None:
        """Check that a target can be reached.

        Raises:
            ConfigError: it cannot.
        """
        if self.target is None:
            return
        most = 1.0 if objective.mode == "max" else math.inf
        if not 0 < self.target < most:
            to = " and below 1" if objective.mode == "max" else ""
            raise ConfigError(
                f"--target: must be a value of {objective.metric} above 0{to}, got {self.target}; give another one"
            )

    def check_devices(self, gpus: float) -> None:
        """Refuse patience that nothing can exhaust, given what a trial holds.

        Raises:
            ConfigError: it cannot.
        """
        if self.patience and self.patience.unit == "gpu-hours" and not gpus:
            raise ConfigError(
                "--patience: GPU hours need trials that hold GPUs, got 0 GPU a trial; give trials or hours"
            )


def parse_patience(text: str | float | None) -> Patience | None:
    """Read `20` or `20 trials`, `500000 images`, `6 hours` or `10 gpu-hours`.

    Raises:
        ConfigError: it is none of these.
    """
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([a-z-]*)", str(text).strip())
    unit = found[2] or "trials" if found else ""
    amount = float(found[1]) if found else 0.0
    named = next((one for one in get_args(Unit) if unit in {one, one.removesuffix("s")}), None)
    if named is None or amount <= 0 or (named in {"trials", "images"} and not amount.is_integer()):
        raise ConfigError(
            "--patience: must be like 20 (trials), '500000 images', '6 hours' or '10 gpu-hours', got "
            f"{str(text)[:80]!r}; write one of these"
        )
    return Patience(amount, named)


class EndWatch:
    """Looks at the trials of a search whenever one has ended.

    Args:
        space: of the search.
        early: when it ends.
        trials: of its ledger, as they stand there at any time.
        began: when this driver did, seconds since 1970.
        clock: for how long a look takes.
    """

    def __init__(
        self,
        space: SearchSpace,
        early: EarlyEnd,
        trials: Callable[[], Mapping[int, TrialResult]],
        began: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._space, self._early, self._trials, self._began, self._clock = space, early, trials, began, clock
        self._end: Verdict | None = None
        self._looked_at = self._not_before = -math.inf

    def verdict(self, ended: int) -> Verdict | None:
        """How trials end that are stopped now, after so many have; None while the search goes on."""
        if self._end or ended == self._looked_at or self._early == EarlyEnd() or self._clock() < self._not_before:
            return self._end
        begun, self._looked_at = self._clock(), ended
        self._end = end_of(self._space, self._early, [*self._trials().values()], self._began)
        self._not_before = self._clock() + (self._clock() - begun) / _SHARE_OF_TIME
        return self._end


def end_of(
    space: SearchSpace, early: EarlyEnd, trials: Sequence[TrialResult], began: float = 0.0, now: float | None = None
) -> Verdict | None:
    """How a search ends that has these trials; None where it goes on.

    Args:
        space: of the search.
        early: when it ends.
        trials: of its ledger.
        began: since when hours of patience count.
        now: seconds since 1970.
    """
    ended = sorted((one for one in trials if one.ended is not None and one.state != "failed"), key=_when)
    completed = [trial for trial in ended if trial.state == "completed" and trial.value is not None]
    target, objective = early.target, space.objective
    hopeful = [] if target is None else [one for one in completed if not objective.better(target, one.value or 0.0)]
    waited = early.patience and _before(ended, early.patience, began, time.time() if now is None else now)
    before = [trial for trial in completed if waited is not None and trial.number in waited]
    if not (hopeful or before) or sum(trial.value is not None for trial in ended) < _FEWEST:
        return None
    model = ValueModel(space, trials)
    if hopeful and target is not None:
        mean, covariance = model.ends(hopeful)
        surely = mean - _SURE * np.sqrt(np.maximum(np.diag(covariance), 0.0))
        if surely.max() >= objective.sign * target:
            sure = hopeful[int(surely.argmax())].number
            told = f"trial {sure} is worth {target:g} with 95 %, by the reports of all trials"
            return Verdict("pruned", "target", f"the search's --target was reached: {told}")
    if before:
        mean, _ = model.ends(completed)
        was_there = np.array([trial.number in (waited or ()) for trial in completed])
        gain, noise = float(mean.max() - mean[was_there].max()), math.sqrt(model.noise)
        if gain < noise:
            told = f"the last {early.patience} brought {gain:.4f}, a training varies by {noise:.4f}"
            return Verdict("pruned", "patience", f"the search's --patience was over: {told}")
    return None


def _when(trial: TrialResult) -> float:
    return trial.ended or 0.0


def _before(ended: Sequence[TrialResult], patience: Patience, began: float, now: float) -> set[int] | None:
    """The trials that had ended before so much more was spent; None where not so much was."""
    if patience.unit == "hours":
        since = now - patience.amount * 3600
        return {trial.number for trial in ended if _when(trial) <= since} if since >= began else None
    amounts = {
        "trials": [1.0] * len(ended),
        "images": [float(trial.images_seen) for trial in ended],
        "gpu-hours": [trial.cost_gpu_s / 3600 for trial in ended],
    }[patience.unit]
    left, spent = len(ended), 0.0
    while left and spent < patience.amount:
        left -= 1
        spent += amounts[left]
    return {trial.number for trial in ended[:left]} if spent >= patience.amount else None
