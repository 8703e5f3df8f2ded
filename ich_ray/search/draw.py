"""A checked search space, and one typed draw from it.

Knows nothing of files (space.py reads and checks them) nor of how values are chosen: `SearchSpace.draw` asks a
`Suggest`, which may be Optuna, a seeded random generator or a given set of values.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeGuard

from pydantic import BaseModel, ConfigDict, Field

from ich_ray.model.hyperparameters import Hyperparameters

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ich_ray.results import Objective, Parameter

__all__ = [
    "KINDS",
    "TRY_DRAWS",
    "Budget",
    "Draw",
    "Given",
    "Kind",
    "Listed",
    "ParameterSpec",
    "RandomSuggest",
    "SearchSpace",
    "Suggest",
    "is_integer",
    "is_number",
    "same",
    "sampled",
]

Kind = Literal["choice", "uniform", "loguniform", "int", "fixed"]
KINDS: tuple[Kind, ...] = ("choice", "uniform", "loguniform", "int", "fixed")


# Enough to meet every branch of a conditional space of ordinary size; together they cost about a millisecond.
TRY_DRAWS = 64


class Suggest(Protocol):
    """Chooses a value where the space leaves a choice."""

    def categorical(self, name: str, choices: Sequence[Parameter]) -> Parameter: ...

    def float(self, name: str, low: float, high: float, log: bool) -> float: ...

    def int(self, name: str, low: int, high: int) -> int: ...


class RandomSuggest:
    """Independent uniform draws."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def categorical(self, name: str, choices: Sequence[Parameter]) -> Parameter:  # noqa: ARG002  (Suggest)
        return self._random.choice(choices)

    def float(self, name: str, low: float, high: float, log: bool) -> float:  # noqa: ARG002  (Suggest)
        if not log:
            return self._random.uniform(low, high)
        return min(max(math.exp(self._random.uniform(math.log(low), math.log(high))), low), high)

    def int(self, name: str, low: int, high: int) -> int:  # noqa: ARG002  (Suggest)
        return self._random.randint(low, high)


class Given:
    """Values that are there already, such as those of a trial in a ledger.

    Raises:
        LookupError: from each method, where the space asks for a value that is missing or outside it.
    """

    def __init__(self, values: Mapping[str, Parameter]) -> None:
        self._values = values

    def categorical(self, name: str, choices: Sequence[Parameter]) -> Parameter:
        return self._found(name, any(same(self._values.get(name), choice) for choice in choices))

    def float(self, name: str, low: float, high: float, log: bool) -> float:  # noqa: ARG002  (Suggest)
        value = self._values.get(name)
        return float(self._found(name, is_number(value) and low <= value <= high))

    def int(self, name: str, low: int, high: int) -> int:
        value = self._values.get(name)
        return int(self._found(name, is_integer(value) and low <= value <= high))

    def _found(self, name: str, inside: bool) -> Parameter:
        if not inside:
            raise LookupError(name)
        return self._values[name]


class Listed(NamedTuple):
    """A trial to be run as it stands: its parameters, and in a confirmation which trial it repeats on which fold."""

    parameters: Mapping[str, Parameter]
    repeats: int | None = None
    fold: int | None = None


class Draw(NamedTuple):
    """The active parameters of one trial, and the same with the defaults of all others."""

    parameters: dict[str, Parameter]
    hyperparameters: Hyperparameters


class Budget(BaseModel):
    """How long a trial trains and when it may be stopped, in training images.

    Attributes:
        images: of a trial that is never stopped.
        report_every: between two measurements on the validation patients.
        first_rung: the first comparison with the other trials; equal to `images` for no early stopping.
        reduction: a trial goes on past a rung if it is among the best 1/reduction; rungs are this factor apart.
        min_peers: other trials that must have reached a rung before it may stop anyone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    images: int = Field(gt=0)
    report_every: int = Field(gt=0)
    first_rung: int = Field(gt=0)
    reduction: int = Field(default=3, ge=2)
    min_peers: int = Field(default=3, ge=1)

    def rungs(self) -> list[int]:
        """images_seen of every comparison: first_rung, then `reduction` times as many each, below the budget."""

        def levels() -> Iterator[int]:
            level = self.first_rung
            while True:
                yield level
                level *= self.reduction

        return list(takewhile(lambda level: level < self.images, levels()))


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter: how it is drawn, and under which values of others it exists."""

    name: str
    kind: Kind
    values: tuple[Parameter, ...]
    when: Mapping[str, tuple[Parameter, ...]]

    def draw(self, suggest: Suggest) -> Parameter:
        if self.kind == "choice":
            return suggest.categorical(self.name, self.values)
        if self.kind == "fixed":
            return self.values[0]
        low, high = self.values
        if self.kind == "int":
            return suggest.int(self.name, int(low), int(high))
        return suggest.float(self.name, float(low), float(high), self.kind == "loguniform")

    def allows(self, value: object) -> bool:
        if self.kind in {"choice", "fixed"}:
            return any(same(value, one) for one in self.values)
        fits = is_integer(value) if self.kind == "int" else is_number(value)
        return fits and self.values[0] <= value <= self.values[1]  # type: ignore[operator]

    def active(self, drawn: Mapping[str, Parameter]) -> bool:
        return all(
            name in drawn and any(same(drawn[name], value) for value in values) for name, values in self.when.items()
        )

    def said(self) -> str:
        return f"{self.kind} {list(self.values)}"


@dataclass(frozen=True)
class SearchSpace:
    """A checked space.

    Attributes:
        parameters: in an order in which every condition is decided before what depends on it.
        points: tried first; a point may leave parameters to the draw.
        source: the file's content, as written.
        listed: the trials of a grid or of a list of candidates, as they are run, when there are no others; else None.
    """

    name: str
    objective: Objective
    budget: Budget
    parameters: tuple[ParameterSpec, ...]
    points: tuple[dict[str, Parameter], ...]
    source: dict[str, Any]
    listed: tuple[dict[str, Parameter], ...] | None = None

    def draw(self, suggest: Suggest) -> Draw:
        """One trial's parameters, each from `suggest` where the space leaves a choice."""
        drawn: dict[str, Parameter] = {}
        for spec in self.parameters:
            if spec.active(drawn):
                drawn[spec.name] = spec.draw(suggest)
        return Draw(drawn, Hyperparameters.model_validate(drawn))

    def rungs(self) -> list[int]:
        """images_seen at which trials are compared."""
        return self.budget.rungs()


def sampled(space: SearchSpace, draws: int = TRY_DRAWS) -> list[Hyperparameters]:
    """Trials of a space: all that are listed, or else random draws."""
    if space.listed is not None:
        return [Hyperparameters.model_validate(parameters) for parameters in space.listed]
    suggest = RandomSuggest(seed=0)
    return [space.draw(suggest).hyperparameters for _ in range(draws)]


def same(one: object, other: object) -> bool:
    """Equal and of the same kind: 1 is 1.0 but not True."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
