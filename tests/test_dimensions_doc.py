"""docs/dimensions.md has a row for every hyperparameter, with its default."""

from __future__ import annotations

import re
from pathlib import Path

from ich_ray.model.hyperparameters import Hyperparameters

PAGE = Path(__file__).parents[1] / "docs" / "dimensions.md"


def rows() -> dict[str, str]:
    """The column of values by each name of the first."""
    table = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return {name: cells[1] for cells in table for name in re.findall(r"`(\w+)`", cells[0])}


def test_every_hyperparameter_has_a_row_and_no_other() -> None:
    assert rows().keys() == Hyperparameters.model_fields.keys()


def test_each_row_ends_with_the_default() -> None:
    for name, values in rows().items():
        default = Hyperparameters.model_fields[name].default
        said = values.rpartition("; ")[2].replace("`", "").replace(" none", "0")
        assert str(default).lower().removesuffix(".0") in said.split(", "), (name, said)
