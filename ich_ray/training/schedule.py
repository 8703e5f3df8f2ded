"""Learning-rate schedules by name: pure functions of images seen, and their patience.

A schedule keeps no state, so that `images_seen` alone says the rate of a resumed training. One that comes from outside
registers itself: `SCHEDULES.register("cosine", Schedule(rate_at=..., needs_budget=True))`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ich_ray.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from ich_ray.model.hyperparameters import Hyperparameters

__all__ = ["INVERSE_TIME", "SCHEDULES", "Schedule", "ScheduleStep"]


@dataclass(frozen=True)
class ScheduleStep:
    """A step of a training, whose rate is asked for.

    Attributes:
        images_seen: before the step.
        budget_images: at which the training ends.
        slices: training slices, the images of an epoch.
    """

    images_seen: int
    budget_images: int
    slices: int

    @property
    def epochs(self) -> float:
        """Passes over the training slices so far."""
        return self.images_seen / self.slices


@dataclass(frozen=True)
class Schedule:
    """The rate over a training, and what its shape means for trainings longer than a trial.

    Attributes:
        rate_at: the rate of a step.
        needs_budget: whether the rate depends on the end of the budget; a training then goes on within it alone.
        retraining_factor: the budget of a retraining, in budgets of a trial.
        patience: reports without a better objective before a retraining stops; None where it must reach its end.
    """

    rate_at: Callable[[Hyperparameters, ScheduleStep], float]
    needs_budget: bool
    retraining_factor: int = 1
    patience: int | None = None


def _inverse_time(parameters: Hyperparameters, step: ScheduleStep) -> float:
    return parameters.learning_rate / (1 + parameters.decay * step.epochs)


INVERSE_TIME = "inverse_time"
# It decays with epochs and not towards an end, so a winner's curve simply goes on; a search stops it where ranking was
# cheap. Twice the budget is room for that, and patience ends it sooner when nothing improves.
_INVERSE_TIME = Schedule(_inverse_time, needs_budget=False, retraining_factor=2, patience=5)

SCHEDULES: Registry[Schedule] = Registry("schedules", {INVERSE_TIME: f"{__name__}:_INVERSE_TIME"}, __name__)
