"""Programs that others wrote against this package, which are not part of the repository: tests of them skip without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_DEFAULT = Path(__file__).parents[1].parent / "shared" / "cases"


def shared_case(name: str) -> Path:
    """The program `name`, such as `sick_worker.py`."""
    program = Path(os.environ.get("ICH_RAY_CASES", _DEFAULT)) / name
    if not program.is_file():
        pytest.skip(f"no {name}: set ICH_RAY_CASES to the folder that holds it")
    return program
