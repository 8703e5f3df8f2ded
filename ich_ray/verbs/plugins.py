"""Verbs, and flags of verbs, that are registered from outside: functions as Typer reads them.

`VERBS.register("name", its_function)`, `FLAGS.register("its_name", Flags("verb", its_function))`; or the same as entry
points of an installed package, so that `ich-ray` has them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeAlias, TypeVar

from ich_ray.errors import ConfigError
from ich_ray.registry import Registry
from ich_ray.terminal import complain

__all__ = ["FLAGS", "VERBS", "Flags", "Verb", "usable", "with_flags"]

Verb: TypeAlias = Callable[..., None]
Variant = TypeVar("Variant")
_said: set[str] = set()  # every verb asks for all flags


@dataclass(frozen=True)
class Flags:
    """Flags of a verb, and what is done in its place where one of them is given.

    Attributes:
        verb: its name.
        instead: its parameters that the verb has not are the flags; those of the verb that it names are passed on.
    """

    verb: str
    instead: Verb


VERBS: Registry[Verb] = Registry("verbs", {}, __name__)
FLAGS: Registry[Flags] = Registry("flags", {}, __name__)


def with_flags(name: str, verb: Verb) -> Verb:
    """A verb and all flags that are registered for it."""
    for flags in usable(FLAGS).values():
        if flags.verb == name:
            verb = _either(verb, flags.instead)
    return verb


def usable(registry: Registry[Variant]) -> dict[str, Variant]:
    """All that is registered and can be imported; the command says what it goes on without."""
    found = {}
    for name in registry.names():
        try:
            found[name] = registry[name]
        except ConfigError as error:
            if str(error) not in _said:
                _said.add(str(error))
                complain(error)
    return found


def _either(verb: Verb, instead: Verb) -> Verb:
    own, other = (inspect.signature(function, eval_str=True) for function in (verb, instead))
    flags = {name: flag for name, flag in other.parameters.items() if name not in own.parameters}

    @wraps(verb)
    def either(**given: Any) -> None:
        is_given = any(given[name] != flag.default for name, flag in flags.items())
        chosen, taken = (instead, other.parameters) if is_given else (verb, own.parameters)
        chosen(**{name: value for name, value in given.items() if name in taken})

    either.__signature__ = own.replace(parameters=[*own.parameters.values(), *flags.values()])  # type: ignore[attr-defined]
    return either
