"""Searches whose trials are known beforehand: every combination of a grid, or a list of candidates.

Knows what makes such a list one that can be run, nothing of Optuna; the other rules of a space are in yaml_file.py.
"""

from __future__ import annotations

import random
from itertools import islice
from typing import TYPE_CHECKING, Any

from ich_ray.errors import SpaceError
from ich_ray.search.space.parameter_sets import NETWORKS
from ich_ray.search.space.rules import ParameterRules
from ich_ray.search.space.space import MOST_COMBINATIONS, ParameterSpec, combinations, same

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ich_ray.search.space.parameter_sets import ParameterSet
    from ich_ray.search.space.space import Budget
    from ich_ray.trial_records import Parameter

__all__ = ["ListRules", "candidate_specs", "completed", "in_order"]


class ListRules(ParameterRules):
    """Checks trials that are listed; every method raises a SpaceError that names file and key."""

    def candidates(self, written: list[dict[str, Any]], budget: Budget) -> tuple[dict[str, Parameter], ...]:
        """A space that is a list: its values are checked one by one, as there is nothing to draw."""
        for index, candidate in enumerate(written):
            self._candidate(f"candidates[{index}]", candidate)
        whole = completed(written, self.drawn)
        for index, candidate in enumerate(whole):
            key = f"candidates[{index}]"
            self.whole(key, candidate, budget)
            self.holds(key, self.drawn.unmade(candidate))
            self._once(key, candidate, whole, "candidate")
        return tuple(whole)

    def _candidate(self, key: str, candidate: dict[str, Any]) -> None:
        if not candidate:
            raise self.error(key, "must name at least one parameter, got none; remove it")
        for name, value in candidate.items():
            self.known(key, name)
            try:
                self.accepted(name, self.scalar(name, value))
            except SpaceError as error:
                raise self.error(key, str(error).removeprefix(f"{self.file}: ")) from None
        self.holds(key, self.drawn.unread(candidate))

    def grid(
        self, specs: tuple[ParameterSpec, ...], points: tuple[dict[str, Parameter], ...]
    ) -> tuple[dict[str, Parameter], ...]:
        """All combinations, counted before anything starts."""
        for spec in specs:
            if spec.kind in {"uniform", "loguniform"}:
                raise self.error(
                    spec.name, f"a grid needs choice, int or fixed, got {spec.kind}; list the values as a choice"
                )
            if spec.prior is not None:
                raise self.error(
                    spec.name,
                    "a grid tries every value, so that no prior counts, got one; remove it, or list points",
                )
        grid = tuple(islice(combinations(specs), MOST_COMBINATIONS + 1))
        if len(grid) > MOST_COMBINATIONS:
            raise self.error(
                "parameters",
                f"a grid must have at most {MOST_COMBINATIONS:,} combinations, got more; list fewer values or leave "
                "out sampler: grid",
            )
        for index, point in enumerate(points):
            key = f"points[{index}]"
            if point not in grid:
                raise self.error(key, f"must be one whole combination of the grid, got {point}; give every parameter")
            self._once(key, point, points, "point of a grid")
        return in_order(grid, points)

    def _once(self, key: str, one: dict[str, Parameter], among: Sequence[dict[str, Parameter]], what: str) -> None:
        """`key` is where `one` stands, such as points[3]."""
        name, place = key.rstrip("]").split("[")
        if (first := among.index(one)) < int(place):
            raise self.error(key, f"every {what} must be listed once, got {name}[{first}] again; remove one")


def completed(
    candidates: Sequence[Mapping[str, Parameter]], drawn: ParameterSet = NETWORKS
) -> list[dict[str, Parameter]]:
    """Complete each candidate with defaults for what only others name."""
    names = dict.fromkeys(name for candidate in candidates for name in candidate)
    defaults = {name: field.default for name, field in drawn.fields().items()}
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
    """A grid in running order: its points, then the rest in one fixed random order.

    Any beginning of it covers the whole grid.
    """
    rest = [one for one in grid if one not in points]
    random.Random(0).shuffle(rest)
    return (*points, *rest)
