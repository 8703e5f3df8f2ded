"""The real slices, which are not part of the repository: tests that need them skip without them."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

_DEFAULT = Path(__file__).parents[2].parent / "shared" / "data"


def _folder() -> Path:
    return Path(os.environ.get("ICH_RAY_REAL_DATA", _DEFAULT))


def real_data() -> Path:
    """The folder with `rsna-mini` and `rsna-labels`."""
    folder = _folder()
    if not (folder / "rsna-mini").is_dir():
        pytest.skip("no real slices: set ICH_RAY_REAL_DATA to the folder that holds rsna-mini")
    return folder


def real_slices() -> list[Path]:
    return sorted((real_data() / "rsna-mini" / "stage_2_train").glob("*.dcm"))


def kuberay_schema() -> dict[str, Any]:
    """What KubeRay takes for a `RayJob`, unknown keys forbidden."""
    path = _folder() / "kuberay" / "rayjob-v1.schema.json.gz"
    if not path.is_file():
        pytest.skip("no schema of KubeRay: set ICH_RAY_REAL_DATA to the folder that holds kuberay")
    schema: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return schema
