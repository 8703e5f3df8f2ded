"""Cost of an image: seconds by the parameters that decide the speed of a space's networks.

Says which networks are to be timed and what a value costs beside others that are drawn. Times nothing itself: that is
done as `--plan` does, see cost_model.py, on the device of the trials.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ich_ray.errors import ConfigError
from ich_ray.model.hyperparameters import decides_the_network

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.search.space.space import SearchSpace
    from ich_ray.trial_records import Parameter

__all__ = ["MOST_TIMED", "CostTable", "networks_to_time", "parameters_of_speed"]

MOST_TIMED = 48  # networks, a second or two each
# What changes the speed most; other parameters of networks follow in the order of the space, while there is room.
_FIRST = ("architecture", "resolution", "batch_size")
# They hardly change what a step takes.
_OF_NO_SPEED = {"weights", "dropout", "labels", "crop", "scale", "neighbor_windows"}


@dataclass(frozen=True)
class CostTable:
    """Seconds an image.

    Attributes:
        rows: the values that decide a speed, and the logarithm of its seconds.
        seconds: the same by keys, as search.json holds them.
    """

    rows: Sequence[tuple[Mapping[str, Parameter], float]]
    seconds: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, space: SearchSpace, seconds: Mapping[str, float]) -> CostTable:
        """A table by its keys, as search.json holds it; a network that could not be timed is not in it."""
        found = {_key(values): values for values in space.together(parameters_of_speed(space), whole=True)}
        return cls([(values, math.log(seconds[key])) for key, values in found.items() if key in seconds], seconds)

    def log_seconds(self, drawn: Mapping[str, Any], name: str, value: Parameter) -> float:
        """The mean of the logarithm over all that has a value, and has what is drawn already.

        That of the whole table where nothing is known of it, so that it is neither sought nor shunned.
        """
        fixed = {**drawn, name: value}
        alike = [
            logarithm
            for values, logarithm in self.rows
            if name in values and all(fixed.get(key, one) == one for key, one in values.items())
        ]
        return fmean(alike or (logarithm for _, logarithm in self.rows))

    def decides(self, name: str) -> bool:
        """Whether a parameter is among those that decide the speed."""
        return any(name in values for values, _ in self.rows)

    def __str__(self) -> str:
        times = [1000 * math.exp(logarithm) for _, logarithm in self.rows]
        return f"{len(times)} networks take {min(times):.3g} to {max(times):.3g} ms an image"


def parameters_of_speed(space: SearchSpace) -> list[str]:
    """The parameters that decide the speed of a trial, as many as give `MOST_TIMED` combinations."""
    named = [
        spec.name
        for spec in space.parameters
        if spec.kind in {"choice", "int"}
        and (spec.name in _FIRST or (decides_the_network(spec.name) and spec.name not in _OF_NO_SPEED))
    ]
    chosen: list[str] = []
    for name in sorted(named, key=lambda one: _FIRST.index(one) if one in _FIRST else len(_FIRST)):
        if 0 < len(space.together([*chosen, name], whole=True)) <= MOST_TIMED:
            chosen.append(name)
    return chosen


def networks_to_time(space: SearchSpace) -> dict[str, Hyperparameters]:
    """A draw of each combination, by its key.

    What else it has is the first or the middle of what the space lists.

    Raises:
        ConfigError: there is nothing to compare.
    """
    found = space.together(parameters_of_speed(space), whole=True)
    if len(found) < 2:
        raise ConfigError(
            f"budget.unit: cost needs parameters that decide the speed of a network, such as a choice of architecture, "
            f"got none in the space {space.name}; leave it out"
        )
    drawn = {_key(values): space.draw(_Middle(values)).hyperparameters for values in found}
    return {key: parameters.model_copy(update={"weights": "none"}) for key, parameters in drawn.items()}


def _key(values: Mapping[str, Parameter]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(values.items()))


class _Middle:
    """What is given, else the first of a choice and the middle of a range."""

    def __init__(self, values: Mapping[str, Parameter]) -> None:
        self._values = values

    def categorical(self, name: str, choices: Sequence[Parameter]) -> Parameter:
        return self._values.get(name, choices[0])

    def float(self, name: str, low: float, high: float, log: bool) -> float:
        return float(self._values.get(name, math.sqrt(low * high) if log else (low + high) / 2))

    def int(self, name: str, low: int, high: int) -> int:
        return int(self._values.get(name, (low + high) // 2))
