"""docs/extending.md shows the files of tests/extending as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "ich_ray"
DOC = (REPOSITORY / "docs/extending.md").read_text()
SHOWN = dict(re.findall(r"`tests/extending/(test_\w+\.py)`:\n\n```python\n(.*?)```\n", DOC, re.DOTALL))
FILES = sorted(path for path in (REPOSITORY / "tests/extending").glob("test_*.py"))


def test_docs_show_these_files() -> None:
    assert sorted(SHOWN) == [path.name for path in FILES]
    assert len(FILES) == 8


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_stands_there_as_it_is_and_is_short(path: Path) -> None:
    assert SHOWN[path.name] == path.read_text(), "copy the file into docs/extending.md"
    assert len(path.read_text().splitlines()) < 60


def test_every_registry_stands_there() -> None:
    source = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    kinds = set(re.findall(r'= Registry\(\s*"(\w+)"', source))
    assert set(re.findall(r"`ich_ray\.(\w+)`", DOC)) == kinds
    assert "architectures" in kinds


def test_every_path_in_it_exists() -> None:
    named = re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", DOC)
    assert len(named) > 15
    assert [name for name in named if not ((REPOSITORY / name).exists() or (PACKAGE / name).exists())] == []
