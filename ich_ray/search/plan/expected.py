"""What a search would cost, before anything runs. Arithmetic only: no Ray, nothing written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ich_ray.search.stopping import STOPPING_RULES, Course

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.search.preflight import Slots
    from ich_ray.search.space.space import Budget, SearchSpace

__all__ = [
    "WorkPlan",
    "expected_course",
    "expected_images",
    "images_at_most",
    "images_to_come",
    "mapped_bytes",
    "plan_trials",
]

# What the plan says of a trial's images weighs as much as this many trials that have ended.
_PLAN_WEIGHS = 3


@dataclass(frozen=True)
class WorkPlan:
    """A search that has not happened.

    Attributes:
        rungs: images_seen at which trials are compared; None where the stopping rule does not say whom it stops.
        reaching: trials expected to start, then to pass each rung.
        images: training images expected of all trials together; `images_at_most` if none is stopped.
        has_shares: whether each trial has the share of an accelerator that it needs, and not `gpus`.
        networks: that a trial trains one after the other, a fold each; 1 without folds.
        grown_workers: that a trial grows to at most, once nothing is left to start.
        mapped_bytes: images of train and validation: in the file cache once a machine, and once a trial in accelerator
            memory where they fit.
    """

    name: str
    trials: int
    concurrent: int
    cpus: float
    gpus: float
    workers: int
    rungs: tuple[int, ...] | None
    reaching: tuple[int, ...]
    images: int
    images_at_most: int
    mapped_bytes: int
    networks: int = 1
    grown_workers: int = 1
    has_shares: bool = False

    def __str__(self) -> str:
        rungs = ", ".join(
            f"{count} trials past {level:,}" for level, count in zip(self.rungs or (), self.reaching[1:], strict=True)
        )
        without = "unknown, counted as if no trial is" if self.rungs is None else "none, no trial is"
        within = " within the first fold" if self.networks > 1 else ""
        copied = ", and copied for each trial to its GPU where they fit into half of what is free" if self.gpus else ""
        saved = 1 - self.images / self.images_at_most
        return "\n".join(
            [
                f"search {self.name}: {self.trials} trials, {self.concurrent} at a time, "
                f"each on {self.cpus:g} CPU and {'a share of a' if self.has_shares else f'{self.gpus:g}'} GPU"
                + (f", in {self.workers} workers" if self.workers > 1 else ""),
                f"  rungs: {rungs or f'{without} stopped early{within}'}",
                *self._folds(),
                f"  images: about {self.images:,}, {saved:.0%} less than the {self.images_at_most:,} without stopping",
                *self._growth(),
                f"  images in memory: {self.mapped_bytes / 2**20:,.0f} MiB, mapped once a machine{copied}",
            ]
        )

    def _growth(self) -> list[str]:
        if self.grown_workers <= self.workers:
            return []
        return [
            f"  at the end: trials that still run take slots of their machine that stand free, up to "
            f"{self.grown_workers} workers each (--no-grow: none does)"
        ]

    def _folds(self) -> list[str]:
        if self.networks == 1:
            return []
        return [
            f"  folds: each trial that passes the first one trains up to {self.networks} networks, one after the "
            f"other, and costs up to {self.networks} times its budget; counted as if none ends between two folds"
        ]


def plan_trials(space: SearchSpace, dataset: PreparedDataset, trials: int, slots: Slots) -> WorkPlan:
    """What `trials` trials of a space would do on these slots."""
    course, at_most = expected_course(space.budget, trials), images_at_most(space, trials)
    images = expected_images(space, trials)
    return WorkPlan(
        name=space.name,
        trials=trials,
        concurrent=min(slots.concurrent, trials),
        cpus=slots.cpus,
        gpus=slots.gpus,
        workers=slots.workers,
        rungs=course.rungs,
        reaching=course.reaching,
        images=images,
        images_at_most=at_most,
        mapped_bytes=mapped_bytes(dataset),
        networks=space.objective.networks,
    )


def mapped_bytes(dataset: PreparedDataset) -> int:
    """Of the images of training and validation."""
    roles = dataset.manifest.roles
    return (roles["train"].slices + roles["validation"].slices) * math.prod(dataset.image_shape)


def images_at_most(space: SearchSpace, trials: int) -> int:
    """Training images of `trials` trials if none is stopped.

    Each takes its budget, or less where a listed one says so.
    """
    if space.listed is None:
        return trials * space.budget.images * space.objective.networks
    return sum(space.images_of(parameters) for parameters in space.listed[:trials])


def expected_images(space: SearchSpace, trials: int) -> int:
    """Training images expected of `trials` trials; with folds, as if none ends after the first one."""
    course, networks = expected_course(space.budget, trials), space.objective.networks
    share = images_at_most(space, trials) / (trials * space.budget.images * networks)
    later = course.reaching[-1] * (networks - 1) * space.budget.images
    return round((course.images + later) * share)


def images_to_come(
    wanted: int,
    expected: float,
    *,
    ended: int,
    ended_images: int,
    begun_images: int,
    running: Sequence[int],
    budget: int,
    networks: int,
) -> float:
    """Training images until the last trial has ended.

    From those that trials took so far, which are few at first: then what was expected counts more.

    Args:
        wanted: trials in all.
        expected: images of one trial by the plan; 0 where there is none.
        ended: trials that have.
        ended_images: that those have seen.
        begun_images: that the others have seen, of which some may wait.
        running: images that each trial has seen which runs.
        budget: images of a network that is never stopped.
        networks: of a trial, one without folds.
    """
    weight = _PLAN_WEIGHS if expected else 0
    if not ended and not weight:
        return 0.0
    each = (ended_images + weight * expected) / (ended + weight)
    later = [seen for seen in running if seen >= budget]  # past the first fold; the plan ends none of them
    first = (wanted - ended - len(later)) * each - (begun_images - sum(later))
    if ended + len(running) >= wanted:  # those that are left may take more than what was expected of all
        first = max(first, sum(budget - seen for seen in running if seen < budget))
    return max(0.0, first) + sum(max(0, budget * networks - seen) for seen in later)


def expected_course(budget: Budget, trials: int) -> Course:
    """The expected course of `trials` trials under the stopping rule of the budget.

    Where the rule does not say, as if it stopped none.
    """
    course = STOPPING_RULES[budget.rule].expected(budget, trials)
    return course or Course(None, (trials,), trials * budget.images)
