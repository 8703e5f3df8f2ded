"""What a search space file may say: its keys, and the parameters that it may vary, with ranges and defaults."""

from __future__ import annotations

from documentation.fields import Fields
from ich_ray.model.hyperparameters import GROUPS, Hyperparameters
from ich_ray.model.sequence_parameters import SequenceParameters
from ich_ray.search.space.constraints import Constraints
from ich_ray.search.space.space import Budget
from ich_ray.search.space.yaml_file import SpaceFile
from ich_ray.trial_records import Objective

__all__ = ["file", "hyperparameters", "sequence_parameters"]

_WITHIN = {"objective": Objective, "budget": Budget, "constraints": Constraints}


def file() -> str:
    """A table of the file's own keys, and one each of the mappings within."""
    parts = [f"### `{key}`\n\n{Fields(kind).table()}" for key, kind in _WITHIN.items()]
    return "\n".join([Fields(SpaceFile).table(), *parts])


def hyperparameters() -> str:
    """A table a group."""
    fields = Fields(Hyperparameters)
    parts = [f"### Group {group}\n\n{fields.table(record.model_fields)}" for group, record in GROUPS.items()]
    return "\n".join(parts)


def sequence_parameters() -> str:
    return Fields(SequenceParameters).table()
