from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer

from ich_ray.verbs.plugins import FLAGS, Flags, with_flags

SAID: list[tuple[object, ...]] = []


def greet(name: str, loud: Annotated[bool, typer.Option("--loud")] = False) -> None:
    """Say a name."""
    SAID.append(("greet", name, loud))


def count(name: str, times: Annotated[int | None, typer.Option("--times", help="How often.")] = None) -> None:
    SAID.append(("count", name, times))


def spell(name: str, loud: bool, letters: Annotated[bool, typer.Option("--letters")] = False) -> None:
    SAID.append(("spell", name, loud, letters))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["greet", "Ann"], ("greet", "Ann", False)),
        (["greet", "Ann", "--loud"], ("greet", "Ann", True)),
        (["greet", "Ann", "--times", "3"], ("count", "Ann", 3)),
        (["greet", "Ann", "--letters", "--loud"], ("spell", "Ann", True, True)),
        (["other", "Ann"], ("greet", "Ann", False)),
    ],
)
def test_a_flag_from_outside_does_its_own_thing(
    arguments: list[str], said: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FLAGS, "registered", {})  # for this test alone
    FLAGS.register("times", Flags("greet", count))
    FLAGS.register("letters", Flags("greet", spell))
    app = typer.Typer()
    for name in ("greet", "other"):
        app.command(name)(with_flags(name, greet))
    SAID.clear()
    app(args=arguments, standalone_mode=False)
    assert [said] == SAID


def test_an_installed_package_adds_a_verb_and_a_flag(tmp_path: Path) -> None:
    (tmp_path / "ich_hello.py").write_text(
        "from typing import Annotated\nimport typer\nfrom ich_ray.terminal import print_line\n"
        "from ich_ray.verbs.plugins import Flags\n"
        "def hello(name: str) -> None:\n    print_line(f'hello {name}')\n"
        "def count(folder: str, states: Annotated[bool, typer.Option('--states')] = False) -> None:\n"
        "    print_line(f'states of {folder}')\n"
        "STATES = Flags('results', count)\n"
    )
    info = tmp_path / "ich_hello-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ich-hello\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[ich_ray.verbs]\nhello = ich_hello:hello\n[ich_ray.flags]\nstates = ich_hello:STATES\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])

    def said(*arguments: str) -> str:
        command = [sys.executable, "-m", "ich_ray.cli", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
        ).stdout

    assert said("hello", "Ann") == "hello Ann\n"
    assert said("results", "here", "--states") == "states of here\n"


def test_a_broken_package_is_named_and_costs_nothing_else(tmp_path: Path) -> None:
    info = tmp_path / "ich_broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ich-broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[ich_ray.verbs]\nbad = ich_absent:x\n[ich_ray.flags]\nworse = ich_absent:y\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    found = subprocess.run(
        [sys.executable, "-m", "ich_ray.cli", "--version"],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert found.stdout.startswith("ich-ray ")
    assert found.stderr.splitlines() == [
        f"ich-ray: {kind}: the package that registers {name} must be importable, got ModuleNotFoundError: No module "
        "named 'ich_absent'; correct it, or uninstall it"
        for kind, name in (("flags", "worse"), ("verbs", "bad"))
    ]
