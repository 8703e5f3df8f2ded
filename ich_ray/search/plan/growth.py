"""Which running trials grow onto free slots, once nothing is left to start. Arithmetic, no Ray.

A slot is what a trial begins with; a trial of three slots trains in three times as many processes. It grows on its own
machine alone: between machines the sum of all gradients takes longer than the step of a small batch. The longest trial
comes first, as the search ends with it.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ich_ray.search.space.parameter_sets import NETWORKS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ich_ray.search.preflight import Slots
    from ich_ray.search.space.space import SearchSpace

__all__ = [
    "SWITCH_S",
    "RunningTrial",
    "efficiency_of",
    "growing",
    "most_slots",
    "workers_at_most",
]

# What is taken for the efficiency of a further slot until a grown trial has shown it.
_UNKNOWN_EFFICIENCY = 0.5
# From one number of processes to another: they start, read the state and map the images.
SWITCH_S = 20.0
# What a growth must save at least: of its own cost, and of what is left of the trial.
_SAVED_TIMES, _SAVED_SHARE = 2.0, 0.1
# The smallest batch before a report has eight images (`training.stream.next_batch`): no process may be without one.
_MOST_WORKERS = 8
# A device with fewer images of a batch has hardly anything to do at once.
_IMAGES_A_WORKER = 4


@dataclass(frozen=True)
class RunningTrial:
    """A trial that has reported.

    Attributes:
        number: of the trial.
        node: its machine.
        images_left: of its budget, as if nothing stopped it.
        seconds: of training and validation per training image, by the slots that it had meanwhile; that of one slot is
            among them.
        slots: that it has.
        most: that it may have, see `most_slots`.
    """

    number: int
    node: str
    images_left: int
    seconds: Mapping[int, float] = field(default_factory=dict)
    slots: int = 1
    most: int = 1

    def left_s(self, slots: int, efficiency: float) -> float:
        """Until its end with so many slots: as measured, or by the efficiency."""
        each = self.seconds.get(slots) or self.seconds[1] / (1 + efficiency * (slots - 1))
        return self.images_left * each


def most_slots(batch_size: int, workers: int) -> int:
    """Slots that a trial may have by its batch, with so many processes a slot."""
    return max(1, min(_MOST_WORKERS, batch_size // _IMAGES_A_WORKER) // workers)


def workers_at_most(space: SearchSpace, slots: Slots, slots_of_a_machine: int) -> int:
    """Processes that a trial of a search may grow to on its machine.

    Those that it begins with where several trials share an accelerator, and with folds.
    """
    whole = slots.gpus == 0 or slots.gpus >= 1
    if not whole or space.drawn is not NETWORKS or space.objective.networks > 1:
        return slots.workers
    room = min(slots_of_a_machine, slots.concurrent) * slots.workers
    return max(slots.workers, min(_MOST_WORKERS, room) // slots.workers * slots.workers)


def efficiency_of(measured: Iterable[Mapping[int, float]]) -> float | None:
    """What a further slot is worth, as a share of the first one; None where no trial grew.

    The median of those that did: 1 where three slots are three times as fast, 0 where they are as fast as one.
    """
    found = [
        (seconds[1] / each - 1) / (slots - 1)
        for seconds in measured
        for slots, each in seconds.items()
        if slots > 1 and 1 in seconds
    ]
    return max(0.0, min(1.0, statistics.median(found))) if found else None


def growing(
    trials: Sequence[RunningTrial],
    free: Mapping[str, int],
    *,
    efficiency: float | None = None,
    switch_s: float = SWITCH_S,
) -> dict[int, int]:
    """Slots of the trials that change, by number.

    Free slots go one after the other to the trial that would end last. Until the efficiency is known a trial at most
    doubles. One that turned out slower than with one slot goes back to that.

    Args:
        trials: that run, each with at least one report.
        free: slots by machine.
        efficiency: see `efficiency_of`.
        switch_s: what each change costs its trial.
    """
    taken = _UNKNOWN_EFFICIENCY if efficiency is None else efficiency
    worse = {trial.number: 1 for trial in trials if _is_worse(trial, switch_s)}
    before = {trial.number: trial for trial in trials if trial.number not in worse and not _has_tried(trial)}
    planned, room, open_to = dict(before), dict(free), set(before)
    while open_to:
        last = max(open_to, key=lambda number: (planned[number].left_s(planned[number].slots, taken), -number))
        trial = planned[last]
        if trial.slots >= _limit(before[last], efficiency) or room.get(trial.node, 0) < 1:
            open_to.discard(last)
            continue
        room[trial.node] -= 1
        planned[last] = replace(trial, slots=trial.slots + 1)
    larger = {number: trial.slots for number, trial in planned.items() if trial.slots > before[number].slots}
    return worse | {
        number: slots for number, slots in larger.items() if _is_worth(before[number], slots, taken, switch_s)
    }


def _limit(trial: RunningTrial, efficiency: float | None) -> int:
    return min(trial.most, 2 * trial.slots) if efficiency is None else trial.most


def _is_worse(trial: RunningTrial, switch_s: float) -> bool:
    """Whether it was measured to be slower than with one slot, by more than going back costs."""
    here = trial.seconds.get(trial.slots) if trial.slots > 1 else None
    return here is not None and (here - trial.seconds[1]) * trial.images_left > switch_s


def _has_tried(trial: RunningTrial) -> bool:
    """Whether it has been larger, and was no faster then: it stays as it is."""
    return any(slots > 1 and each >= trial.seconds[1] for slots, each in trial.seconds.items())


def _is_worth(trial: RunningTrial, slots: int, efficiency: float, switch_s: float) -> bool:
    before = trial.left_s(trial.slots, efficiency)
    saved = before - trial.left_s(slots, efficiency)
    return saved > max(_SAVED_TIMES * switch_s, _SAVED_SHARE * before)
