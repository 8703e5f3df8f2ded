"""Measure milliseconds a slice of a space's networks on the device of its trials, before the first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray

from ich_ray.errors import IchRayError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.progress import say
from ich_ray.registry import registered_here, repeat
from ich_ray.search.plan.constraint_check import measured_ms, networks_to_measure

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ich_ray.registry import Registration
    from ich_ray.search.plan.constraint_check import ConstraintCheck
    from ich_ray.search.preflight import Slots
    from ich_ray.search.space.space import SearchSpace

__all__ = ["measure_speeds"]


def measure_speeds(space: SearchSpace, check: ConstraintCheck, slots: Slots) -> dict[str, float]:
    """Milliseconds a slice of each network of a space, by `speed_key`; Ray must be connected.

    Raises:
        ConfigError: they are too many.
        IchRayError: a network could not be measured.
    """
    networks = networks_to_measure(space, check)
    if not networks:
        return {}
    say(f"constraints: measuring the time a slice of {len(networks)} networks")
    told = {key: parameters.model_dump() for key, parameters in networks.items()}
    gpus = min(slots.gpus, 1.0)
    measure = ray.remote(num_cpus=slots.cpus, num_gpus=gpus)(_measured)
    threads = max(1, int(slots.cpus))
    try:
        found: dict[str, float] = ray.get(measure.remote(registered_here(), told, check.image_shape, gpus > 0, threads))
    except ray.exceptions.RayError as error:
        problem = str(error).strip().splitlines()[-1]
        raise IchRayError(
            f"constraints: max_ms_per_slice needs every network measured, got {problem}; remove it, or the cause"
        ) from None
    return found


def _measured(
    registered: Iterable[Registration],
    told: dict[str, dict[str, Any]],
    image_shape: tuple[int, int, int],
    gpu: bool,
    threads: int,
) -> dict[str, float]:
    import torch

    repeat(registered)
    torch.set_num_threads(threads)
    device = torch.device("cuda" if gpu else "cpu")
    return {
        key: measured_ms(Hyperparameters.model_validate(parameters), image_shape, device)
        for key, parameters in told.items()
    }
