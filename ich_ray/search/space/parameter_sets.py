"""What a search draws: hyperparameters of networks, or parameters of sequence models.

A space names one of them by its key `searches`. Rules of a space, draws, the sampler, trials and audits ask a
`ParameterSet` and know of no other difference. Each is checked here for what must hold between values of one trial.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ich_ray.errors import ConfigError, nearest
from ich_ray.model.architectures import ARCHITECTURES
from ich_ray.model.hyperparameters import (
    GROUPS,
    REGISTERED,
    Hyperparameters,
    decides_the_network,
    fields_named,
    known_fields,
    readers,
)
from ich_ray.model.sequence_parameters import SEQUENCE_MODELS, SequenceParameters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from ich_ray.registry import Registry
    from ich_ray.trial_records import Parameter

__all__ = ["NETWORKS", "PARAMETER_SETS", "SEQUENCES", "ParameterSet", "Searched"]

# As `searches` of a space names them.
Searched = Literal["network", "sequence"]


class ParameterSet:
    """Parameters of one kind of trial; every rule answers with what is wrong, empty if nothing is.

    Attributes:
        name: as a space writes it.
        record: what a trial is given, a pydantic model with `images_within(budget)`.
        registered: fields whose values are the names of a registry.
        has_folds: whether trials may be judged by folds.
    """

    name: Searched
    record: type[BaseModel]
    registered: Mapping[str, Registry[Any]]
    has_folds: bool

    def made(self, drawn: Mapping[str, Parameter]) -> Any:
        """The record of a trial, with the defaults of what is not named.

        Raises:
            ValidationError: of pydantic's, the model does not accept it.
        """
        return self.record.model_validate(drawn)

    def images_of(self, drawn: Mapping[str, Parameter], budget: int) -> int:
        """Images at which one network of a trial has ended.

        Raises:
            ValidationError: see `made`.
        """
        return int(self.made(drawn).images_within(budget))

    def fields(self) -> dict[str, FieldInfo]:
        """Every field that a space may name."""
        return dict(self.record.model_fields)

    def records(self, name: str) -> list[type[BaseModel]]:
        """The records that have a field of this name; none if nothing reads it."""
        return [self.record] if name in self.record.model_fields else []

    def misnamed(self, name: str, value: Parameter) -> str:  # noqa: ARG002
        """Of a value that its field takes, but that names nothing."""
        return ""

    def unread(self, drawn: Mapping[str, Parameter]) -> str:  # noqa: ARG002
        """Of values of a trial that nothing would read beside the others."""
        return ""

    def unmade(self, drawn: Mapping[str, Parameter]) -> str:  # noqa: ARG002
        """Of values that no network can be made of."""
        return ""

    def unspent(self, drawn: Mapping[str, Parameter], images: int, report_every: int) -> str:  # noqa: ARG002
        """Of values that do not go with the budget of the search."""
        return ""

    def meetings(
        self,
        named: Mapping[str, Sequence[Parameter]],  # noqa: ARG002
    ) -> Iterator[tuple[tuple[str, ...], Callable[[Mapping[str, Parameter]], str]]]:
        """Parameters whose combinations a rule is to try, from the values of those that a space names."""
        yield from ()

    def meets_the_dataset(self, name: str) -> bool:  # noqa: ARG002
        """Whether a value of a parameter may not fit the images, a file of weights or the number of slices."""
        return False


class _Networks(ParameterSet):
    name = "network"
    record = Hyperparameters
    registered = REGISTERED
    has_folds = True

    def fields(self) -> dict[str, FieldInfo]:
        return known_fields()

    def records(self, name: str) -> list[type[BaseModel]]:
        return fields_named(name)

    def misnamed(self, name: str, value: Parameter) -> str:
        if name == "architecture":
            try:
                ARCHITECTURES[str(value)].check_name()
            except ConfigError as error:
                return str(error)
        return ""

    def unread(self, drawn: Mapping[str, Parameter]) -> str:
        """Values that only some architectures read would do nothing beside another one."""
        architecture = drawn.get("architecture", Hyperparameters().architecture)
        for name in drawn:
            if (only := readers(name)) and architecture not in only:
                said = " or ".join(only)
                when = said if len(only) == 1 else f"[{', '.join(only)}]"
                return (
                    f"{name} must stand beside architecture {said}, which alone reads it, got {architecture}; remove "
                    f"it, or give it `when: {{architecture: {when}}}`"
                )
        return ""

    def unmade(self, drawn: Mapping[str, Parameter]) -> str:
        """Every trial would fail with weights or a stage that its architecture does not have."""
        named = {name: value for name, value in drawn.items() if decides_the_network(name)}
        parameters = Hyperparameters.model_validate(named)
        architecture, weights, stage = parameters.architecture, parameters.weights, parameters.unfreeze_from
        if weights == "imagenet" and "imagenet" not in ARCHITECTURES[architecture].sources:
            return (
                f"weights imagenet must stand beside a family of torchvision or timm, got {architecture}; use none, or "
                "give it `when: {architecture: ...}`"
            )
        if stage == "all":
            return ""
        known = ("all", *ARCHITECTURES[architecture].stages(parameters))
        if stage in known:
            return ""
        return (
            f"unfreeze_from must be a stage of {architecture} ({', '.join(known)}), got {stage!r}"
            f"{nearest(stage, known)}; use one of them, or give it `when: {{architecture: ...}}`"
        )

    def unspent(self, drawn: Mapping[str, Parameter], images: int, report_every: int) -> str:
        parameters = Hyperparameters.model_validate(drawn)
        seen = parameters.epochs * parameters.training_slices
        if seen <= images and not seen % report_every:
            return ""
        return (
            f"epochs times training_slices must be a multiple of report_every ({report_every}) and at most "
            f"budget.images ({images}), got {parameters.epochs} x {parameters.training_slices}; change one of them"
        )

    def meetings(
        self, named: Mapping[str, Sequence[Parameter]]
    ) -> Iterator[tuple[tuple[str, ...], Callable[[Mapping[str, Parameter]], str]]]:
        for name in named:
            if readers(name):
                yield ("architecture", name), self.unread
        architectures = map(str, named.get("architecture", (Hyperparameters().architecture,)))
        staged = {field for name in architectures for field in ARCHITECTURES[name].stage_fields}
        yield ("architecture", "weights", "unfreeze_from", *staged), self.unmade

    def meets_the_dataset(self, name: str) -> bool:
        return name in GROUPS["sampling"].model_fields or (decides_the_network(name) and name != "unfreeze_from")


class _Sequences(ParameterSet):
    name = "sequence"
    record = SequenceParameters
    registered: Mapping[str, Registry[Any]] = {"model": SEQUENCE_MODELS}
    has_folds = False


NETWORKS: ParameterSet = _Networks()
SEQUENCES: ParameterSet = _Sequences()
PARAMETER_SETS: Mapping[Searched, ParameterSet] = {one.name: one for one in (NETWORKS, SEQUENCES)}
