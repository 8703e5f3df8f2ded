"""What is said of machines that have other code, without a cluster; test_runtime.py asks one that is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import RayError, TaskUnschedulableError, WorkerCrashedError

from ich_ray import machines, progress
from ich_ray.errors import ConfigError
from ich_ray.versions import Difference


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (
            Difference("ich_ray", "0.1.0 (source aaaa)", "0.1.0 (source bbbb)", True),
            "machine 10.0.0.2: ich_ray must be 0.1.0 (source aaaa) as in this process, got 0.1.0 (source bbbb); "
            "install the same there, or send the command there with `ich-ray submit`, which takes this one along",
        ),
        (
            Difference("torch", "2.14.0", "2.13.0", True),
            "machine 10.0.0.2: torch must be 2.14.0 as in this process, got 2.13.0; install the same there",
        ),
    ],
)
def test_a_machine_that_computes_otherwise_is_refused(found: Difference, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        machines._compare("10.0.0.2", [found, Difference("pyarrow", "22.0.0", "21.0.0", False)])
    assert str(caught.value) == told


def test_a_difference_without_an_effect_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    progress.show()
    try:
        machines._compare("10.0.0.2", [])
        machines._compare("10.0.0.2", [Difference("pyarrow", "22.0.0", "21.0.0", False)])
    finally:
        progress.show(False)
    assert capsys.readouterr().err == (
        "machine 10.0.0.2 has other versions, which change no result: pyarrow 21.0.0 (here 22.0.0)\n"
    )


def stand_in(
    nodes: list[dict[str, Any]], here: dict[str, str], answer: Callable[[str], Any], patch: pytest.MonkeyPatch
) -> None:
    """A cluster of these nodes, each of which answers what `answer` says of its id; none will be taken away."""
    patch.setattr(machines, "version_reader", lambda: lambda: here)
    patch.setattr(machines, "on_node", lambda node, _: node)
    patch.setattr("ich_ray.ray_internals.draining_nodes", dict)
    patch.setattr("ray.nodes", lambda: nodes)
    patch.setattr("ray.wait", lambda asked, **_: (asked, []))
    patch.setattr("ray.get", answer)


def test_drivers_that_differ_are_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    drivers = {"10.0.0.1": None, "10.0.0.2": "570.1", "10.0.0.3": "535.2"}
    nodes = [{"NodeID": each, "NodeManagerAddress": each, "Alive": True} for each in drivers]
    told = {
        each: {"torch": "2.14.0"} | ({"nvidia_driver": driver} if driver else {}) for each, driver in drivers.items()
    }
    here = {"torch": "2.14.0", "nvidia_driver": "580.0"}
    stand_in(nodes, here, lambda node: (told[node], ""), monkeypatch)
    progress.show()
    try:
        machines.ask_machines()
        del nodes[2]
        machines.ask_machines()
    finally:
        progress.show(False)
    assert capsys.readouterr().err == "machines have different drivers: 10.0.0.2 570.1, 10.0.0.3 535.2\n"


@pytest.mark.parametrize(
    ("error", "is_there", "refused"),
    [
        (TaskUnschedulableError("gone"), True, ""),
        (WorkerCrashedError(), False, ""),
        (WorkerCrashedError(), True, "machine 10.0.0.2: must answer which versions it has, got WorkerCrashedError; "),
    ],
)
def test_a_machine_that_goes_while_it_is_asked_ends_nothing(
    error: RayError, is_there: bool, refused: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [{"NodeID": f"n{number}", "NodeManagerAddress": f"10.0.0.{number}", "Alive": True} for number in (1, 2)]

    def answer(node: str) -> tuple[dict[str, str], str]:
        if node == "n1":
            return {"torch": "2.14.0"}, ""
        nodes[1]["Alive"] = is_there
        raise error

    stand_in(nodes, {"torch": "2.14.0"}, answer, monkeypatch)
    progress.show()
    try:
        if refused:
            with pytest.raises(ConfigError, match=f"^{refused}"):
                machines.ask_machines()
        else:
            machines.ask_machines()
    finally:
        progress.show(False)
    assert capsys.readouterr().err == (
        "" if refused else "machine 10.0.0.2 went away while it was asked which versions it has\n"
    )


@pytest.mark.parametrize("error", [TaskUnschedulableError("gone"), WorkerCrashedError()])
def test_the_last_machine_must_answer(error: RayError, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"NodeID": "n1", "NodeManagerAddress": "10.0.0.1", "Alive": True}]

    def answer(_: str) -> None:
        nodes[0]["Alive"] = False
        raise error

    stand_in(nodes, {"torch": "2.14.0"}, answer, monkeypatch)
    with pytest.raises(ConfigError, match="must answer which versions it has"):
        machines.ask_machines()


def test_versions_are_told_also_where_the_files_cannot_be_looked_at() -> None:
    def look(name: str) -> str:
        return f"{name}: must be there, got none" if name else ""

    def broken(name: str) -> str:
        raise ModuleNotFoundError(name)

    for function, argument, problem in (
        (look, "", ""),
        (look, "a", "a: must be there, got none"),
        (broken, "a", "must be able to look at its files, got ModuleNotFoundError"),
        (None, None, ""),
    ):
        arguments = () if argument is None else (argument,)
        answer = machines.with_versions(lambda: {"torch": "2.14.0"}, function, arguments)
        assert answer() == ({"torch": "2.14.0"}, problem)
