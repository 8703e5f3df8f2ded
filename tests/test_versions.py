from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from ray import cloudpickle

import ich_ray
from ich_ray.versions import Difference, differences, version_reader

HERE = {"python": "3.11.7", "ich_ray": "0.1.0 (source aaaa)", "torch": "2.14.0", "numpy": "2.1.3", "pyarrow": "22.0.0"}


@pytest.mark.parametrize(
    ("name", "there", "matters"),
    [
        ("ich_ray", "0.1.0 (source bbbb)", True),
        ("ich_ray", "missing", True),
        ("python", "3.12.7", True),
        ("python", "3.11.9", False),
        ("torch", "2.15.0", True),
        ("torch", "2.14.1+cu130", False),
        ("numpy", "2.2.3", True),
        ("pyarrow", "21.0.0", False),
    ],
)
def test_what_may_change_results_matters(name: str, there: str, matters: bool) -> None:
    assert differences(HERE, {**HERE, name: there}) == [Difference(name, HERE[name], there, matters)]


def test_equal_versions_do_not_differ_and_what_matters_comes_first() -> None:
    assert differences(HERE, dict(HERE)) == []
    other = {**HERE, "python": "3.11.9", "torch": "2.0.0"}
    del other["pyarrow"]
    assert [(each.name, each.there) for each in differences(HERE, other)] == [
        ("torch", "2.0.0"),
        ("python", "3.11.9"),
        ("pyarrow", "missing"),
    ]


def test_the_versions_of_this_process_are_those_of_its_packages() -> None:
    found = version_reader()()
    assert (found["python"], found["torch"]) == (platform.python_version(), version("torch"))
    assert found["ich_ray"].startswith(f"{ich_ray.__version__} (source ")
    assert len(found["ich_ray"].split()[-1]) == 12 + 1


def test_it_is_read_where_this_package_is_missing_or_another_one(tmp_path: Path) -> None:
    for name, source in (("broken", "raise ImportError\n"), ("other", '__version__ = "0.0.1"\n')):
        (tmp_path / name / "ich_ray").mkdir(parents=True)
        (tmp_path / name / "ich_ray" / "__init__.py").write_text(source)
    (tmp_path / "question").write_bytes(cloudpickle.dumps(version_reader()))
    code = (
        "import pickle, sys\n"
        "read = pickle.load(open('question', 'rb'))\n"
        "for name in ('broken', 'other'):\n"
        "    sys.path.insert(0, name)\n"
        "    print(read()['ich_ray'])\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    first, second = said.splitlines()
    assert first == "missing"
    assert second.startswith("0.0.1 (source ")


def test_one_letter_in_one_file_makes_another_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "__init__.py").write_text("")
    file = tmp_path / "below" / "module.py"
    monkeypatch.setattr(ich_ray, "__file__", str(tmp_path / "__init__.py"))
    found = []
    for text in ("a = 1\n", "a = 2\n", "a = 1\n"):
        file.write_text(text)
        found.append(version_reader()()["ich_ray"])
    assert found[0] == found[2] != found[1]
