"""One search on simulated slots; how long an image takes is up to the network that is shown it."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ich_ray.search.space.space import SearchSpace

Parameters = dict[str, Any]


class Training(Protocol):
    """One network in training.

    Attributes:
        images: shown so far.
        values: what it reported.
        value: what it is worth now, without noise where that is known, else what it reported last.

    A report of one that has diverged is NaN, its last.
    """

    parameters: Parameters
    images: int
    values: list[float]

    def report(self) -> float: ...
    @property
    def value(self) -> float: ...


class Problem(Protocol):
    """What is searched.

    Attributes:
        space: with its budget and rungs.
    """

    @property
    def space(self) -> SearchSpace: ...
    def begin(self, parameters: Parameters, seed: tuple[int, ...]) -> Training: ...
    def pace(self, parameters: Parameters) -> float:
        """Seconds an image."""


class Method(Protocol):
    """A search: what to train, and whether to go on after a report.

    Attributes:
        slots: trials at a time.
    """

    slots: int

    def start(self, trial_id: str) -> Parameters | str:
        """What to train; or the trial to go on with, by its id, which a former answer of `goes_on` had paused."""

    def goes_on(self, trial_id: str, training: Training, measured: float) -> bool: ...


@dataclass
class Course:
    """What a search has shown and trained so far.

    Attributes:
        seconds: since it began.
        cost: the seconds that its slots were busy, in all.
    """

    images: int = 0
    seconds: float = 0.0
    cost: float = 0.0
    trainings: list[Training] = field(default_factory=list)
    complete: list[Training] = field(default_factory=list)


def course(method: Method, on: Problem, seed: int) -> Iterator[tuple[Course, Training]]:
    """Run a search; yields after each report, forever."""
    budget = on.space.budget
    so_far, clocks = Course(), [(0.0, slot) for slot in range(method.slots)]
    busy: dict[int, tuple[str, Training]] = {}
    while True:
        clock, slot = heapq.heappop(clocks)
        if slot not in busy:
            number = len(so_far.trainings)
            asked = method.start(str(number))
            if isinstance(asked, str):
                busy[slot] = asked, so_far.trainings[int(asked)]
            else:
                so_far.trainings.append(on.begin(asked, (seed, number)))
                busy[slot] = str(number), so_far.trainings[-1]
        trial_id, training = busy[slot]
        measured = training.report()
        took = budget.report_every * on.pace(training.parameters)
        so_far.images += budget.report_every
        so_far.cost += took
        so_far.seconds = clock + took
        if not method.goes_on(trial_id, training, measured):
            del busy[slot]
        if training.images >= budget.images:
            so_far.complete.append(training)
        heapq.heappush(clocks, (clock + took, slot))
        yield so_far, training
