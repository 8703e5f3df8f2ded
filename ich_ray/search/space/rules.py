"""Rules of one parameter of a search space: kinds, values, conditions, the model's bounds.

Knows the file only by the name that its messages begin with; how parameters depend on each other is in yaml_file.py.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from ich_ray.errors import ConfigError, SpaceError, nearest
from ich_ray.model.architectures import ARCHITECTURES
from ich_ray.model.hyperparameters import (
    REGISTERED,
    Hyperparameters,
    decides_the_network,
    fields_named,
    known_fields,
    readers,
)
from ich_ray.results import Parameter
from ich_ray.search.space.space import KINDS, Kind, ParameterSpec, Prior, is_integer, is_number, same
from ich_ray.storage import holds_credentials, without_credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import BaseModel

    from ich_ray.search.space.space import Budget

__all__ = ["ParameterRules"]

# As a ledger reads it again.
_PARAMETER: TypeAdapter[Parameter] = TypeAdapter(Parameter)
_BELIEF = ("prior", "width", "weight")
_DECADES = re.compile(r"\s*(\d{1,3}(?:\.\d{1,9})?)\s*decades?\s*")


class ParameterRules:
    """Checks what is written for a parameter; every method raises a SpaceError that names file and key."""

    def __init__(self, file: str) -> None:
        self.file = file

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
        if not fields_named(name):
            known = known_fields()
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
        refused = [problem for record in fields_named(name) if (problem := _problem(record, name, value))]
        if len(refused) == len(fields_named(name)):
            rule = refused[0][0].lower() + refused[0][1:]
            guess = nearest(value, _literals(name)) if isinstance(value, str) else ""
            raise self.error(name, f"{rule}, got {value!r}{guess}")
        if name == "architecture":
            try:
                ARCHITECTURES[str(value)].check_name()
            except ConfigError as error:
                raise self.error("", str(error)) from None

    def read_by_its_architecture(self, key: str, drawn: Mapping[str, Parameter]) -> None:
        """Values that only some architectures read would do nothing beside another one."""
        architecture = drawn.get("architecture", Hyperparameters().architecture)
        for name in drawn:
            if (only := readers(name)) and architecture not in only:
                said = " or ".join(only)
                when = said if len(only) == 1 else f"[{', '.join(only)}]"
                raise self.error(
                    key,
                    f"{name} must stand beside architecture {said}, which alone reads it, got {architecture}; remove "
                    f"it, or give it `when: {{architecture: {when}}}`",
                )

    def in_its_architecture(self, key: str, drawn: Mapping[str, Parameter]) -> None:
        """Every trial would fail with weights or a stage that its architecture does not have."""
        named = {name: value for name, value in drawn.items() if decides_the_network(name)}
        parameters = Hyperparameters.model_validate(named)
        architecture, weights, stage = parameters.architecture, parameters.weights, parameters.unfreeze_from
        if weights == "imagenet" and "imagenet" not in ARCHITECTURES[architecture].sources:
            raise self.error(
                key,
                f"weights imagenet must stand beside a family of torchvision or timm, got {architecture}; use none, or "
                "give it `when: {architecture: ...}`",
            )
        if stage == "all":
            return
        known = ("all", *ARCHITECTURES[architecture].stages(parameters))
        if stage not in known:
            raise self.error(
                key,
                f"unfreeze_from must be a stage of {architecture} ({', '.join(known)}), got {stage!r}"
                f"{nearest(stage, known)}; use one of them, or give it `when: {{architecture: ...}}`",
            )

    def whole(self, key: str, drawn: Mapping[str, Parameter], budget: Budget) -> None:
        """What must hold between the values of one trial."""
        try:
            parameters = Hyperparameters.model_validate(drawn)
        except ValidationError as error:
            problem = error.errors()[0]
            raise self.error(
                key,
                f"every draw must be a trial the model accepts: {problem['msg']}, got {dict(drawn)}; change one",
            ) from None
        images = parameters.epochs * parameters.training_slices
        if images > budget.images or images % budget.report_every:
            raise self.error(
                key,
                f"epochs times training_slices must be a multiple of report_every ({budget.report_every}) and at most "
                f"budget.images ({budget.images}), got {parameters.epochs} x {parameters.training_slices}; change "
                "one of them",
            )

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


def _literals(name: str) -> list[str]:
    if name in REGISTERED:
        return REGISTERED[name].names()
    annotation = known_fields()[name].annotation
    return [str(value) for value in getattr(annotation, "__args__", ())]
