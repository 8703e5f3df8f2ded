"""The precision that all accelerators of a cluster share."""

from __future__ import annotations

import sys
from types import SimpleNamespace
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
        stdout = "8 6 1000\n"

    def run(command: list[str], **keys: Any) -> Told:
        asked.update(command=command, **keys)
        return Told()

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as Ray sets it for a task without a GPU
    monkeypatch.setattr(accelerators.subprocess, "run", run)
    assert least_capability() == (8, 6)
    assert accelerators._least() == (8, 6, 1000)
    assert asked["command"] == [sys.executable, "-c", accelerators._ASK]
    assert "CUDA_VISIBLE_DEVICES" not in asked["env"]


@pytest.mark.parametrize(("found", "told"), [([], "0 0 0"), ([(8, 6), (7, 5), (9, 0)], "7 5 100")])
def test_the_least_of_its_devices(
    found: list[tuple[int, int]], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found[device])
    properties = [SimpleNamespace(total_memory=memory) for memory in (200, 100, 300)]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties[device])
    exec(accelerators._ASK, {})  # noqa: S102
    assert capsys.readouterr().out.strip() == told


@pytest.mark.parametrize(
    ("seen", "listed", "least"),
    [
        (24_000, "GPU 0: NVIDIA A10G (UUID: GPU-1)\n", 24_000),
        (
            20_937_965_568,  # a process sees one slice alone
            "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-1)\n"
            "  MIG 3g.20gb     Device  0: (UUID: MIG-1)\n"
            "  MIG 1g.5gb      Device  1: (UUID: MIG-2)\n"
            "  MIG 1c.2g.10gb  Device  2: (UUID: MIG-3)\n",
            5 * 10**9,
        ),
        (0, "GPU 0: NVIDIA A10G (UUID: GPU-1)\n", 0),  # a GPU that PyTorch does not see
    ],
)
def test_the_smallest_slice_of_a_machine_counts(
    seen: int, listed: str, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listing is as `nvidia-smi -L` of a machine with MIG prints it; no such machine was at hand."""
    monkeypatch.setattr(accelerators, "_least", lambda: (8, 0, seen))
    monkeypatch.setattr(accelerators.shutil, "which", lambda _: "nvidia-smi")
    monkeypatch.setattr(accelerators.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=listed))
    assert accelerators.least_memory() == least


def test_a_machine_that_does_not_answer_has_told_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(asked: str) -> int:
        if asked == "broken":
            raise accelerators.ray.exceptions.RayError("planted")
        return 7

    monkeypatch.setattr(accelerators, "on_node", lambda node, _: node)
    monkeypatch.setattr(accelerators.ray, "wait", lambda asked, **_: (["good", "broken"], ["late"]))
    monkeypatch.setattr(accelerators.ray, "get", get)
    assert accelerators.device_memories(["good", "broken", "late"]) == {"good": 7, "broken": 0, "late": 0}
