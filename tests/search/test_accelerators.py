"""The precision that all accelerators of a cluster share."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from ray.exceptions import RayError

from ich_ray import progress
from ich_ray.errors import IchRayError
from ich_ray.search import accelerators
from ich_ray.search.accelerators import common_precision, least_capability


@pytest.mark.parametrize(
    ("machines", "precision"),
    [
        ([(8, 0)], "bfloat16 channels_last"),
        ([(9, 0), (8, 6)], "bfloat16 channels_last"),
        ([(9, 0), (7, 5)], "float32"),  # what one of them cannot, no trial does
        ([(0, 0)], "float32"),  # a GPU that PyTorch does not see
        ([(9, 0), (0, 0), (8, 0)], "bfloat16 channels_last"),  # which is lost to trials, and no reason for others
        ([(9, 0), RayError("no driver")], "bfloat16 channels_last"),
    ],
)
def test_the_least_machine_decides(
    machines: list[Any], precision: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(machines, monkeypatch)
    progress.show()
    try:
        assert common_precision(0.5) == precision
    finally:
        progress.show(False)
    told = [f"machine 10.0.0.{number}: PyTorch must see" for number, one in enumerate(machines) if one not in SOUND]
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" its GPUs")[0] for line in said] == told


def test_where_no_machine_tells_the_search_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    plant([RayError("no driver")], monkeypatch)
    with pytest.raises(IchRayError, match="GPU: a machine must tell the capability of its own, got none that does"):
        common_precision(1)


SOUND = [(8, 0), (9, 0), (8, 6), (7, 5)]


def plant(machines: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines with accelerators of these capabilities, or with an error in the place of an answer."""
    nodes = [
        {"NodeID": "head", "Alive": True, "Resources": {"CPU": 8.0}},
        {"NodeID": "gone", "Alive": False, "Resources": {"GPU": 1.0}},
        *(
            {"NodeID": number, "NodeManagerAddress": f"10.0.0.{number}", "Alive": True, "Resources": {"GPU": 1.0}}
            for number in range(len(machines))
        ),
    ]

    def get(asked: Any) -> Any:
        if isinstance(asked, RayError):
            raise asked
        return asked

    monkeypatch.setattr(accelerators.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(accelerators.ray, "get", get)
    monkeypatch.setattr(accelerators, "on_node", lambda node, _: machines[node])


def test_where_trials_have_no_gpu_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators.ray, "nodes", lambda: pytest.fail("nobody need ask"))
    assert common_precision(0) == "float32"


def test_a_machine_tells_of_all_its_devices_whatever_ray_shows_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Told:
        stdout = "8 6\n"

    def run(command: list[str], **keys: Any) -> Told:
        asked.update(command=command, **keys)
        return Told()

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as Ray sets it for a task without a GPU
    monkeypatch.setattr(accelerators.subprocess, "run", run)
    assert least_capability() == (8, 6)
    assert asked["command"] == [sys.executable, "-c", accelerators._ASK]
    assert "CUDA_VISIBLE_DEVICES" not in asked["env"]


@pytest.mark.parametrize(("found", "told"), [([], "0 0"), ([(8, 6), (7, 5), (9, 0)], "7 5")])
def test_the_least_of_its_devices(
    found: list[tuple[int, int]], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found[device])
    exec(accelerators._ASK, {})  # noqa: S102
    assert capsys.readouterr().out.strip() == told
