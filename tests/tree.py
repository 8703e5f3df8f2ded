"""The tree of docs/architecture.md, made of the first line of every module: `python -m tests.tree` writes it anew."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
_BEGIN, _END = "<!-- tree -->\n\n```text\n", "```\n\n<!-- /tree -->"
_CAPTION_AT = 30


def tree() -> str:
    """Every package and module of ich_ray with what it says of itself, packages after the modules beside them."""
    return "".join(_lines(ROOT / "ich_ray", 0))


def _lines(folder: Path, depth: int) -> list[str]:
    inner = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
    lines = [_line(f"{folder.name}/", folder / "__init__.py", depth)]
    lines += [_line(path.name, path, depth + 1) for path in inner]
    for below in sorted(path.parent for path in folder.glob("*/__init__.py")):
        lines += _lines(below, depth + 1)
    return lines


def _line(name: str, module: Path, depth: int) -> str:
    caption = (ast.get_docstring(ast.parse(module.read_text())) or "").partition("\n")[0]
    return f"{'  ' * depth + name:{_CAPTION_AT}} {caption}".rstrip() + "\n"


def written() -> str:
    """The tree that the page holds."""
    return PAGE.read_text().partition(_BEGIN)[2].partition(_END)[0]


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(_BEGIN)
    PAGE.write_text(before + _BEGIN + tree() + _END + rest.partition(_END)[2])
