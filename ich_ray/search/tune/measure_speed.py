"""Measure networks of a space on the device of its trials: time of a slice, cost of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray

from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError, IchRayError, TrialFailure
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.progress import say
from ich_ray.registry import registered_here, repeat
from ich_ray.search.plan.constraint_check import measured_ms, networks_to_measure
from ich_ray.search.plan.cost_model import seconds_per_image
from ich_ray.search.plan.cost_table import networks_to_time
from ich_ray.training.memory import out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch

    from ich_ray.registry import Registration
    from ich_ray.search.plan.constraint_check import ConstraintCheck
    from ich_ray.search.preflight import Slots
    from ich_ray.search.space.space import SearchSpace

__all__ = ["measure_costs", "measure_speeds"]


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
    why = "constraints: max_ms_per_slice needs every network measured"
    return _measured_there(slots, why, _milliseconds, told, check.image_shape)


def measure_costs(space: SearchSpace, dataset: PreparedDataset, slots: Slots) -> dict[str, float]:
    """Seconds an image of training of a space's networks, by the keys of cost_table.py.

    Ray must be connected. One that does not fit the images or the memory of the device, or cannot be trained, is left
    out.

    Raises:
        ConfigError: there is nothing to compare.
        IchRayError: none could be measured.
    """
    networks = networks_to_time(space)
    say(f"cost: timing {len(networks)} networks, a second or two each on a GPU and several on a CPU")
    told = {key: parameters.model_dump() for key, parameters in networks.items()}
    why = "budget.unit: cost needs networks timed"
    found = _measured_there(slots, why, _seconds, told, str(dataset.files.root), space.budget.report_every)
    if not found:
        raise IchRayError(f"{why}, got none that fits the images and the memory of its device; leave it out")
    return found


def _measured_there(slots: Slots, why: str, measure: Callable[..., dict[str, float]], *asked: Any) -> dict[str, float]:
    """What is measured on a device with the resources of a trial."""
    gpus, threads = min(slots.gpus, 1.0), max(1, int(slots.cpus))
    task = ray.remote(num_cpus=slots.cpus, num_gpus=gpus)(_on_device)
    try:
        found: dict[str, float] = ray.get(task.remote(registered_here(), gpus > 0, threads, measure, *asked))
    except ray.exceptions.RayError as error:
        problem = str(error).strip().splitlines()[-1]
        raise IchRayError(f"{why}, got {problem}; remove it, or the cause") from None
    return found


def _on_device(
    registered: Iterable[Registration], gpu: bool, threads: int, measure: Callable[..., dict[str, float]], *asked: Any
) -> dict[str, float]:
    import torch

    repeat(registered)
    torch.set_num_threads(threads)
    return measure(torch.device("cuda" if gpu else "cpu"), *asked)


def _milliseconds(
    device: torch.device, told: dict[str, dict[str, Any]], image_shape: tuple[int, int, int]
) -> dict[str, float]:
    return {
        key: measured_ms(Hyperparameters.model_validate(parameters), image_shape, device)
        for key, parameters in told.items()
    }


def _seconds(
    device: torch.device, told: dict[str, dict[str, Any]], dataset: str, report_every: int
) -> dict[str, float]:
    data = PreparedDataset.open(dataset)
    found: dict[str, float] = {}
    for key, parameters in told.items():
        try:
            found[key] = seconds_per_image(Hyperparameters.model_validate(parameters), data, report_every, device)
        except (ConfigError, TrialFailure):
            continue
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error) is None:
                raise
    return found
