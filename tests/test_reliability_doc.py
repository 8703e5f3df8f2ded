"""docs/reliability.md says what was tried, and each of its rows names a test that is there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
ROWS = [
    line.strip("| ").split(" | ")
    for line in (REPOSITORY / "docs" / "reliability.md").read_text().splitlines()
    if line.startswith("| ") and "::" in line
]


def test_there_are_rows_and_none_is_without_a_test() -> None:
    lines = (REPOSITORY / "docs" / "reliability.md").read_text().splitlines()
    tables = [line for line in lines if line.startswith("|") and not line.startswith("|---")]
    heads = sum(line.startswith("|---") for line in lines)
    assert len(ROWS) == len(tables) - heads >= 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_names_a_test_that_exists(row: list[str]) -> None:
    named = row[-1].strip("`")
    file, _, test = named.partition("::")
    nodes = ast.walk(ast.parse((REPOSITORY / file).read_text()))
    assert test in {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
