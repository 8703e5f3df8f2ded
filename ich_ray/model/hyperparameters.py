"""Hyperparameters of building and training a network, in groups, and what follows from them.

The knobs stand in fields.py, by group; those of one architecture alone stand beside it. Search spaces are checked
against these fields, so a parameter that nothing reads cannot be searched.

Defaults are frozen: what is on disk leaves them out. A new field has one that means "as before".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticKnownError

from ich_ray.model.architectures import ARCHITECTURES
from ich_ray.model.fields import DROPS, AugmentationFields, NetworkFields, OptimizationFields, SamplingFields
from ich_ray.model.schedule import SCHEDULES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic.fields import FieldInfo

    from ich_ray.registry import Registry

__all__ = ["GROUPS", "REGISTERED", "Hyperparameters", "decides_the_network", "fields_named", "known_fields", "readers"]

GROUPS: Mapping[str, type[BaseModel]] = {
    "network": NetworkFields,
    "optimization": OptimizationFields,
    "sampling": SamplingFields,
    "augmentation": AugmentationFields,
}
# Fields whose values are the names of a registry.
REGISTERED: Mapping[str, Registry[Any]] = {"architecture": ARCHITECTURES, "schedule": SCHEDULES}
# They change neither the tensors of a network nor what frozen layers make of an image; every other group may.
_OF_TRAINING = ("optimization", "sampling", "augmentation")


# The groups in reverse: pydantic takes fields from the last base first.
class Hyperparameters(AugmentationFields, SamplingFields, OptimizationFields, NetworkFields):
    """The parameters of one trial: the fields of all groups, and those that its architecture alone reads.

    The latter are attributes and keys like all others (`OwnFields.of(parameters)` knows their types). Fields of other
    architectures may be given, as files of version 0.1.0 do, and are kept; nothing reads them.
    """

    # What an architecture alone reads is an "extra" to pydantic; `_own_fields` refuses all others.
    model_config = ConfigDict(frozen=True, extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _own_fields(cls, given: Any) -> Any:
        """Check what is no field of a group, and complete what the architecture alone reads."""
        if not isinstance(given, dict):
            return given
        name = given.get("architecture", NetworkFields.model_fields["architecture"].default)
        if name not in ARCHITECTURES:
            return {key: value for key, value in given.items() if key in cls.model_fields}  # `_is_known` refuses it
        record = ARCHITECTURES[name].own
        checked, own = {}, {}
        for key, value in given.items():
            if key in cls.model_fields:
                checked[key] = value
            elif key in record.model_fields:
                own[key] = value
            else:
                checked |= _of_another(key, value)
        # In the order of the record, however they were given: equal draws give equal tuples of names and values.
        return checked | record.model_validate(own).model_dump()

    @field_validator(*REGISTERED)
    @classmethod
    def _is_known(cls, name: str, info: ValidationInfo) -> str:
        registry = REGISTERED[str(info.field_name)]
        if name not in registry:
            known = ", ".join(map(repr, [*registry.names(), *registry.patterns]))
            raise PydanticKnownError("literal_error", {"expected": f"{known} or one that was registered"})
        return name

    def identity(self) -> dict[str, Any]:
        """The fields that differ from their defaults: the identity of a trial, retraining or state.

        A field that is added later changes the identity of nothing that was written without it.
        """
        own = self.model_extra or {}  # has no defaults to pydantic
        left = {name for name, value in own.items() if value == _default(self.architecture, name)}
        return self.model_dump(exclude_defaults=True, exclude=left)

    def is_same(self, stored: object) -> bool:
        """Whether parameters read from a file are these, with or without their defaults.

        Version 0.1.0 wrote the defaults too.
        """
        try:
            return type(self).model_validate(stored).identity() == self.identity()
        except ValidationError:
            return False

    @property
    def network(self) -> dict[str, Any]:
        """All that decides the tensors of the network and what its frozen layers make of an image, by name."""
        return {name: value for name, value in self.model_dump().items() if decides_the_network(name)}

    @property
    def network_alone(self) -> Hyperparameters:
        """A draw of what tensors and layers depend on only: whether there is dropout, not how much."""
        drops = {name: 0.5 if value else 0.0 for name, value in self.model_dump().items() if _drops(name)}
        return type(self).model_validate({**self.network, **drops, "weights": "none"})

    @property
    def of_speed(self) -> tuple[object, ...]:
        """What the speed of a step depends on, apart from the images.

        Averaging and clipping are not of it: 1.00 to 1.03 times a step without on a CPU.
        """
        return (self.batch_size, self.network_alone, self.augment > 0, self.erase > 0)

    @property
    def is_augmented(self) -> bool:
        """Whether no two training images are the same, so that frozen layers must compute every one."""
        return self.augment > 0 or self.erase > 0

    def images_within(self, budget: int) -> int:
        """Images that a trial is trained on where a search grants `budget` of them."""
        return min(budget, self.epochs * self.training_slices) if self.epochs else budget


def _of_another(key: str, value: Any) -> dict[str, Any]:
    """A field that other architectures read, checked as there."""
    if not (records := fields_named(key)):
        problem = InitErrorDetails(type="extra_forbidden", loc=(key,), input=value)
        raise ValidationError.from_exception_data(Hyperparameters.__name__, [problem])
    return {key: getattr(records[0].model_validate({key: value}), key)}


def _default(architecture: str, name: str) -> Any:
    """Of a field that an architecture alone reads, or another one."""
    own = ARCHITECTURES[architecture].own
    records = [own] if name in own.model_fields else fields_named(name)
    return records[0].model_fields[name].default


def readers(name: str) -> list[str]:
    """The architectures that alone read a field; none for the fields of the groups."""
    return [each for each in ARCHITECTURES.names() if name in ARCHITECTURES[each].own.model_fields]


def fields_named(name: str) -> list[type[BaseModel]]:
    """The records that have a field of this name: hyperparameters, or own fields of architectures."""
    if name in Hyperparameters.model_fields:
        return [Hyperparameters]
    return list(dict.fromkeys(ARCHITECTURES[each].own for each in readers(name)))


def known_fields() -> dict[str, FieldInfo]:
    """Every field that a search space may name: those of the groups, and those of single architectures."""
    own = [ARCHITECTURES[name].own.model_fields for name in ARCHITECTURES.names()]
    return {name: field for fields in (Hyperparameters.model_fields, *own) for name, field in fields.items()}


def decides_the_network(name: str) -> bool:
    """Whether a field decides the tensors of a network, or what its frozen layers make of an image."""
    return not any(name in GROUPS[group].model_fields for group in _OF_TRAINING) and not _drops(name)


def _drops(name: str) -> bool:
    return any(DROPS in record.model_fields[name].metadata for record in fields_named(name))
