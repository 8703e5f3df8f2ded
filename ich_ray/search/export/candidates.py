"""The trials of a search as a space that lists them, so that another search draws the same ones."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from ich_ray.errors import ConfigError
from ich_ray.search.space.parameter_sets import PARAMETER_SETS
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.storage import write_bytes
from ich_ray.storage.strict_yaml import parse_yaml

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upath import UPath

    from ich_ray.results import SearchResult
    from ich_ray.search.space.parameter_sets import ParameterSet
    from ich_ray.trial_records import Parameter, TrialResult

__all__ = ["write_candidates"]

# What a space says beside its trials. Limits are left out: they refuse draws, and what is listed was drawn.
_KEPT = ("name", "objective", "budget", "searches")


def write_candidates(found: SearchResult, file: UPath) -> str:
    """Write all trials in the order of their numbers, each once, as a list has nothing twice.

    Returns:
        The command that runs them, with how many were left out.

    Raises:
        ConfigError: there are none.
        SpaceError: no space could list one of them.
    """
    if not found.trials:
        raise ConfigError(f"--candidates: a list needs at least one trial, got none in {found.files.root}")
    space: dict[str, Any] = {key: found.record.space[key] for key in _KEPT if key in found.record.space}
    listed = _once(found.trials, PARAMETER_SETS[space.get("searches", "network")])
    text = _written(space, listed)
    parse_space(parse_yaml(text), file.name)
    write_bytes(file, text.encode())
    repeated = len(found.trials) - len(listed)
    left_out = (
        f"  # without {repeated} trial{'s that repeat' if repeated > 1 else ' that repeats'} earlier ones"
        if repeated
        else ""
    )
    asked = f"--space {shlex.quote(str(file))}"
    if space.get("searches") == "sequence":
        return f"ich-ray sequence SEARCH {asked}{left_out}"
    return f"ich-ray search DATASET {asked} --out NEW_SEARCH --seed {found.record.seed}{left_out}"


def _once(trials: Sequence[TrialResult], drawn: ParameterSet) -> list[dict[str, Parameter]]:
    """The parameters of trials without those that are the same as earlier ones, once defaults are filled in."""
    defaults = {name: field.default for name, field in drawn.fields().items()}
    names = dict.fromkeys(name for trial in trials for name in trial.parameters)
    first: dict[tuple[Any, ...], dict[str, Parameter]] = {}
    for trial in trials:
        whole = tuple(trial.parameters.get(name, defaults.get(name)) for name in names)
        first.setdefault(whole, dict(trial.parameters))
    return [*first.values()]


def _written(space: dict[str, Any], listed: list[dict[str, Parameter]]) -> str:
    """A line a trial. Values as JSON, which is YAML in which no text can be taken for a number."""
    head = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in space.items()]
    trials = [f"  - {json.dumps(parameters, ensure_ascii=False)}" for parameters in listed]
    return "\n".join([*head, "candidates:", *trials, ""])
