"""Code blocks of the pages, read by the CommonMark parser that Typer's help comes with.

A fenced block of bash or Python is run, unless it has a title: that names the file that a reader writes it to, whatever
its language. Text with the title "output" is what the block before it prints. All other blocks are only shown.
An indented block has no language, so a command in it would never be run.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from markdown_it import MarkdownIt

REPOSITORY = Path(__file__).parents[2]
RUN = ("bash", "python")

Kind = Literal["fence", "indented", "inline"]


@dataclass(frozen=True)
class Block:
    """A block of `page`, or code within a line; `line` is that of its first line of code, counted from 1."""

    page: str
    line: int
    kind: Kind
    language: str
    title: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        return self.language in RUN and not self.title

    @property
    def is_output(self) -> bool:
        return (self.language, self.title) == ("text", "output")

    @property
    def first(self) -> str:
        return next((line.strip() for line in self.text.splitlines() if line.strip()), "")


def pages() -> list[str]:
    """The README and every page of docs/, in order of their names."""
    return ["README.md", *sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "docs").rglob("*.md"))]


@cache
def blocks(page: str) -> tuple[Block, ...]:
    return parse(page, (REPOSITORY / page).read_text("utf-8"))


def parse(page: str, text: str) -> tuple[Block, ...]:
    found = []
    for token in MarkdownIt("commonmark").parse(text):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "fence":
            language, *rest = shlex.split(token.info) or [""]
            title = next((word.removeprefix("title=") for word in rest if word.startswith("title=")), "")
            found.append(Block(page, line + 1, "fence", language, title, token.content))
        elif token.type == "code_block":
            found.append(Block(page, line, "indented", "", "", token.content))
        elif token.type == "inline":
            code = [child.content for child in token.children or () if child.type == "code_inline"]
            found += [Block(page, line, "inline", "", "", content) for content in code]
    return tuple(found)
