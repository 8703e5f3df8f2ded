"""Search space files: YAML in, a checked `SearchSpace` out.

Everything that can be wrong with a space is found here, before anything starts, so that no trial ever meets it. What
holds for one parameter alone is in parameters.py, how a space is drawn from in draw.py.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ich_ray.errors import SpaceError, nearest
from ich_ray.results import Objective, Parameter
from ich_ray.search.draw import TRY_DRAWS, Budget, ParameterSpec, RandomSuggest, SearchSpace
from ich_ray.search.listed import MOST_COMBINATIONS, candidate_specs, combinations, completed, in_order
from ich_ray.search.parameters import ParameterRules
from ich_ray.storage import Location, locate

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SearchSpace", "load_space", "parse_space"]

DIRECTIONS: dict[str, Literal["max", "min"]] = {
    "average_precision": "max",
    "roc_auc": "max",
    "f2": "max",
    "log_loss": "min",
}


def load_space(path: Location) -> SearchSpace:
    """Read and check a search space.

    Raises:
        SpaceError: `file.yaml: key: rule, got ..., what next`.
    """
    where = locate(path)
    try:
        text = where.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpaceError(f"{where}: a search space must be a readable YAML file, got {_first_line(error)}") from None
    try:
        source = yaml.load(text, Loader=_StrictLoader)  # noqa: S506  (a SafeLoader)
    except yaml.YAMLError as error:
        raise SpaceError(f"{where.name}: must be YAML, got {_yaml_problem(error)}") from None
    return parse_space(source, where.name)


def parse_space(source: Any, file: str) -> SearchSpace:
    """Check a space that has been read already; `file` names it in errors.

    Raises:
        SpaceError: `file.yaml: key: rule, got ..., what next`.
    """
    return _Checker(file).space(source)


class _StrictLoader(yaml.SafeLoader):
    """YAML without its two traps: a repeated key is an error, and `1e-3` is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_StrictLoader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


class _File(BaseModel):
    """The keys of the file; what the parameters mean is checked after."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[\w.-]+$")]
    objective: Objective = Objective()
    budget: Budget
    parameters: Annotated[dict[str, Any], Field(min_length=1)] | None = None
    sampler: Literal["tpe", "grid"] = "tpe"
    points: list[dict[str, Any]] = []
    candidates: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None


class _Checker(ParameterRules):
    """Every rule of a space file, with the file's name for the messages."""

    def space(self, source: Any) -> SearchSpace:
        if not isinstance(source, dict):
            raise self.error("", f"must be a mapping with name, budget and parameters, got {_kind_of(source)}")
        try:
            file = _File.model_validate(source)
        except ValidationError as error:
            raise self._structure(error) from None
        self._objective(file.objective)
        self._budget(file.budget)
        if file.candidates is not None:
            return self._candidates(file, file.candidates, source)
        if file.parameters is None:
            raise self.error("parameters", "must be given, got nothing; add it, or candidates")
        specs = {name: self.parameter(name, spec) for name, spec in file.parameters.items()}
        for spec in specs.values():
            self._condition(spec, specs)
        ordered = self._order(specs)
        points = tuple(self._point(index, point, specs) for index, point in enumerate(file.points))
        listed = self._grid(ordered, points) if file.sampler == "grid" else None
        space = SearchSpace(file.name, file.objective, file.budget, ordered, points, source, listed)
        self._try_draws(space)
        return space

    def _candidates(self, file: _File, written: list[dict[str, Any]], source: dict[str, Any]) -> SearchSpace:
        """A space that is a list: its values are checked one by one, as there is nothing to draw."""
        others = {"parameters": file.parameters, "points": file.points, "sampler": file.sampler != "tpe"}
        for key, other in others.items():
            if other:
                raise self.error(key, f"{key} or candidates must be given, got both; remove one")
        for index, candidate in enumerate(written):
            self._candidate(f"candidates[{index}]", candidate)
        whole = completed(written)
        for index, candidate in enumerate(whole):
            self.whole(f"candidates[{index}]", candidate, file.budget)
            if (first := whole.index(candidate)) < index:
                raise self.error(
                    f"candidates[{index}]", f"every candidate must be listed once, got candidates[{first}] again"
                )
        return SearchSpace(file.name, file.objective, file.budget, candidate_specs(whole), (), source, tuple(whole))

    def _candidate(self, key: str, candidate: dict[str, Any]) -> None:
        if not candidate:
            raise self.error(key, "must name at least one parameter, got none; remove it")
        for name, value in candidate.items():
            self.known(key, name)
            try:
                self.accepted(name, self.scalar(name, value))
            except SpaceError as error:
                raise self.error(key, str(error).removeprefix(f"{self.file}: ")) from None
        self.read_by_its_architecture(key, candidate)

    def _grid(
        self, specs: tuple[ParameterSpec, ...], points: tuple[dict[str, Parameter], ...]
    ) -> tuple[dict[str, Parameter], ...]:
        """All combinations, counted before anything starts."""
        for spec in specs:
            if spec.kind in {"uniform", "loguniform"}:
                raise self.error(
                    spec.name, f"a grid needs choice, int or fixed, got {spec.kind}; list the values as a choice"
                )
        grid = tuple(islice(combinations(specs), MOST_COMBINATIONS + 1))
        if len(grid) > MOST_COMBINATIONS:
            raise self.error(
                "parameters",
                f"a grid must have at most {MOST_COMBINATIONS:,} combinations, got more; list fewer values or leave "
                "out sampler: grid",
            )
        for index, point in enumerate(points):
            if point not in grid:
                raise self.error(
                    f"points[{index}]", f"must be one whole combination of the grid, got {point}; give every parameter"
                )
        return in_order(grid, points)

    def _structure(self, error: ValidationError) -> SpaceError:
        """The first problem of pydantic's, in the words of the other rules."""
        problems = error.errors()
        # A misspelt key is missing and unknown at once; the second says more.
        problem = next((found for found in problems if found["type"] == "extra_forbidden"), problems[0])
        *outer, key = problem["loc"]
        where = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            models: dict[tuple[int | str, ...], type[BaseModel]] = {
                (): _File,
                ("budget",): Budget,
                ("objective",): Objective,
            }
            known = list(models[tuple(outer)].model_fields)
            return self.error(
                where, f"the key must be one of {', '.join(known)}, got {key!r}{nearest(str(key), known)}"
            )
        if problem["type"] == "missing":
            return self.error(where, "must be given, got nothing; add it")
        rule = problem["msg"][0].lower() + problem["msg"][1:]
        return self.error(where, f"{rule}, got {problem['input']!r}")

    def _objective(self, objective: Objective) -> None:
        if objective.metric not in DIRECTIONS:
            known = ", ".join(DIRECTIONS)
            got = f"got {objective.metric!r}{nearest(objective.metric, DIRECTIONS)}"
            raise self.error("objective.metric", f"must be one of {known}, {got}")
        if objective.mode != DIRECTIONS[objective.metric]:
            better = DIRECTIONS[objective.metric]
            raise self.error(
                "objective.mode",
                f"{objective.metric} is better at its {better}, got {objective.mode!r}; write {better}",
            )

    def _budget(self, budget: Budget) -> None:
        if budget.first_rung > budget.images:
            raise self.error(
                "budget.first_rung",
                f"first_rung <= images must hold, got first_rung={budget.first_rung}, images={budget.images}; "
                "lower first_rung or raise images",
            )
        for key, images in (("first_rung", budget.first_rung), ("images", budget.images)):
            if images % budget.report_every:
                raise self.error(
                    f"budget.{key}",
                    f"must be a multiple of report_every, so that rungs fall on reports, got {key}={images}, "
                    f"report_every={budget.report_every}; use {_multiple(images, budget.report_every)}",
                )

    def _condition(self, spec: ParameterSpec, specs: Mapping[str, ParameterSpec]) -> None:
        for parent, values in spec.when.items():
            if parent not in specs:
                raise self.error(
                    spec.name, f"when must name a parameter of this space, got {parent!r}{nearest(parent, specs)}"
                )
            if specs[parent].kind in {"uniform", "loguniform"}:
                raise self.error(
                    spec.name, f"when must name a choice, int or fixed parameter, got {parent} ({specs[parent].kind})"
                )
            if not values:
                raise self.error(spec.name, f"when {parent} must list at least one value, got none")
            for value in values:
                if not specs[parent].allows(value):
                    raise self.error(
                        spec.name,
                        f"when {parent} must be a value it can take ({specs[parent].said()}), got {value!r}"
                        + (nearest(value, map(str, specs[parent].values)) if isinstance(value, str) else ""),
                    )

    def _order(self, specs: Mapping[str, ParameterSpec]) -> tuple[ParameterSpec, ...]:
        """Parents before children, else as written."""
        ordered: dict[str, ParameterSpec] = {}
        while len(ordered) < len(specs):
            ready = [spec for name, spec in specs.items() if name not in ordered and spec.when.keys() <= ordered.keys()]
            if not ready:
                stuck = ", ".join(name for name in specs if name not in ordered)
                raise self.error("parameters", f"conditions must not form a circle, got one among {stuck}; break it")
            ordered |= {spec.name: spec for spec in ready}
        return tuple(ordered.values())

    def _point(self, index: int, point: dict[str, Any], specs: Mapping[str, ParameterSpec]) -> dict[str, Parameter]:
        key = f"points[{index}]"
        for name, value in point.items():
            if name not in specs:
                raise self.error(key, f"must use parameters of this space, got {name!r}{nearest(str(name), specs)}")
            if not specs[name].allows(value):
                raise self.error(key, f"{name} must lie in the space ({specs[name].said()}), got {value!r}")
        known = point | {name: spec.values[0] for name, spec in specs.items() if spec.kind == "fixed"}
        for name in point:
            if not specs[name].active(known):
                needed = ", ".join(f"{parent}={' or '.join(map(str, v))}" for parent, v in specs[name].when.items())
                raise self.error(key, f"{name} exists only when {needed}, got another value or none; add or remove it")
        return dict(point)

    def _try_draws(self, space: SearchSpace) -> None:
        suggest = RandomSuggest(seed=0)
        for _ in range(TRY_DRAWS):
            drawn: dict[str, Parameter] = {}
            for spec in space.parameters:
                if spec.active(drawn):
                    drawn[spec.name] = spec.draw(suggest)
            self.read_by_its_architecture("parameters", drawn)
            self.whole("parameters", drawn, space.budget)


def _multiple(images: int, report_every: int) -> int:
    return max(1, round(images / report_every)) * report_every


def _kind_of(source: object) -> str:
    return "an empty file" if source is None else f"a {type(source).__name__}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or _first_line(error)
    return f"{problem} in line {mark.line + 1}" if mark else str(problem)
