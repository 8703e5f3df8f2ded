"""The real slices, which are not part of the repository: tests that need them skip without them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_DEFAULT = Path(__file__).parents[2].parent / "shared" / "data"


def real_data() -> Path:
    """The folder with `rsna-mini` and `rsna-labels`."""
    folder = Path(os.environ.get("ICH_RAY_REAL_DATA", _DEFAULT))
    if not (folder / "rsna-mini").is_dir():
        pytest.skip("no real slices: set ICH_RAY_REAL_DATA to the folder that holds rsna-mini")
    return folder


def real_slices() -> list[Path]:
    return sorted((real_data() / "rsna-mini" / "stage_2_train").glob("*.dcm"))
