"""How a search lets its trials grow: whether it may, and what `Growing` is told of it."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.search.cluster_resources import slots_of_nodes
from ich_ray.search.plan.growth import most_slots, workers_at_most
from ich_ray.search.preflight import is_shareable
from ich_ray.search.tune.growing import Growing, SearchState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.search.ledger import Ledger
    from ich_ray.search.preflight import Slots
    from ich_ray.search.space.space import SearchSpace
    from ich_ray.search.tune.trial import Trainer

__all__ = ["growing_of", "may_grow"]


def may_grow(space: SearchSpace, slots: Slots, trainer: Trainer) -> bool:
    """Whether trials of a search can be trained by more processes than they begin with.

    On a machine with room; the trainer must know of workers, too.
    """
    ample = 2 * slots.workers
    larger = workers_at_most(space, replace(slots, concurrent=ample), ample) > slots.workers
    return larger and "shard" in inspect.signature(trainer).parameters


def growing_of(
    space: SearchSpace,
    dataset: PreparedDataset,
    ledger: Ledger,
    slots: Slots,
    is_over: Callable[[], bool],
    room: Callable[[], int],
    grew: Callable[[int, int], None],
) -> Growing:
    """What lends the free slots of a search.

    Args:
        space: of the search.
        dataset: that it trains on.
        ledger: of its trials.
        slots: of each of them.
        is_over: whether nothing is left to start, and there is time.
        room: slots that it may use now.
        grew: see `Growing`.
    """

    def state() -> SearchState | None:
        out = {note.node for note in ledger.record.quarantined}
        return SearchState(room(), slots_of_nodes(slots.cpus, slots.gpus), out) if is_over() else None

    def most(values: Mapping[str, Any]) -> int:
        parameters = Hyperparameters.model_validate(values)
        network = parameters.network_alone.model_copy(update={"weights": "none"})
        return most_slots(parameters.batch_size, slots.workers) if is_shareable(network, dataset.image_shape) else 1

    return Growing(
        str(ledger.files.root),
        state=state,
        images=lambda values: space.drawn.images_of(values, space.budget.images),
        most=most,
        grew=grew,
        workers=slots.workers,
        cpus=slots.cpus,
        gpus=slots.gpus,
    )
