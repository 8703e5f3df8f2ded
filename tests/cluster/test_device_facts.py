"""Devices asked in processes of their own; the script itself computes on the CPU here."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ich_ray.cluster import device_facts, device_kernel
from ich_ray.cluster.device_facts import DeviceFacts, ask_devices


def test_a_device_that_computes_as_the_cpu_does_tells_its_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_kernel, "_WARM_S", 0.0)
    monkeypatch.setattr(device_kernel, "_CALLS", 1)
    told = device_kernel.compute("cpu")
    assert told.keys() == {"tflops"}
    assert told["tflops"] > 0


@pytest.mark.parametrize(
    ("planted", "told"),
    [
        (lambda *_: torch.zeros(1024, 1024), "another product in "),
        (
            lambda *_: torch.AcceleratorError("CUDA error: an illegal memory access\nmore"),
            "AcceleratorError: CUDA error",
        ),
    ],
)
def test_a_device_that_computes_something_else_is_found(
    planted: Any, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in the first product, which is the device's."""
    right, calls = torch.Tensor.__matmul__, []

    def product(left: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        calls.append(left)
        answer = planted() if len(calls) == 1 else right(left, other)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    found = device_kernel.compute("cpu")
    assert found["problem"].startswith(told)
    assert "\n" not in found["problem"]


def test_a_device_that_is_full_is_not_called_sick(monkeypatch: pytest.MonkeyPatch) -> None:
    def product(*_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    assert device_kernel.compute("cpu") == {"full": True}


def run_with(*devices: dict[str, Any]) -> tuple[Any, list[tuple[tuple[str, ...], str | None]]]:
    """A machine with these devices, and what its processes were asked and shown."""
    asked: list[tuple[tuple[str, ...], str | None]] = []

    def run(arguments: Sequence[str], visible: str | None) -> dict[str, Any]:
        asked.append((tuple(arguments), visible))
        if not arguments:
            return {"count": len(devices), "cuda": "13.0"}
        return devices[int(visible or 0) % len(devices)]

    return run, asked


GOOD = {"name": "H200", "memory_bytes": 1 << 37, "tflops": 50.0}


@pytest.mark.parametrize(
    ("shown", "is_of_ray", "numbers"),
    [(None, False, ["0", "1"]), ("", True, ["0", "1"]), ("4,5", True, ["4", "5"]), ("5", False, ["5"])],
)
def test_each_device_has_a_process_that_sees_no_other(
    shown: str | None, is_of_ray: bool, numbers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    run, asked = run_with(*[GOOD] * len(numbers))
    found = ask_devices(is_of_ray, run)
    assert sorted(asked[1:]) == [(("cuda:0",), number) for number in numbers]
    assert [device.number for device in found.found] == numbers
    assert found.cuda == "13.0"


def test_a_sick_device_leaves_the_others_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    run, _ = run_with(GOOD, {"problem": "AcceleratorError: CUDA error: uncorrectable ECC error encountered"})
    sound, sick = ask_devices(run=run).found
    assert sound == DeviceFacts(number="0", **GOOD)
    assert sick.problem.endswith("ECC error encountered")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("print('loading', flush=True); print('{\"count\": 2}')", {"count": 2}),
        ("import time; time.sleep(600)", {"problem": "nothing within 1 s"}),
        ("import sys; sys.exit('no driver')", {"problem": "a process that ended with 1: no driver"}),
        ("import os, signal; os.kill(os.getpid(), signal.SIGBUS)",
         {"problem": f"a process that ended with {-signal.SIGBUS}"}),
    ],
)  # fmt: skip
def test_a_process_that_hangs_or_dies_is_an_answer(
    source: str, told: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kernel.py").write_text(source)
    monkeypatch.setattr(device_kernel, "__file__", str(tmp_path / "kernel.py"))
    if "sleep" in source:
        monkeypatch.setattr(device_facts, "_SURVEY_WITHIN_S", 1.0)
    assert device_facts._run((), None) == told


def test_what_the_driver_has_against_devices_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "[1.0] NVRM: Xid (PCI:0000:65:00): 79, pid=1, GPU has fallen off the bus.\\n[2.0] eth0: up\\n"
    planted = {"nvidia-smi": r"0, 0\n1, 10\n2, [N/A]\n", "dmesg": lines * 2}
    for name, text in planted.items():
        (tmp_path / name).write_text(f"#!/bin/sh\nprintf '{text}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device_facts._hints() == ("10 uncorrected ECC errors of GPU 1", "2 x Xid 79 of PCI:0000:65:00")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (said,) = device_facts._hints()
    assert said.startswith("no answer of nvidia-smi, ")
    os.remove(tmp_path / "nvidia-smi")
    assert device_facts._hints() == ()
