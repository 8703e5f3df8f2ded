"""The rules of one parameter of a search space file: kinds, values, conditions, and what the model accepts.

Knows the file only by the name that its messages begin with; how parameters depend on each other is in space.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from ich_ray.errors import SpaceError, nearest
from ich_ray.model.hyperparameters import STACKED_ONLY, Hyperparameters
from ich_ray.results import Parameter
from ich_ray.search.draw import KINDS, Kind, ParameterSpec, is_integer, is_number, same

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ich_ray.search.draw import Budget

__all__ = ["ParameterRules"]

# As a ledger reads it again.
_PARAMETER: TypeAdapter[Parameter] = TypeAdapter(Parameter)


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
        for key in body:
            if key not in KINDS:
                allowed = ", ".join((*KINDS, "when"))
                raise self.error(name, f"the key must be one of {allowed}, got {key!r}{nearest(str(key), KINDS)}")
        if len(body) != 1:
            raise self.error(name, f"exactly one of {', '.join(KINDS)} must be given, got {list(body) or 'none'}")
        kind = next(kind for kind in KINDS if kind in body)
        return ParameterSpec(name, kind, self._values(name, kind, body[kind]), when)

    def known(self, key: str, name: str) -> None:
        known = Hyperparameters.model_fields
        if name not in known:
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
        try:
            Hyperparameters.model_validate({name: value}, strict=True)
        except ValidationError as error:
            for problem in error.errors():
                if problem["loc"][:1] == (name,):
                    rule = problem["msg"][0].lower() + problem["msg"][1:]
                    guess = nearest(value, _literals(name)) if isinstance(value, str) else ""
                    raise self.error(name, f"{rule}, got {value!r}{guess}") from None

    def read_by_its_architecture(self, key: str, drawn: Mapping[str, Parameter]) -> None:
        """Values that only `stacked_cnn` reads would do nothing beside another architecture."""
        architecture = drawn.get("architecture", Hyperparameters().architecture)
        unread = [name for name in drawn if name in STACKED_ONLY]
        if unread and architecture != "stacked_cnn":
            raise self.error(
                key,
                f"{unread[0]} must stand beside architecture stacked_cnn, which alone reads it, got {architecture}; "
                "remove it, or give it `when: {architecture: stacked_cnn}`",
            )

    def in_its_architecture(self, key: str, drawn: Mapping[str, Parameter]) -> None:
        """Every trial would fail with weights or a stage that its architecture does not have."""
        shaping = {"architecture", "blocks", "convolutions", "weights", "unfreeze_from"}
        parameters = Hyperparameters.model_validate({name: drawn[name] for name in drawn.keys() & shaping})
        architecture, weights, stage = parameters.architecture, parameters.weights, parameters.unfreeze_from
        if weights == "imagenet" and architecture in {"plain_cnn", "stacked_cnn"}:
            raise self.error(
                key,
                f"weights imagenet must stand beside a torchvision family, got {architecture}; use none, or give it "
                "`when: {architecture: ...}`",
            )
        if stage == "all":
            return
        from ich_ray.model.networks import stages

        known = ("all", *stages(parameters))
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


def _literals(name: str) -> list[str]:
    annotation = Hyperparameters.model_fields[name].annotation
    return [str(value) for value in getattr(annotation, "__args__", ())]
