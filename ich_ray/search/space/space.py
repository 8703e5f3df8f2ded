"""A checked search space, and one typed draw from it.

Knows nothing of files (yaml_file.py reads and checks them) nor of how values are chosen: `SearchSpace.draw` asks a
`Suggest`, which may be Optuna, a seeded random generator or a given set of values.
"""

from __future__ import annotations

import math
import random
import sys
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeGuard

from pydantic import BaseModel, ConfigDict, Field

from ich_ray.search.space.constraints import Constraints
from ich_ray.search.space.parameter_sets import NETWORKS
from ich_ray.storage import Line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.search.space.parameter_sets import ParameterSet
    from ich_ray.trial_records import Objective, Parameter

__all__ = [
    "KINDS",
    "MOST_COMBINATIONS",
    "TRY_DRAWS",
    "Budget",
    "Draw",
    "Given",
    "Kind",
    "Listed",
    "ParameterSpec",
    "Prior",
    "RandomSuggest",
    "SearchSpace",
    "Suggest",
    "combinations",
    "is_integer",
    "is_number",
    "same",
    "sampled",
]

Kind = Literal["choice", "uniform", "loguniform", "int", "fixed"]
KINDS: tuple[Kind, ...] = ("choice", "uniform", "loguniform", "int", "fixed")


# Enough to meet every branch of a conditional space of ordinary size; together they cost about a millisecond.
TRY_DRAWS = 64

# More is a mistake in the file: a year of one-minute trials has 525,600 minutes, and nobody means that.
MOST_COMBINATIONS = 10_000


class Suggest(Protocol):
    """Chooses a value where the space leaves a choice."""

    def categorical(self, name: str, choices: Sequence[Parameter]) -> Parameter: ...

    def float(self, name: str, low: float, high: float, log: bool) -> float: ...

    def int(self, name: str, low: int, high: int) -> int: ...


class RandomSuggest:
    """Independent uniform draws of what a point, if there is one, leaves open."""

    def __init__(self, seed: int, point: Mapping[str, Parameter] | None = None) -> None:
        self._random, self._point = random.Random(seed), point or {}

    def categorical(self, name: str, choices: Sequence[Parameter]) -> Parameter:
        return self._point.get(name, self._random.choice(choices))

    def float(self, name: str, low: float, high: float, log: bool) -> float:
        return float(self._point.get(name, _between(self._random, low, high, log)))

    def int(self, name: str, low: int, high: int) -> int:
        return int(self._point.get(name, self._random.randint(low, high)))


def _between(source: random.Random, low: float, high: float, log: bool) -> float:
    if not log:
        return source.uniform(low, high)
    return min(max(math.exp(source.uniform(math.log(low), math.log(high))), low), high)


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
    """A listed trial: its parameters, and in a confirmation which trial it repeats on which fold."""

    parameters: Mapping[str, Parameter]
    repeats: int | None = None
    fold: int | None = None


class Draw(NamedTuple):
    """The active parameters of one trial, and the same with the defaults of all others."""

    parameters: dict[str, Parameter]
    hyperparameters: Any


class Budget(BaseModel):
    """How long a trial trains and when it may be stopped, in training images.

    Attributes:
        images: of a trial that is never stopped; with folds, of each of its networks.
        report_every: between two measurements on the validation patients.
        first_rung: the first comparison with the other trials; equal to `images` for no early stopping.
        reduction: a trial goes on past a rung if it is among the best 1/reduction; rungs are this factor apart.
        min_peers: other trials that must have reached a rung before it may stop anyone.
        rule: the name of a registered stopping rule.
        hedge: the share of the trials that the first rung does not stop: what learns slowly at first may win.
        unit: `cost` weighs what is drawn by the seconds that an image of it takes; rungs count images all the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    images: int = Field(gt=0)
    report_every: int = Field(gt=0)
    first_rung: int = Field(gt=0)
    reduction: int = Field(default=3, ge=2)
    min_peers: int = Field(default=3, ge=1)
    rule: Line = "asha"
    hedge: float = Field(default=0.0, ge=0, le=0.5)
    unit: Literal["images", "cost"] = "images"

    def hedged(self, number: int) -> bool:
        """Whether the first rung spares a trial: evenly by number, so that it follows from the ledger."""
        return math.floor((number + 1) * self.hedge) > math.floor(number * self.hedge)

    def rungs(self, networks: int = 1) -> list[int]:
        """images_seen of every comparison: first_rung, then `reduction` times as many each, below the budget.

        Where a trial trains several networks, then at the end of each but the last.
        """

        def levels() -> Iterator[int]:
            level = self.first_rung
            while True:
                yield level
                level *= self.reduction

        within = takewhile(lambda level: level < self.images, levels())
        return [*within, *(self.images * ended for ended in range(1, networks))]


class Prior(NamedTuple):
    """What is believed of a parameter.

    Attributes:
        value: the likeliest one.
        spread: of a choice the probability of `value`; of a range the width of the band around it, in units or, of
            loguniform, decades, that holds two thirds of what is drawn.
    """

    value: Parameter
    spread: float


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter: how it is drawn, under which values of others it exists, and what is believed of it."""

    name: str
    kind: Kind
    values: tuple[Parameter, ...]
    when: Mapping[str, tuple[Parameter, ...]]
    prior: Prior | None = None

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

    def describe(self) -> str:
        return f"{self.kind} {list(self.values)}"


@dataclass(frozen=True)
class SearchSpace:
    """A checked space.

    Attributes:
        parameters: in an order in which every condition is decided before what depends on it.
        points: tried first; a point may leave parameters to the draw.
        source: the file's content, as written.
        listed: the trials of a grid or of a list of candidates, as they are run, when there are no others; else None.
        drawn: what its parameters are of.
        constraints: what no trial may exceed.
    """

    name: str
    objective: Objective
    budget: Budget
    parameters: tuple[ParameterSpec, ...]
    points: tuple[dict[str, Parameter], ...]
    source: dict[str, Any]
    listed: tuple[dict[str, Parameter], ...] | None = None
    drawn: ParameterSet = NETWORKS
    constraints: Constraints = field(default_factory=Constraints)

    def draw(self, suggest: Suggest) -> Draw:
        """One trial's parameters, each from `suggest` where the space leaves a choice."""
        drawn = self.values(suggest)
        return Draw(drawn, self.drawn.made(drawn))

    def values(self, suggest: Suggest) -> dict[str, Parameter]:
        """The same, though nobody has seen whether the model accepts them together."""
        drawn: dict[str, Parameter] = {}
        for spec in self.parameters:
            if spec.active(drawn):
                drawn[spec.name] = spec.draw(suggest)
        return drawn

    def together(self, names: Iterable[str], *, whole: bool = False) -> list[dict[str, Parameter]]:
        """All that `names` can be in one trial, beside the parameters that decide whether they exist.

        Of ranges with too many values only the ends, unless they are wanted `whole`; empty if there are too many
        combinations even so.
        """
        wanted = set(names)
        for spec in reversed(self.parameters):
            if spec.name in wanted:
                wanted |= spec.when.keys()
        specs = [spec for spec in self.parameters if spec.name in wanted]
        for ends in (False,) if whole else (False, True):
            found = list(islice(combinations(specs, ends=ends), MOST_COMBINATIONS + 1))
            if len(found) <= MOST_COMBINATIONS:
                return found
        return []

    def rungs(self) -> list[int]:
        """images_seen at which trials are compared."""
        return self.budget.rungs(self.objective.networks)

    def images_of(self, drawn: Mapping[str, Parameter]) -> int:
        """At which a trial that is never stopped has ended, all its networks counted.

        Raises:
            ValidationError: of pydantic's, the model does not accept its parameters.
        """
        return self.drawn.images_of(drawn, self.budget.images) * self.objective.networks

    def with_objective(self, objective: Objective) -> SearchSpace:
        """The same, with `folds: auto` decided."""
        return replace(self, objective=objective)


def sampled(space: SearchSpace, draws: int = TRY_DRAWS) -> list[Hyperparameters]:
    """Networks of a space: all that are listed, or else whatever may not fit a dataset, and random draws."""
    if space.listed is not None:
        return [space.drawn.made(parameters) for parameters in space.listed]
    suggest = RandomSuggest(seed=0)
    meets = [spec.name for spec in space.parameters if space.drawn.meets_the_dataset(spec.name)]
    drawn = [*space.together(meets), *(space.values(suggest) for _ in range(draws))]
    return [space.drawn.made(parameters) for parameters in drawn]


def combinations(
    specs: Sequence[ParameterSpec], drawn: Mapping[str, Parameter] | None = None, *, ends: bool = False
) -> Iterator[dict[str, Parameter]]:
    """Every combination of the values of `specs`, which are ordered parents first, conditions respected.

    Of what is drawn from an interval the lowest and the highest; with `ends` of integers, too.
    """
    drawn = drawn or {}
    if not specs:
        yield dict(drawn)
        return
    first, *rest = specs
    if not first.active(drawn):
        yield from combinations(rest, drawn, ends=ends)
        return
    values: Sequence[Parameter] = first.values
    if first.kind == "int" and not ends:
        low, high = first.values
        values = range(int(low), int(high) + 1)
    for value in values:
        yield from combinations(rest, {**drawn, first.name: value}, ends=ends)


def same(one: object, other: object) -> bool:
    """Equal and of the same kind: 1 is 1.0 but not True."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Finite, and not an integer of hundreds of digits, which no float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and is_number(value)
