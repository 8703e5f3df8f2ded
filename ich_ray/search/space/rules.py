"""Rules of one parameter of a search space: kinds, values, conditions, the model's bounds.

Knows the file only by the name that its messages begin with; how parameters depend on each other is in yaml_file.py.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from ich_ray.errors import SpaceError, nearest
from ich_ray.search.space.parameter_sets import NETWORKS
from ich_ray.search.space.space import KINDS, Kind, ParameterSpec, Prior, is_integer, is_number, same
from ich_ray.storage import holds_credentials, without_credentials
from ich_ray.trial_records import Parameter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import BaseModel

    from ich_ray.search.space.parameter_sets import ParameterSet
    from ich_ray.search.space.space import Budget

__all__ = ["ParameterRules"]

# As a ledger reads it again.
_PARAMETER: TypeAdapter[Parameter] = TypeAdapter(Parameter)
_BELIEF = ("prior", "width", "weight")
_DECADES = re.compile(r"\s*(\d{1,3}(?:\.\d{1,9})?)\s*decades?\s*")


class ParameterRules:
    """Checks what is written for a parameter; every method raises a SpaceError that names file and key.

    Attributes:
        drawn: what the parameters are of.
    """

    def __init__(self, file: str, drawn: ParameterSet = NETWORKS) -> None:
        self.file, self.drawn = file, drawn

    def error(self, key: str, message: str) -> SpaceError:
        return SpaceError(f"{self.file}: {key}: {message}" if key else f"{self.file}: {message}")

    def parameter(self, name: str, written: Any) -> ParameterSpec:
        self.known(name, name)
        body = dict(written) if isinstance(written, dict) else {"fixed": written}
        when = self._when(name, body.pop("when", {}))
        belief = {key: body.pop(key) for key in _BELIEF if key in body}
        for key in body:
            if key not in KINDS:
                known = (*KINDS, "when", *_BELIEF)
                allowed = ", ".join(known)
                raise self.error(name, f"the key must be one of {allowed}, got {key!r}{nearest(str(key), known)}")
        if len(body) != 1:
            raise self.error(name, f"exactly one of {', '.join(KINDS)} must be given, got {list(body) or 'none'}")
        kind = next(kind for kind in KINDS if kind in body)
        spec = ParameterSpec(name, kind, self._values(name, kind, body[kind]), when)
        return replace(spec, prior=self._prior(spec, belief)) if belief else spec

    def _prior(self, spec: ParameterSpec, belief: Mapping[str, Any]) -> Prior:
        """What is believed of a parameter; a range has a width, a choice a weight."""
        name = spec.name
        if spec.kind == "fixed":
            raise self.error(name, f"a prior needs choice, int, uniform or loguniform, got {spec.kind}; remove it")
        own, other = ("weight", "width") if spec.kind == "choice" else ("width", "weight")
        if other in belief:
            raise self.error(name, f"the prior of {spec.kind} has a {own}, got {other}; write {own}, or leave it out")
        if "prior" not in belief:
            raise self.error(name, f"{own} must stand beside prior, got it alone; add prior, the likeliest value")
        value = self.scalar(name, belief["prior"])
        if not spec.allows(value):
            raise self.error(name, f"prior must lie in the space ({spec.describe()}), got {value!r}")
        if spec.kind == "choice":
            return Prior(value, self._weight(spec, belief.get("weight")))
        return Prior(value, self._width(spec, belief.get("width")))

    def _weight(self, spec: ParameterSpec, written: Any) -> float:
        even = 1 / len(spec.values)
        weight = (1 + even) / 2 if written is None else written
        if not is_number(weight) or not even < weight < 1:
            raise self.error(
                spec.name,
                f"weight must be a probability above {even:.3g}, which each of {len(spec.values)} values has without "
                f"a prior, and below 1, got {written!r}; change it, or leave it out",
            )
        return float(weight)

    def _width(self, spec: ParameterSpec, written: Any) -> float:
        low, high = (float(value) for value in spec.values)
        log = spec.kind == "loguniform"
        whole, unit = (math.log10(high / low), " decades") if log else (high - low, "")
        said = _DECADES.fullmatch(written) if log and isinstance(written, str) else None
        width = whole / 4 if written is None else float(said[1]) if said else written
        if not is_number(width) or not 0 < width <= whole:
            example = ", such as `1 decade`" if log else ""
            raise self.error(
                spec.name,
                f"width must be above 0 and at most that of the range, {whole:.3g}{unit}{example}, got {written!r}; "
                "change it, or leave it out for a quarter of the range",
            )
        return float(width)

    def known(self, key: str, name: str) -> None:
        if not self.drawn.records(name):
            known = self.drawn.fields()
            raise self.error(
                key, f"must be a parameter of the model, got {name!r}{nearest(name, known)}; known: {', '.join(known)}"
            )

    def _values(self, name: str, kind: Kind, value: Any) -> tuple[Parameter, ...]:
        if kind == "choice":
            values = self._choices(name, value)
        elif kind == "fixed":
            values = (self.scalar(name, value),)
        else:
            values = self._range(name, kind, value)
        for one in values:
            self.accepted(name, one)
        return values

    def _choices(self, name: str, value: Any) -> tuple[Parameter, ...]:
        if not isinstance(value, list) or not value:
            raise self.error(
                name, f"choice must be a list of at least one value, got {value!r}; list the values to try"
            )
        values = tuple(self.scalar(name, one) for one in value)
        for index, one in enumerate(values):
            if any(same(one, earlier) for earlier in values[:index]):
                raise self.error(name, f"every choice must be listed once, got {one!r} twice; remove one")
        return values

    def scalar(self, name: str, value: Any) -> Parameter:
        if isinstance(value, bool | str) or is_number(value):
            if isinstance(value, str) and holds_credentials(value):
                shown = without_credentials(value)
                raise self.error(
                    name,
                    f"an address must hold no user, password, token or signature, got one in {shown!r}; leave it out",
                )
            try:
                return _PARAMETER.validate_python(value)
            except ValidationError:
                raise self.error(
                    name, f"a text must be of printable characters, got {value!r}; choose another, rename a file"
                ) from None
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

    def accepted(self, name: str, value: Parameter) -> None:
        """A value that the model refuses is refused here, before any trial draws it."""
        records = self.drawn.records(name)
        refused = [problem for record in records if (problem := _problem(record, name, value))]
        if len(refused) == len(records):
            rule = refused[0][0].lower() + refused[0][1:]
            guess = nearest(value, self._literals(name)) if isinstance(value, str) else ""
            raise self.error(name, f"{rule}, got {value!r}{guess}")
        self.holds("", self.drawn.misnamed(name, value))

    def whole(self, key: str, drawn: Mapping[str, Parameter], budget: Budget) -> None:
        """What must hold between the values of one trial."""
        try:
            self.drawn.made(drawn)
        except ValidationError as error:
            problem = error.errors()[0]
            raise self.error(
                key,
                f"every draw must be a trial the model accepts: {problem['msg']}, got {dict(drawn)}; change one",
            ) from None
        self.holds(key, self.drawn.unspent(drawn, budget.images, budget.report_every))

    def holds(self, key: str, problem: str) -> None:
        """Refuse what a rule of the parameters found, if anything."""
        if problem:
            raise self.error(key, problem)

    def _literals(self, name: str) -> list[str]:
        if name in self.drawn.registered:
            return self.drawn.registered[name].names()
        annotation = self.drawn.fields()[name].annotation
        return [str(value) for value in getattr(annotation, "__args__", ())]

    def _when(self, name: str, written: Any) -> dict[str, tuple[Parameter, ...]]:
        if not isinstance(written, dict):
            raise self.error(name, f"when must be a mapping of parameter to value or list of values, got {written!r}")
        return {
            str(parent): tuple(self.scalar(name, one) for one in (values if isinstance(values, list) else [values]))
            for parent, values in written.items()
        }


def _problem(record: type[BaseModel], name: str, value: Parameter) -> str:
    """Why a record refuses a value of one of its fields, empty if it does not."""
    try:
        record.model_validate({name: value}, strict=True)
    except ValidationError as error:
        return next((problem["msg"] for problem in error.errors() if problem["loc"][:1] == (name,)), "")
    return ""
