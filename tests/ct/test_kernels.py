"""Where compiled loops are kept; what they compute is in test_windowing.py."""

from __future__ import annotations

import stat
from pathlib import Path

import numba
import pytest
from numba.core import caching

from ich_ray.ct import kernels
from ich_ray.storage import private


def doubled(number: int) -> int:
    return 2 * number


def test_a_read_only_installation_of_a_user_without_a_home_has_a_private_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private, "_TMP", tmp_path)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    # numba's other locators find the folder of this file, or that of the user's home.
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [caching.UserProvidedCacheLocator])
    assert kernels._compiled(doubled)(21) == 42
    (own,) = tmp_path.iterdir()
    assert stat.S_IMODE((own / "numba").stat().st_mode) == 0o700, "what lies there is run"
    assert [*own.rglob("*.nbi")] != []
