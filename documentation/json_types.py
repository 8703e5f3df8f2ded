"""Types of JSON in words, out of a JSON Schema: `array of number ≥ 0 or null`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["JsonTypes"]

_HEX = re.compile(r"\^\[0-9a-f\]\{(\d+)\}\$")
_MOST = 2**31  # limits beyond guard against absurd files, and tell a reader nothing
_SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


class JsonTypes:
    """Types as one schema knows them.

    Args:
        records: the `$defs` of the schema.
        link: how a record is named.
    """

    def __init__(self, records: Mapping[str, Any], link: Callable[[str], str]) -> None:
        self._records, self._link = records, link

    def words(self, schema: Mapping[str, Any]) -> str:
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return self._link(name) if "properties" in self._records[name] else self.words(self._records[name])
        if several := schema.get("anyOf") or schema.get("oneOf"):
            return " or ".join(dict.fromkeys(map(self.words, several)))
        values = [schema["const"]] if "const" in schema else schema.get("enum", [])
        return ", ".join(f"`{json.dumps(value)}`" for value in values) or self._plain(schema)

    def _plain(self, schema: Mapping[str, Any]) -> str:
        match schema.get("type", "any"):
            case "array":
                within = schema.get("prefixItems") or [schema.get("items", {})]
                return f"array of {', '.join(map(self.words, within))}"
            case "object" if isinstance(schema.get("additionalProperties"), dict):
                return f"object of {self.words(schema['additionalProperties'])} by name"
            case "string" if found := _HEX.fullmatch(schema.get("pattern", "")):
                return f"{found[1]} hex digits"
            case kind:
                return f"{kind}{_range(schema)}"


def _range(schema: Mapping[str, Any]) -> str:
    told = [f"{sign} {schema[key]:,.12g}" for key, sign in _SIGNS.items() if abs(schema.get(key, _MOST)) < _MOST]
    return f" {' and '.join(told)}" if told else ""
