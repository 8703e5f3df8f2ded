"""What a reader of any page has: the folder that the tutorial leaves, made once by its own commands.

A search knows its dataset by an absolute path, so every page is followed at the path where the tutorial was, on a copy.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from tests.docs.blocks import Block
from tests.docs.reader import BlockFailed, Reader, clone
from tests.docs.unrun import followed

TUTORIAL = "docs/tutorial.md"


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of a run share."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if base.name.startswith("popen-") else base) / "docs"


def follow_after_tutorial(page: Sequence[Block], base: Path) -> None:
    """Follow a page on a copy of the folder that the tutorial leaves, which the first one makes.

    Raises:
        BlockFailed: what a block of the page, or of the tutorial, did in place of what it says.
    """
    made, here, failed = base / "made", base / "here", base / "failed"
    with _alone(base):
        if failed.exists():
            raise BlockFailed(f"the tutorial failed before:\n{failed.read_text()}")
        if not made.exists():
            clone(here / "reader")
            try:
                _follow(followed(TUTORIAL), here)
            except BlockFailed as error:
                failed.write_text(str(error))
                raise
            here.rename(made)
        if page:
            subprocess.run(["/bin/cp", "-aT", "--reflink=auto", str(made), str(here)], check=True)
            _follow(page, here)


def _follow(page: Sequence[Block], here: Path) -> None:
    with Reader(here / "reader", here / "home") as reader:
        reader.follow(page)


@contextmanager
def _alone(base: Path) -> Iterator[None]:
    base.mkdir(parents=True, exist_ok=True)
    with FileLock(base / "lock"):
        shutil.rmtree(base / "here", ignore_errors=True)  # of the page before
        yield
