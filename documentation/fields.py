"""The fields of a record or data class as a table: name, type in JSON, default, meaning out of its docstring."""

from __future__ import annotations

import inspect
import json
from functools import cache
from typing import TYPE_CHECKING, Any

import griffe
from pydantic import BaseModel, TypeAdapter

from documentation.json_types import JsonTypes
from documentation.words import WORDS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

__all__ = ["Fields", "anchor", "plain", "summary"]


def anchor(name: str) -> str:
    """A heading with this name, as a link."""
    return f"[{name}](#{name.lower()})"


def plain(name: str) -> str:
    return f"`{name}`"


def summary(kind: type) -> str:
    """What a docstring says before its sections, in one paragraph."""
    said = _sections(kind.__doc__ or "")
    return " ".join(" ".join(part.value for part in said if part.kind is griffe.DocstringSectionKind.text).split())


def _sections(docstring: str) -> list[Any]:
    return griffe.Docstring(inspect.cleandoc(docstring), lineno=1).parse("google", warnings=False)


@cache
def _said(kind: type) -> Mapping[str, str]:
    """What the docstring of a class, and those of its bases, say of attributes."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        for section in _sections(vars(base).get("__doc__") or ""):
            if section.kind is griffe.DocstringSectionKind.attributes:
                found |= {one.name: " ".join(one.description.split()) for one in section.value}
    return found


class Fields:
    """The fields of one class.

    Args:
        kind: a record, or a data class.
        link: how another record is named in a type.
    """

    def __init__(self, kind: type, link: Callable[[str], str] = plain) -> None:
        self.kind = kind
        self._schema = TypeAdapter(kind).json_schema()
        if "properties" not in self._schema:  # a record that holds itself
            self._schema |= self._schema["$defs"][kind.__name__]
        self._types = JsonTypes(self._schema.get("$defs", {}), link)
        self.names = list(self._schema["properties"])

    def table(self, names: Collection[str] = ()) -> str:
        """Of all fields, or of some."""
        rows = [self._row(name) for name in self.names if not names or name in names]
        return "\n".join(["| field | type | default | meaning |", "|---|---|---|---|", *rows]) + "\n"

    def meaning(self, name: str) -> str:
        """Out of its docstring, else of what it means everywhere, else of the record that the field holds."""
        said = _said(self.kind)
        if name in said:
            return said[name]
        if other := next((other for other, text in said.items() if f"`{name}`" in text), None):
            return f"See `{other}`."
        if name in WORDS:
            return WORDS[name]
        if record := next(iter(self.records_of(name)), None):
            return summary(record)
        return "See above." if f"`{name}`" in summary(self.kind) else ""

    def records_of(self, name: str) -> list[type]:
        """Records within a field, in order."""
        return records_within(self.kind.model_fields[name].annotation) if issubclass(self.kind, BaseModel) else []

    def values(self, name: str) -> str:
        """The type of a field with its range."""
        return self._types.words(self._schema["properties"][name])

    def default(self, name: str) -> str:
        """As JSON; empty where the field must be given."""
        schema = self._schema["properties"][name]
        if "default" in schema:
            written = json.dumps(schema["default"])
            return "its defaults" if isinstance(schema["default"], dict) and schema["default"] else f"`{written}`"
        return "" if name in self._schema.get("required", ()) else "empty"

    def _row(self, name: str) -> str:
        cells = (f"`{name}`", self.values(name), self.default(name), self.meaning(name))
        return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def records_within(annotation: Any) -> list[type]:
    """Records in a type, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [record for part in getattr(annotation, "__args__", ()) for record in records_within(part)]
