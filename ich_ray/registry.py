"""Registries: variants of one kind by name, those of this package and those that others register.

A variant is found in five places: in the table of its registry, and in what `announce` was given, whose modules are
imported when they are first asked for; among what `register` was given; among the entry points of installed packages,
so that `ich-ray` itself finds it; and in a family, whose names (`FAMILY/NAME`) another package has. No file that is
read names a module to import: a search or bundle from somebody else is only data.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from ich_ray.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from importlib.metadata import EntryPoint

__all__ = ["Registration", "Registry", "announce", "registered_here", "repeat"]

Variant = TypeVar("Variant")
_NAME = re.compile(r"[\w.-]{1,80}")
_REGISTRIES: dict[str, Registry[Any]] = {}
_ANNOUNCED: dict[str, dict[str, str]] = {}


class Registration(NamedTuple):
    """A variant that was registered from outside, as it travels to another process.

    Pickled by Ray, a class of an importable module travels as its name, one of a script or notebook as a whole.
    """

    home: str
    kind: str
    name: str
    variant: Any


class Registry(Generic[Variant]):
    """The variants of one kind.

    Args:
        kind: what they are, such as `architectures`; their entry points have the group `ich_ray.KIND`.
        own: those of this package: name to `module:attribute`.
        home: the module that makes this registry when it is imported.
        families: names before a slash, with the `module:attribute` that makes a variant of what comes after it. Any
            name is taken for one of the family until the variant is used: finding out may take seconds.
    """

    def __init__(self, kind: str, own: Mapping[str, str], home: str, families: Mapping[str, str] | None = None) -> None:
        self.kind, self.home, self._own, self._families = kind, home, own, families or {}
        self._found: dict[str, Variant] = {}
        self.registered: dict[str, Variant] = {}
        _REGISTRIES[kind] = self

    def register(self, name: str, variant: Variant) -> None:
        """Add a variant from outside; one of the same class takes the place of the one before.

        Raises:
            ConfigError: the name is taken by another class, or is none that a YAML file could hold.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{self.kind}: a name must be letters, digits, _, . and -, got {name!r}; choose another")
        before = self.registered.get(name)
        if name in self._table or (before is not None and _class_of(before) != _class_of(variant)):
            raise ConfigError(f"{self.kind}: every name must be registered once, got {name} again; choose another")
        self.registered[name] = variant

    def names(self) -> list[str]:
        """All names, those of this package first; not those of families."""
        return list(dict.fromkeys([*self._table, *self.registered, *_installed(self.kind)]))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (
            name in self._table or name in self.registered or name in _installed(self.kind) or self._is_of_family(name)
        )

    def __getitem__(self, name: str) -> Variant:
        """The variant of a name, imported or made if need be.

        Raises:
            ConfigError: there is none.
        """
        if name in self.registered:
            return self.registered[name]
        if name not in self._found:
            self._found[name] = self._imported(name)
        return self._found[name]

    @property
    def _table(self) -> Mapping[str, str]:
        # First those of the registry, which no announcement changes.
        return {**self._own, **_ANNOUNCED.get(self.kind, {}), **self._own}

    def _is_of_family(self, name: str) -> bool:
        family, _, rest = name.partition("/")
        return family in self._families and _NAME.fullmatch(rest) is not None

    def _imported(self, name: str) -> Variant:
        if name in (table := self._table):
            found: Variant = _attribute(table[name])
            return found
        if self._is_of_family(name):
            family, _, rest = name.partition("/")
            made: Variant = _attribute(self._families[family])(rest)
            return made
        if name in (installed := _installed(self.kind)):
            try:
                loaded: Variant = installed[name].load()
            except Exception as error:
                raise ConfigError(
                    f"{self.kind}: the package that registers {name} must be importable, got {type(error).__name__}: "
                    f"{error}; correct it, or uninstall it"
                ) from error
            return loaded
        known = self.names()
        raise ConfigError(
            f"{self.kind}: must be one of {', '.join([*known, *self.patterns])}, got {name!r}{nearest(name, known)}; "
            "import the module that registers it first"
        )

    @property
    def patterns(self) -> list[str]:
        """What names of families look like."""
        return [f"{family}/NAME" for family in self._families]


def _attribute(where: str) -> Any:
    module, _, attribute = where.partition(":")
    return getattr(import_module(module), attribute)


def announce(kind: str, variants: Mapping[str, str]) -> None:
    """Say where variants are, name to `module:attribute`, before their registry is imported.

    For what is imported with this package in every process, so that nothing has to travel.

    Raises:
        ConfigError: a name is announced twice.
    """
    there = _ANNOUNCED.setdefault(kind, {})
    for name, where in variants.items():
        if there.setdefault(name, where) != where:
            raise ConfigError(f"{kind}: every name must be announced once, got {name} again; choose another")


def registered_here() -> tuple[Registration, ...]:
    """All that was registered in this process from outside, for processes that Ray starts on its behalf.

    These do not run the script or command that registered it; they are given this, and call `repeat`.
    """
    return tuple(
        Registration(registry.home, kind, name, variant)
        for kind, registry in _REGISTRIES.items()
        for name, variant in registry.registered.items()
    )


def repeat(registrations: Iterable[Registration]) -> None:
    """Register in this process what was registered in another."""
    for home, kind, name, variant in registrations:
        import_module(home)
        _REGISTRIES[kind].register(name, variant)


def _class_of(variant: object) -> tuple[str, str]:
    # By name: a module that is imported again, or a cell that is run again, makes a new class of the same one.
    # A function is one of its own, though all have one class.
    kind = variant if hasattr(variant, "__qualname__") else type(variant)
    return kind.__module__, kind.__qualname__


@lru_cache
def _installed(kind: str) -> dict[str, EntryPoint]:
    """Entry points are looked for once: it takes a look at every installed package."""
    from importlib.metadata import entry_points  # 20 ms that importing the package does not need

    return {point.name: point for point in entry_points(group=f"ich_ray.{kind}")}
