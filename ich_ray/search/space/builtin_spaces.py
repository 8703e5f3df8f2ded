"""The search spaces that come with the package."""

from __future__ import annotations

from pathlib import Path

from ich_ray.errors import ConfigError

__all__ = ["builtin_space"]


def builtin_space(name: str) -> Path:
    """The search space `name` that comes with the package, such as `demo` or `default`."""
    package = Path(__file__).parents[2]
    for folder in (package / "search_spaces", package.parent / "search_spaces"):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise ConfigError(f"{name}: a search space of this package must be named, got none of that name")
