"""Versions of the code in a process: Python, packages, and a digest of this package's source files.

Processes of one search on several machines must compute alike; runtime.py asks them. Knows no Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["DRIVER", "Difference", "differences", "version_reader"]

# Told where there is one; machines without accelerators have none.
DRIVER = "nvidia_driver"

_PACKAGES = (
    "ray",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "numba",
    "optuna",
    "pyarrow",
    "pydicom",
    "python-gdcm",
    "pylibjpeg-openjpeg",
    "pyjpegls",
)
# What changes weights, images or random numbers between minor versions; of the others only files and speed.
_SAME_MINOR = frozenset({"python", "ray", "torch", "torchvision", "numpy"})


class Difference(NamedTuple):
    """A package of which two processes have different versions.

    Attributes:
        matters: whether a search with both is refused.
    """

    name: str
    here: str
    there: str
    matters: bool


def version_reader() -> Callable[[], dict[str, str]]:
    """A function that reads the versions of the process that calls it.

    It is defined in here and imports all that it needs, so that Ray pickles it as a whole: it answers also where
    `ich_ray` is another version, or is missing.
    """
    packages, driver = _PACKAGES, DRIVER

    def read_versions() -> dict[str, str]:
        import hashlib
        import platform
        import re
        from importlib.metadata import PackageNotFoundError, version
        from pathlib import Path

        found = {"python": platform.python_version()}
        try:
            import ich_ray
        except ImportError:
            found["ich_ray"] = "missing"
        else:
            folder, digest = Path(str(ich_ray.__file__)).parent, hashlib.sha256()
            for path in sorted(folder.rglob("*.py")):
                digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
            found["ich_ray"] = f"{ich_ray.__version__} (source {digest.hexdigest()[:12]})"
        for name in packages:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "missing"
        told = Path("/proc/driver/nvidia/version")
        if told.exists() and (number := re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", told.read_text(errors="replace"))):
            found[driver] = number[0]
        return found

    return read_versions


def differences(here: Mapping[str, str], there: Mapping[str, str]) -> list[Difference]:
    """What differs between two processes, but for the driver; what matters comes first."""
    found = []
    for name, version in here.items():
        if name == DRIVER:
            continue
        other = there.get(name, "missing")
        if other != version:
            matters = name == "ich_ray" or (name in _SAME_MINOR and _minor(other) != _minor(version))
            found.append(Difference(name, version, other, matters))
    return sorted(found, key=lambda difference: not difference.matters)


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]
