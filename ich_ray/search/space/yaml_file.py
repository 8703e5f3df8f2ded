"""Search space files: YAML in, a checked `SearchSpace` out.

Everything that can be wrong with a space is found here, before anything starts, so that no trial ever meets it. What
holds for one parameter alone is in rules.py, of listed trials in explicit_trials.py, how a space is drawn from in
space.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ich_ray.errors import SpaceError, first_line, nearest
from ich_ray.search.space.constraints import Constraints
from ich_ray.search.space.explicit_trials import ListRules, candidate_specs
from ich_ray.search.space.parameter_sets import NETWORKS, PARAMETER_SETS, SEQUENCES, Searched
from ich_ray.search.space.space import TRY_DRAWS, Budget, ParameterSpec, RandomSuggest, SearchSpace, same
from ich_ray.search.stopping import STOPPING_RULES
from ich_ray.statistics.metrics import METRICS
from ich_ray.storage import Location, locate
from ich_ray.storage.strict_yaml import parse_yaml
from ich_ray.trial_records import Objective

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ich_ray.trial_records import Parameter

__all__ = ["SearchSpace", "SpaceFile", "check_point", "load_space", "parse_space"]

OBJECTIVES = {name: metric.better for name, metric in METRICS.items() if metric.is_objective}


def load_space(path: Location, searches: Searched | None = None) -> SearchSpace:
    """Read and check a search space.

    Args:
        path: the file.
        searches: what it must search; anything if not given.

    Raises:
        SpaceError: `file.yaml: key: rule, got ..., what next`.
    """
    where = locate(path)
    try:
        text = where.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpaceError(f"{where}: a search space must be a readable YAML file, got {first_line(error)}") from None
    try:
        source = parse_yaml(text)
    except ValueError as error:
        raise SpaceError(f"{where.name}: must be YAML, got {error}") from None
    return parse_space(source, where.name, searches)


def parse_space(source: Any, file: str, searches: Searched | None = None) -> SearchSpace:
    """Check a space that has been read already.

    Args:
        source: what its file says.
        file: names it in errors.
        searches: what it must search; anything if not given.

    Raises:
        SpaceError: `file.yaml: key: rule, got ..., what next`.
    """
    space = _Checker(file).space(source)
    if searches not in {None, space.drawn.name}:
        verb = "ich-ray sequence" if space.drawn is SEQUENCES else "ich-ray search"
        raise SpaceError(
            f"{file}: searches: must be {searches} here, got {space.drawn.name}; give it to `{verb}`, or give "
            "another space"
        )
    return space


def check_point(space: SearchSpace, point: Mapping[str, Any], named: str, seed: int) -> None:
    """Check some values of one more trial as the points of a space are checked.

    Args:
        space: that was checked before.
        point: the values.
        named: what gave them, for errors.
        seed: of the draw of those that it leaves out.

    Raises:
        SpaceError: they are not in the space, or no trial can have them together.
    """
    checker = _Checker(named)
    checker.drawn = space.drawn
    values = checker.point("", point, space.parameters)
    checker.met("", space.values(RandomSuggest(seed, values)), space)


class SpaceFile(BaseModel):
    """The keys of the file; what the parameters mean is checked after.

    Attributes:
        name: of the space; letters, digits, dots, hyphens and underscores.
        objective: what is optimized, and on which patients.
        budget: how long a trial trains, and when it may be stopped.
        parameters: what is drawn, by name; or `candidates`.
        sampler: `tpe` draws with Optuna; `grid` takes every combination of choices.
        points: draws to begin with: values of some parameters, the others are drawn.
        candidates: the trials themselves, one after the other, in place of `parameters`.
        searches: what the parameters are of: a `network`, or a model over the slices of a series (`sequence`).
        constraints: limits that a network must keep before it is trained.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[\w.-]+$")]
    objective: Objective = Objective()
    budget: Budget
    parameters: Annotated[dict[str, Any], Field(min_length=1)] | None = None
    sampler: Literal["tpe", "grid"] = "tpe"
    points: list[dict[str, Any]] = []
    candidates: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    searches: Searched = "network"
    constraints: Constraints = Constraints()


class _Checker(ListRules):
    """Every rule of a space file, with the file's name for the messages."""

    def space(self, source: Any) -> SearchSpace:
        if not isinstance(source, dict):
            raise self.error("", f"must be a mapping with name, budget and parameters, got {_kind_of(source)}")
        try:
            file = SpaceFile.model_validate(source)
        except ValidationError as error:
            raise self._structure(error) from None
        self.drawn = PARAMETER_SETS[file.searches]
        if file.constraints and self.drawn is not NETWORKS:
            raise self.error("constraints", f"limits are of networks, got searches: {file.searches}; leave them out")
        self._objective(file.objective)
        self._folds(file)
        self._budget(file.budget)
        self._unit(file)
        if file.candidates is not None:
            return self._listing(file, file.candidates, source)
        if file.parameters is None:
            raise self.error("parameters", "must be given, got nothing; add it, or candidates")
        specs = {name: self.parameter(name, spec) for name, spec in file.parameters.items()}
        for spec in specs.values():
            self._condition(spec, specs)
        ordered = self._order(specs)
        for spec in ordered:
            self._needed(spec, specs)
        points = tuple(self.point(f"points[{index}]", point, ordered) for index, point in enumerate(file.points))
        listed = self.grid(ordered, points) if file.sampler == "grid" else None
        if listed is not None:
            self._nothing_refused(file)
        space = SearchSpace(
            file.name, file.objective, file.budget, ordered, points, source, listed, self.drawn, file.constraints
        )
        self._meetings(space)
        self._answered(file.objective, space)
        return space

    def _listing(self, file: SpaceFile, written: list[dict[str, Any]], source: dict[str, Any]) -> SearchSpace:
        others = {"parameters": file.parameters, "points": file.points, "sampler": file.sampler != "tpe"}
        for key, other in others.items():
            if other:
                raise self.error(key, f"{key} or candidates must be given, got both; remove one")
        self._nothing_refused(file)
        whole = self.candidates(written, file.budget)
        space = SearchSpace(
            file.name, file.objective, file.budget, candidate_specs(whole), (), source, whole, self.drawn
        )
        self._answered(file.objective, space)
        return space

    def _nothing_refused(self, file: SpaceFile) -> None:
        """What is listed is trained, whatever it takes."""
        if file.constraints:
            raise self.error(
                "constraints",
                "only draws can be refused before training, got trials that are listed; list those that keep "
                f"{file.constraints}",
            )

    def _structure(self, error: ValidationError) -> SpaceError:
        """The first problem of pydantic's, in the words of the other rules."""
        problems = error.errors()
        # A misspelt key is missing and unknown at once; the second says more.
        problem = next((found for found in problems if found["type"] == "extra_forbidden"), problems[0])
        *outer, key = problem["loc"]
        where = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            models: dict[tuple[int | str, ...], type[BaseModel]] = {
                (): SpaceFile,
                ("budget",): Budget,
                ("objective",): Objective,
                ("constraints",): Constraints,
            }
            known = list(models[tuple(outer)].model_fields)
            return self.error(
                where, f"the key must be one of {', '.join(known)}, got {key!r}{nearest(str(key), known)}"
            )
        if problem["type"] == "missing":
            return self.error(where, "must be given, got nothing; add it")
        message = problem["msg"].removeprefix("Value error, ")
        rule = message[0].lower() + message[1:]
        return self.error(where, f"{rule}, got {problem['input']!r}")

    def _objective(self, objective: Objective) -> None:
        if objective.metric not in OBJECTIVES:
            known = ", ".join(OBJECTIVES)
            got = f"got {objective.metric!r}{nearest(objective.metric, OBJECTIVES)}"
            raise self.error("objective.metric", f"must be one of {known}, {got}")
        if objective.mode != OBJECTIVES[objective.metric]:
            better = OBJECTIVES[objective.metric]
            raise self.error(
                "objective.mode",
                f"{objective.metric} is better at its {better}, got {objective.mode!r}; write {better}",
            )

    def _folds(self, file: SpaceFile) -> None:
        objective = file.objective
        if objective.folds == 1:
            raise self.error(
                "objective.folds",
                "must be 0, for the validation patients alone, or at least 2, or auto, got 1; 5 is usual",
            )
        if not objective.folds:
            if objective.repeats > 1:
                raise self.error(
                    "objective.repeats",
                    f"needs folds, which it divides anew, got {objective.repeats} of none; add folds",
                )
            return
        if not self.drawn.has_folds:
            raise self.error(
                "objective.folds",
                f"trials with `searches: {file.searches}` are judged by the validation patients alone, got "
                f"{file.objective.folds}; leave folds out",
            )
        named = [file.parameters or {}, *(file.candidates or ())]
        if any("epochs" in parameters for parameters in named):
            raise self.error(
                "objective.folds",
                "every network of a trial must spend its whole budget, so that folds compare at equal images, got "
                "epochs; leave out one of them",
            )

    def _answered(self, objective: Objective, space: SearchSpace) -> None:
        """A metric of subtypes is there where every trial answers them."""
        if not METRICS[objective.metric].label or not self.drawn.records("labels"):
            return
        default = self.drawn.fields()["labels"].default
        for drawn in space.listed or space.together(("labels",)):
            if drawn.get("labels", default) != "all":
                raise self.error(
                    "objective.metric",
                    f"{objective.metric} needs networks that answer the subtypes in every trial, got labels: "
                    f"{drawn.get('labels', default)}; write labels: {{fixed: all}}, or choose another metric",
                )

    def _budget(self, budget: Budget) -> None:
        if budget.rule not in STOPPING_RULES:
            known = STOPPING_RULES.names()
            raise self.error(
                "budget.rule",
                f"must be one of {', '.join(known)}, got {budget.rule!r}{nearest(budget.rule, known)}; import the "
                "module that registers it first",
            )
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

    def _unit(self, file: SpaceFile) -> None:
        """Cost is of networks, and decides what is drawn."""
        listed = "a grid" if file.sampler == "grid" else "a list of candidates" if file.candidates is not None else ""
        if file.budget.unit == "cost" and (listed or self.drawn is not NETWORKS):
            raise self.error(
                "budget.unit",
                f"cost weighs the networks that are drawn, got {listed or f'searches: {file.searches}'}; leave it out",
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
                        f"when {parent} must be a value it can take ({specs[parent].describe()}), got {value!r}"
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

    def _needed(self, spec: ParameterSpec, specs: Mapping[str, ParameterSpec]) -> dict[str, tuple[Parameter, ...]]:
        """All that must hold for a parameter to exist: its own conditions and those of what they name."""
        needed = dict(spec.when)
        for parent in spec.when:
            for name, values in self._needed(specs[parent], specs).items():
                both = tuple(value for value in needed.get(name, values) if any(same(value, one) for one in values))
                if not both:
                    raise self.error(
                        spec.name,
                        f"its condition must be able to hold, got {name}={_either(needed[name])} with {parent}, which "
                        f"exists only when {name}={_either(values)}; change one of the conditions",
                    )
                needed[name] = both
        return needed

    def point(self, key: str, point: Mapping[str, Any], ordered: Sequence[ParameterSpec]) -> dict[str, Parameter]:
        """Some values of a trial, the others of which are drawn."""
        specs = {spec.name: spec for spec in ordered}
        for name, value in point.items():
            if name not in specs:
                raise self.error(key, f"must use parameters of this space, got {name!r}{nearest(str(name), specs)}")
            if not specs[name].allows(value):
                raise self.error(key, f"{name} must lie in the space ({specs[name].describe()}), got {value!r}")
        known: dict[str, Parameter] = {}
        for spec in ordered:
            if spec.active(known) and (spec.kind == "fixed" or spec.name in point):
                known[spec.name] = point.get(spec.name, spec.values[0])
        for name in point:
            if name not in known:
                needed = ", ".join(f"{parent}={_either(values)}" for parent, values in specs[name].when.items())
                raise self.error(key, f"{name} exists only when {needed}, got another value or none; add or remove it")
        return dict(point)

    def _meetings(self, space: SearchSpace) -> None:
        """What must hold between the values of a trial, for all that can meet in one."""
        for names, rule in self.drawn.meetings({spec.name: spec.values for spec in space.parameters}):
            for drawn in space.together(names):
                self.holds("parameters", rule(drawn))
        for drawn in space.together(("epochs", "training_slices")):
            self.whole("parameters", drawn, space.budget)
        # Where those are too many, at least what will be tried first, and some more.
        tried = [(f"points[{index}]", RandomSuggest(index, point)) for index, point in enumerate(space.points)]
        for key, suggest in [*tried, *[("parameters", RandomSuggest(seed=0))] * TRY_DRAWS]:
            self.met(key, space.values(suggest), space)

    def met(self, key: str, drawn: dict[str, Parameter], space: SearchSpace) -> None:
        """All values of a trial together."""
        self.holds(key, self.drawn.unread(drawn))
        self.holds(key, self.drawn.unmade(drawn))
        self.whole(key, drawn, space.budget)


def _either(values: Iterable[Parameter]) -> str:
    return " or ".join(map(str, values))


def _multiple(images: int, report_every: int) -> int:
    return max(1, round(images / report_every)) * report_every


def _kind_of(source: object) -> str:
    return "an empty file" if source is None else f"a {type(source).__name__}"
