"""Searches whose trials are known beforehand: every combination of a grid, or a list of candidates.

Knows specifications of parameters, nothing of files or of Optuna: space.py checks what was written and names the file.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.search.draw import ParameterSpec, same

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ich_ray.results import Parameter

__all__ = ["MOST_COMBINATIONS", "candidate_specs", "combinations", "completed", "in_order"]

# More is a mistake in the file: a year of one-minute trials has 525,600 minutes, and nobody means that.
MOST_COMBINATIONS = 10_000


def combinations(
    specs: Sequence[ParameterSpec], drawn: Mapping[str, Parameter] | None = None
) -> Iterator[dict[str, Parameter]]:
    """Every combination of the values of `specs`, which are ordered parents first, conditions respected."""
    drawn = drawn or {}
    if not specs:
        yield dict(drawn)
        return
    first, *rest = specs
    if not first.active(drawn):
        yield from combinations(rest, drawn)
        return
    for value in _values(first):
        yield from combinations(rest, {**drawn, first.name: value})


def _values(spec: ParameterSpec) -> Sequence[Parameter]:
    if spec.kind != "int":
        return spec.values
    low, high = spec.values
    return range(int(low), int(high) + 1)


def completed(candidates: Sequence[Mapping[str, Parameter]]) -> list[dict[str, Parameter]]:
    """Each candidate with the model's default for what others name and it does not, so that all name the same."""
    names = dict.fromkeys(name for candidate in candidates for name in candidate)
    defaults = Hyperparameters().model_dump()
    return [{name: candidate.get(name, defaults[name]) for name in names} for candidate in candidates]


def candidate_specs(candidates: Sequence[Mapping[str, Parameter]]) -> tuple[ParameterSpec, ...]:
    """The space that completed candidates span: a choice of the values that occur, for each parameter."""
    specs = []
    for name in candidates[0]:
        values: list[Parameter] = []
        for candidate in candidates:
            if not any(same(candidate[name], value) for value in values):
                values.append(candidate[name])
        specs.append(ParameterSpec(name, "choice", tuple(values), {}))
    return tuple(specs)


def in_order(
    grid: Sequence[dict[str, Parameter]], points: Sequence[dict[str, Parameter]]
) -> tuple[dict[str, Parameter], ...]:
    """A grid as it is run: its points, then the rest in one fixed random order, so that any beginning covers it all."""
    rest = [one for one in grid if one not in points]
    random.Random(0).shuffle(rest)
    return (*points, *rest)
