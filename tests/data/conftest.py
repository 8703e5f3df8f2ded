from __future__ import annotations

from collections.abc import Iterator

import pytest

from ich_ray.runtime import connected


@pytest.fixture(scope="module")
def own_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray of two CPUs for the tests of a module, and a key of pseudonyms that nobody else has."""
    patch = pytest.MonkeyPatch()
    patch.setenv("ICH_RAY_KEY_FILE", str(tmp_path_factory.mktemp("config") / "key"))
    with connected(cpus=2):
        yield
    patch.undo()
