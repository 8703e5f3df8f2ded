"""The Pythons that pyproject.toml names: each gets wheels for every dependency, and lint and types hold on the newest.

`make check` lints and types for the oldest.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
PLATFORMS = ["x86_64-manylinux_2_28", "aarch64-manylinux_2_28"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, timeout=280, check=False)


def test_pyproject_and_the_readme_name_the_same_pythons() -> None:
    classifiers = PROJECT["project"]["classifiers"]
    prefix = "Programming Language :: Python :: "
    assert [name.removeprefix(prefix) for name in classifiers if name.startswith(prefix)] == PYTHONS
    assert PROJECT["project"]["requires-python"] == ">=3.11,<3.15"
    assert (PROJECT["tool"]["ruff"]["target-version"], PROJECT["tool"]["mypy"]["python_version"]) == ("py311", "3.11")
    assert "Python 3.11 to 3.14" in (REPOSITORY / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_has_a_wheel_at_its_pinned_version(python: str, platform: str) -> None:
    # pip cannot tell: for another Python it takes the right wheels but the wrong markers.
    if importlib.util.find_spec("uv") is None:
        pytest.skip("uv is not installed")
    from uv import find_uv_bin

    resolved = run(
        *(find_uv_bin(), "pip", "compile", "pyproject.toml", "--quiet", "--no-annotate", "--no-header"),
        *("--extra", "dev", "--extra", "mlflow", "--constraint", "constraints.txt", "--only-binary", ":all:"),
        *("--python", sys.executable, "--python-version", python, "--python-platform", platform),
    )
    if resolved.returncode != 0 and "Failed to fetch" in resolved.stderr:
        pytest.skip("no package registry answers")
    assert resolved.returncode == 0, resolved.stderr
    found = dict(line.split("==") for line in resolved.stdout.splitlines() if re.match(r"[\w.-]+==", line))
    pinned = dict(line.lower().split("==") for line in (REPOSITORY / "constraints.txt").read_text().split())
    for name in ("torch", "ray", "numba", "pyarrow", "python-gdcm", "pylibjpeg-openjpeg"):
        assert found[name] == pinned[name]
    assert ("pyjpegls" in found) == (python != "3.14")


@pytest.mark.slow
def test_types_hold_on_the_newest(tmp_path: Path) -> None:  # on the oldest: `make check`
    checked = run(sys.executable, "-m", "mypy", "--python-version", PYTHONS[-1], "--cache-dir", str(tmp_path))
    assert checked.returncode == 0, checked.stdout


def test_lint_holds_on_the_newest() -> None:
    # UP asks for the syntax of the newest, which the oldest does not have.
    options = ("--no-cache", "--target-version", f"py{PYTHONS[-1].replace('.', '')}", "--ignore", "UP")
    checked = run(sys.executable, "-m", "ruff", "check", *options, ".")
    assert checked.returncode == 0, checked.stdout
