"""YAML text -> plain values, without the traps of YAML: what could mean something else is an error."""

from __future__ import annotations

import re
from typing import Any

import yaml

from ich_ray.errors import first_line

__all__ = ["parse_yaml"]


def parse_yaml(text: str) -> Any:
    """Read YAML whose author meant what it says.

    Raises:
        ValueError: it is none, has a key twice, or is nested too deep. What was got, in one line.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506  (a SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(_problem(error)) from None
    except RecursionError:
        raise ValueError("hundreds of lists within each other; write fewer") from None


class _StrictLoader(yaml.SafeLoader):
    """YAML without its traps: a repeated key and a date or number that is none are errors, and `1e-3` is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refused(key, "a mapping or list as a key, such as a {{ template }} that was not filled in,")
            if key.value in seen:
                raise _refused(key, f"the key {key.value!r} twice")
            seen.add(key.value)
            if isinstance(value, yaml.ScalarNode):
                self.construct_object(value, key=key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False, key: str = "") -> Any:
        """Of a text that looks like a date or a number and is none, PyYAML lets Python say what it likes."""
        if not isinstance(node, yaml.ScalarNode):
            return super().construct_object(node, deep)
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int):
                float(value)
        except (AttributeError, LookupError, OverflowError, ValueError):
            kind, said = node.tag.rsplit(":")[-1], f"{key}: " if key else ""
            raise _refused(node, f"{said}{node.value[:40]!r}, which no {kind} can be,") from None
        return value


def _refused(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_StrictLoader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or first_line(error)
    return f"{problem} in line {mark.line + 1}" if mark else str(problem)
