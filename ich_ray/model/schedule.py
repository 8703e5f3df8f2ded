"""Learning-rate schedules by name: pure functions of images seen, and their patience.

A schedule keeps no state, so that `images_seen` alone says the rate of a resumed training. Warm-up comes before every
schedule: a draw's `warmup` is the share of its budget in which the rate rises to what the schedule says. One that comes
from outside registers itself, and is then a value of `schedule` in a search space:
`SCHEDULES.register("its_name", Schedule(rate_at=..., needs_budget=True))`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ich_ray.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from ich_ray.model.fields import OptimizationFields

__all__ = ["SCHEDULES", "Schedule", "ScheduleStep", "needs_budget", "rate_of"]

# A warm-up begins at, and a cosine ends at, this share of the peak, as torchvision's reference training does.
_LOWEST = 0.01
# Of the images after the warm-up, those at the peak: fastai's fit_flat_cos.
_FLAT = 0.75


@dataclass(frozen=True)
class ScheduleStep:
    """A step of a training, whose rate is asked for.

    Attributes:
        images_seen: before the step.
        budget_images: at which the training ends, whatever rungs it passes.
        slices: training slices, the images of an epoch.
    """

    images_seen: int
    budget_images: int
    slices: int

    @property
    def epochs(self) -> float:
        """Passes over the training slices so far."""
        return self.images_seen / self.slices

    def share_after(self, warmup: float) -> float:
        """The share of the images after a warm-up that has been seen, 0 within it."""
        return max(0.0, (self.images_seen / self.budget_images - warmup) / (1 - warmup))


@dataclass(frozen=True)
class Schedule:
    """The rate over a training, and what its shape means for trainings longer than a trial.

    Attributes:
        rate_at: the rate of a step, but for the warm-up.
        needs_budget: whether the rate depends on the end of the budget; a training then goes on within it alone.
        retraining_factor: the budget of a retraining, in budgets of a trial.
        patience: reports without a better objective before a retraining stops; None where it must reach its end.
    """

    rate_at: Callable[[OptimizationFields, ScheduleStep], float]
    needs_budget: bool
    retraining_factor: int = 1
    patience: int | None = None


def _inverse_time(parameters: OptimizationFields, step: ScheduleStep) -> float:
    return parameters.learning_rate / (1 + parameters.decay * step.epochs)


def _constant(parameters: OptimizationFields, _: ScheduleStep) -> float:
    return parameters.learning_rate


def _cosine(parameters: OptimizationFields, step: ScheduleStep) -> float:
    return parameters.learning_rate * _annealed(step.share_after(parameters.warmup))


def _flat_cosine(parameters: OptimizationFields, step: ScheduleStep) -> float:
    share = (step.share_after(parameters.warmup) - _FLAT) / (1 - _FLAT)
    return parameters.learning_rate * _annealed(max(0.0, share))


def _annealed(share: float) -> float:
    """Half a cosine from 1 to the lowest: Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5."""
    return _LOWEST + (1 - _LOWEST) * (1 + math.cos(math.pi * share)) / 2


# Neither goes towards an end, so a winner's curve simply goes on; a search stops it where ranking was cheap. Twice the
# budget is room for that, and patience ends it sooner when nothing improves.
_INVERSE_TIME = Schedule(_inverse_time, needs_budget=False, retraining_factor=2, patience=5)
_CONSTANT = Schedule(_constant, needs_budget=False, retraining_factor=2, patience=5)
# The best networks come at the low rates of the end: a retraining reaches it.
_COSINE = Schedule(_cosine, needs_budget=True)
_FLAT_COSINE = Schedule(_flat_cosine, needs_budget=True)

SCHEDULES: Registry[Schedule] = Registry(
    "schedules",
    {name: f"{__name__}:_{name.upper()}" for name in ("inverse_time", "constant", "cosine", "flat_cosine")},
    __name__,
)


def rate_of(parameters: OptimizationFields, step: ScheduleStep) -> float:
    """The learning rate of a step: that of the draw's schedule, after or within its warm-up."""
    rate = SCHEDULES[parameters.schedule].rate_at(parameters, step)
    warm = parameters.warmup * step.budget_images
    if step.images_seen >= warm:
        return rate
    return rate * (_LOWEST + (1 - _LOWEST) * step.images_seen / warm)


def needs_budget(parameters: OptimizationFields) -> bool:
    """Whether rates depend on the end of the budget: a training then goes on towards no other."""
    return parameters.warmup > 0 or SCHEDULES[parameters.schedule].needs_budget
