"""Search space files: YAML in, a checked `SearchSpace` out.

Everything that can be wrong with a space is found here, before anything starts, so that no trial ever meets it. How a
space is drawn from is in draw.py.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ich_ray.errors import SpaceError, nearest
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.results import Objective, Parameter
from ich_ray.search.draw import (
    KINDS,
    Budget,
    Kind,
    ParameterSpec,
    RandomSuggest,
    SearchSpace,
    is_integer,
    is_number,
    same,
)
from ich_ray.storage import Location, locate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["SearchSpace", "load_space", "parse_space"]

DIRECTIONS: dict[str, Literal["max", "min"]] = {
    "average_precision": "max",
    "roc_auc": "max",
    "f2": "max",
    "log_loss": "min",
}
# Enough to meet every branch of a conditional space of ordinary size; together they cost about a millisecond.
_TRY_DRAWS = 64


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
    parameters: Annotated[dict[str, Any], Field(min_length=1)]
    points: list[dict[str, Any]] = []


class _Checker:
    """Every rule of a space file, with the file's name for the messages."""

    def __init__(self, file: str) -> None:
        self.file = file

    def error(self, key: str, message: str) -> SpaceError:
        return SpaceError(f"{self.file}: {key}: {message}" if key else f"{self.file}: {message}")

    def space(self, source: Any) -> SearchSpace:
        if not isinstance(source, dict):
            raise self.error("", f"must be a mapping with name, budget and parameters, got {_kind_of(source)}")
        try:
            file = _File.model_validate(source)
        except ValidationError as error:
            raise self._structure(error) from None
        self._objective(file.objective)
        self._budget(file.budget)
        specs = {name: self._parameter(name, spec) for name, spec in file.parameters.items()}
        for spec in specs.values():
            self._condition(spec, specs)
        ordered = self._order(specs)
        points = tuple(self._point(index, point, specs) for index, point in enumerate(file.points))
        space = SearchSpace(file.name, file.objective, file.budget, ordered, points, source)
        self._try_draws(space)
        return space

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

    def _parameter(self, name: str, written: Any) -> ParameterSpec:
        known = Hyperparameters.model_fields
        if name not in known:
            raise self.error(
                name, f"must be a parameter of the model, got {name!r}{nearest(name, known)}; known: {', '.join(known)}"
            )
        body = dict(written) if isinstance(written, dict) else {"fixed": written}
        when = self._when(name, body.pop("when", {}))
        for key in body:
            if key not in KINDS:
                allowed = ", ".join((*KINDS, "when"))
                raise self.error(name, f"the key must be one of {allowed}, got {key!r}{nearest(str(key), KINDS)}")
        if len(body) != 1:
            raise self.error(name, f"exactly one of {', '.join(KINDS)} must be given, got {list(body) or 'none'}")
        kind = next(kind for kind in KINDS if kind in body)
        return ParameterSpec(name, kind, self._values(name, kind, body[kind]), when)

    def _values(self, name: str, kind: Kind, value: Any) -> tuple[Parameter, ...]:
        if kind == "choice":
            values = self._choices(name, value)
        elif kind == "fixed":
            values = (self._scalar(name, value),)
        else:
            values = self._range(name, kind, value)
        for one in values:
            self._accepted(name, one)
        return values

    def _choices(self, name: str, value: Any) -> tuple[Parameter, ...]:
        if not isinstance(value, list) or not value:
            raise self.error(
                name, f"choice must be a list of at least one value, got {value!r}; list the values to try"
            )
        values = tuple(self._scalar(name, one) for one in value)
        for index, one in enumerate(values):
            if any(same(one, earlier) for earlier in values[:index]):
                raise self.error(name, f"every choice must be listed once, got {one!r} twice; remove one")
        return values

    def _scalar(self, name: str, value: Any) -> Parameter:
        if isinstance(value, bool | str) or is_number(value):
            return value
        raise self.error(name, f"a value must be text, a finite number, true or false, got {value!r}")

    def _range(self, name: str, kind: Kind, value: Any) -> tuple[Parameter, ...]:
        is_right: Callable[[object], bool] = is_integer if kind == "int" else is_number
        if not isinstance(value, list) or len(value) != 2 or not all(map(is_right, value)):
            what = "integers" if kind == "int" else "finite numbers"
            raise self.error(name, f"{kind} must be [low, high], two {what}, got {value!r}")
        low, high = value if kind == "int" else map(float, value)
        if low >= high:
            raise self.error(
                name, f"low < high must hold, got low={low}, high={high}; swap them, or use fixed for one value"
            )
        if kind == "loguniform" and low <= 0:
            raise self.error(name, f"low > 0 must hold for loguniform, got low={low}; raise it, or use uniform")
        return (low, high)

    def _accepted(self, name: str, value: Parameter) -> None:
        """A value that the model refuses is refused here, before any trial draws it."""
        try:
            Hyperparameters.model_validate({name: value}, strict=True)
        except ValidationError as error:
            for problem in error.errors():
                if problem["loc"][:1] == (name,):
                    rule = problem["msg"][0].lower() + problem["msg"][1:]
                    guess = nearest(value, _literals(name)) if isinstance(value, str) else ""
                    raise self.error(name, f"{rule}, got {value!r}{guess}") from None

    def _when(self, name: str, written: Any) -> dict[str, tuple[Parameter, ...]]:
        if not isinstance(written, dict):
            raise self.error(name, f"when must be a mapping of parameter to value or list of values, got {written!r}")
        return {
            str(parent): tuple(self._scalar(name, one) for one in (values if isinstance(values, list) else [values]))
            for parent, values in written.items()
        }

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
        for _ in range(_TRY_DRAWS):
            try:
                space.draw(suggest)
            except ValidationError as error:
                problem = error.errors()[0]
                raise self.error(
                    "parameters",
                    f"every draw must be a trial the model accepts: {problem['msg']}, got {problem['input']}",
                ) from None


def _multiple(images: int, report_every: int) -> int:
    return max(1, round(images / report_every)) * report_every


def _literals(name: str) -> list[str]:
    annotation = Hyperparameters.model_fields[name].annotation
    return [str(value) for value in getattr(annotation, "__args__", ())]


def _kind_of(source: object) -> str:
    return "an empty file" if source is None else f"a {type(source).__name__}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or _first_line(error)
    return f"{problem} in line {mark.line + 1}" if mark else str(problem)
