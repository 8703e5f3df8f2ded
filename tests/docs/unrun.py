"""Which blocks of a page are run: all of bash and Python, but for those that unrun.yaml lists with a reason."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from tests.docs.blocks import Block, blocks, pages


@dataclass(frozen=True)
class Unrun:
    """A block of bash or Python that nothing runs, known by how its first line begins."""

    page: str
    starts: str
    reason: str

    def means(self, block: Block) -> bool:
        return block.page == self.page and block.is_run and block.first.startswith(self.starts)


@cache
def listed() -> tuple[Unrun, ...]:
    return tuple(
        Unrun(page, entry["starts"], entry["reason"])
        for page, entries in _file().items()
        for entry in entries.get("blocks", ())
    )


def unrun_pages() -> dict[str, str]:
    """Pages of which nothing is run, with the reason."""
    return {page: entries["page"] for page, entries in _file().items() if "page" in entries}


def followed(page: str) -> list[Block]:
    """What a reader of a page writes and runs, in order."""
    return [block for block in blocks(page) if block.title or (block.is_run and not is_listed(block))]


def is_listed(block: Block) -> bool:
    return any(entry.means(block) for entry in listed())


def followed_pages() -> list[str]:
    """Pages with something to run; the others cost nothing."""
    return [page for page in pages() if any(block.is_run for block in followed(page))]


@cache
def _file() -> dict[str, dict]:
    return yaml.safe_load(Path(__file__).with_name("unrun.yaml").read_text("utf-8"))
