"""Check draws against the limits of their space, before anything is trained.

Parameters and memory are counted on outlines of networks, without memory; milliseconds a slice are measured once for
each network and written in search.json, so that a search that goes on refuses what it refused before.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ich_ray.errors import ConfigError
from ich_ray.model.hyperparameters import Hyperparameters, decides_the_network
from ich_ray.search.plan.cost_model import trial_memory
from ich_ray.search.space.constraints import Refusal
from ich_ray.search.space.space import RandomSuggest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from ich_ray.search.space.constraints import Constraints
    from ich_ray.search.space.space import SearchSpace

__all__ = [
    "MOST_MEASURED",
    "ConstraintCheck",
    "RefusedShare",
    "measured_ms",
    "networks_to_measure",
    "refused_share",
    "speed_key",
]

MOST_MEASURED = 256  # networks; a minute or two on a GPU
_MEASURE_S = 0.3
_BATCH_ON_CPU = 8
_DRAWS = 100
_COUNT_S = 6.0
# They change no operation of a network that has been trained.
_OF_NO_SPEED = {"weights", "unfreeze_from", "dropout"}


@dataclass(frozen=True)
class ConstraintCheck:
    """Says which limit a draw exceeds.

    Attributes:
        milliseconds: a slice, by `speed_key`; a network that is not among them is not refused for its time.
    """

    constraints: Constraints
    image_shape: tuple[int, int, int]
    milliseconds: Mapping[str, float]

    def __call__(self, parameters: Hyperparameters) -> Refusal | None:
        """The first limit that a draw exceeds.

        None where it keeps all, or fits no image and so fails by itself.
        """
        limits, shape = self.constraints, self.image_shape
        try:
            return (
                _over("max_parameters", limits.max_parameters, lambda: _count(parameters, shape))
                or _over("max_ms_per_slice", limits.max_ms_per_slice, lambda: self._milliseconds(parameters))
                or _over("max_gpu_gb", limits.max_gpu_gb, lambda: trial_memory(parameters, shape).total / 1e9)
            )
        except ConfigError:
            return None

    def _milliseconds(self, parameters: Hyperparameters) -> float:
        return self.milliseconds.get(speed_key(parameters), 0.0)


@dataclass(frozen=True)
class RefusedShare:
    """How many random draws of a space its limits refuse."""

    limits: str
    draws: int
    refused: Mapping[str, int]
    measured: int = 0
    unmeasured: int = 0

    @property
    def share(self) -> float:
        return sum(self.refused.values()) / self.draws

    def __str__(self) -> str:
        told = ", ".join(f"{count} by {name}" for name, count in self.refused.items())
        by = f" ({told})" if told else ""
        networks = self.measured + self.unmeasured
        timed = f"; {self.measured} of {networks} networks have a measured time" if networks else ""
        return f"{self.limits}: {self.share:.0%} of {self.draws} random draws are refused{by}{timed}"


def _over(name: str, limit: float | None, count: Callable[[], float]) -> Refusal | None:
    if limit is None or (value := count()) <= limit:
        return None
    return Refusal(name, value / limit - 1)


def _count(parameters: Hyperparameters, image_shape: tuple[int, int, int]) -> int:
    return _parameters_of(parameters.network_alone.model_copy(update={"unfreeze_from": "all"}), image_shape)


@lru_cache(maxsize=4096)
def _parameters_of(parameters: Hyperparameters, image_shape: tuple[int, int, int]) -> int:
    from ich_ray.model.outline import outline

    return sum(weight.numel() for weight in outline(parameters, image_shape).parameters())


def speed_key(parameters: Hyperparameters) -> str:
    """What the time a slice depends on: the fields of the network that are not at their defaults."""
    named = {
        name: value
        for name, value in parameters.identity().items()
        if decides_the_network(name) and name not in _OF_NO_SPEED
    }
    return " ".join(f"{name}={value}" for name, value in sorted(named.items())) or "defaults"


def networks_to_measure(space: SearchSpace, check: ConstraintCheck) -> dict[str, Hyperparameters]:
    """One draw of each network that the other limits do not refuse; none without a limit of time.

    Raises:
        ConfigError: they are too many.
    """
    if space.constraints.max_ms_per_slice is None:
        return {}
    names = [spec.name for spec in space.parameters if decides_the_network(spec.name)]
    found: dict[str, Hyperparameters] = {}
    ranges = [spec.name for spec in space.parameters if spec.name in names and spec.kind in {"uniform", "loguniform"}]
    drawn = [] if set(ranges) - _OF_NO_SPEED else space.together(name for name in names if name not in _OF_NO_SPEED)
    for values in drawn:
        parameters = Hyperparameters.model_validate(values)
        if (key := speed_key(parameters)) not in found and check(parameters) is None:
            found[key] = parameters
        if len(found) > MOST_MEASURED:
            break
    if not drawn or len(found) > MOST_MEASURED:
        raise ConfigError(
            f"constraints: max_ms_per_slice measures at most {MOST_MEASURED} networks, got more in the space "
            f"{space.name}; list fewer values of {', '.join(names)}, or limit max_parameters"
        )
    return found


def measured_ms(parameters: Hyperparameters, image_shape: tuple[int, int, int], device: torch.device) -> float:
    """Milliseconds a slice of a network on a device, in float32 and batches, as bundles predict.

    Raises:
        ConfigError: the network does not fit the images.
    """
    import torch

    from ich_ray.model.input_shape import input_shape
    from ich_ray.model.networks import build_network
    from ich_ray.training.inference import EVALUATION_BATCH

    bare = parameters.model_copy(update={"weights": "none", "unfreeze_from": "all"})
    network = build_network(bare, image_shape).to(device).eval()
    count = _BATCH_ON_CPU if device.type == "cpu" else EVALUATION_BATCH
    channels = input_shape(bare, image_shape)[0]
    images = torch.zeros((count, channels, *image_shape[1:]), dtype=torch.uint8, device=device)
    taken: list[float] = []
    end = time.perf_counter() + _MEASURE_S
    with torch.inference_mode():
        network(images)  # the first one chooses algorithms
        while len(taken) < 3 or time.perf_counter() < end:
            started = time.perf_counter()
            network(images).cpu()  # waits for the device
            taken.append(time.perf_counter() - started)
    return 1000 * statistics.median(taken) / count


def refused_share(space: SearchSpace, check: ConstraintCheck, gpus: float, threads: int) -> RefusedShare:
    """Share of random draws that are refused, of as many as some seconds on this machine allow."""
    import torch

    known, left = dict(check.milliseconds), 0
    end = time.monotonic() + _COUNT_S
    if space.constraints.max_ms_per_slice is not None and not known:
        here = not gpus or torch.cuda.is_available()
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        for key, parameters in networks_to_measure(space, check).items():
            if here and time.monotonic() < end:
                known[key] = measured_ms(parameters, check.image_shape, torch.device("cuda" if gpus else "cpu"))
            else:
                left += 1
        torch.set_num_threads(before)
    full, suggest = ConstraintCheck(check.constraints, check.image_shape, known), RandomSuggest(seed=0)
    refused: Counter[str] = Counter()
    end = time.monotonic() + _COUNT_S
    draws = 0
    while draws < _DRAWS and (not draws or time.monotonic() < end):
        draws += 1
        if found := full(space.draw(suggest).hyperparameters):
            refused[found.constraint] += 1
    return RefusedShare(str(space.constraints), draws, dict(refused), len(known), left)
