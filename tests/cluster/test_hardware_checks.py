"""Devices as machines tell of them: who computes wrongly, who is slow, who is another."""

from __future__ import annotations

from typing import Any

import pytest

from ich_ray.cluster.device_facts import DeviceFacts, Devices
from ich_ray.cluster.hardware_checks import check_devices
from ich_ray.cluster.machine_facts import Facts

GIB = 1 << 30


def device(number: str, **changes: Any) -> DeviceFacts:
    return DeviceFacts(**{"number": number, "name": "H200", "memory_bytes": 140 * GIB, "tflops": 50.0, **changes})


def machine(name: str, *devices: DeviceFacts, driver: str = "570.1", **changes: Any) -> Facts:
    return Facts(
        machine=name,
        versions={"nvidia_driver": driver} if driver else {},
        gpus=len(devices),
        devices=Devices(seen=len(devices), found=devices, **{"cuda": "13.0", **changes}),
    )


SOUND = (device("0"), device("1"))


def test_sound_devices_are_counted_by_kind() -> None:
    machines = [
        machine("head", driver="", cuda="13.0"),
        machine("a", *SOUND),
        machine("b", *SOUND, device("2", name="L4", memory_bytes=22 * GIB, tflops=9.0)),
    ]
    assert [str(each) for each in check_devices(machines)] == [
        "ok      gpus      torch sees 5: 4 x H200 (140 GiB), 1 x L4 (22 GiB)"
    ]


def test_a_machine_that_does_not_answer_leaves_the_others_compared() -> None:
    hung = machine("c").model_copy(update={"unanswered": {"gpus": "nothing within 195 s"}, "gpus": 2.0})
    told = [*check_devices([machine("a", *SOUND), machine("b", device("0"), device("1", tflops=20.0)), hung])]
    assert [(each.state, each.machines) for each in told] == [("warning", ("b",)), ("ok", ())]


@pytest.mark.parametrize(
    ("odd", "state", "found"),
    [
        (
            machine("b", device("0"), device("1", problem="AcceleratorError: CUDA error: unspecified launch failure")),
            "error",
            "b: GPU 1 (H200) must compute a small matmul and a sum as the CPU does, got AcceleratorError: CUDA error: "
            "unspecified launch failure",
        ),
        (
            machine("b", device("0"), device("1", name="", tflops=0.0, problem="nothing within 60 s")),
            "error",
            "b: GPU 1 must compute a small matmul and a sum as the CPU does, got nothing within 60 s",
        ),
        (
            machine("b", device("0"), device("1", tflops=20.0)),
            "warning",
            "b: GPU 1 (H200) should be as fast as others of its kind (50.0 TFLOPS), got 20.0",
        ),
        (
            machine("b", device("0"), device("1", tflops=0.0, is_full=True)),
            "warning",
            "b: GPU 1 (H200) should have room for a trial, got no room for 16 MB",
        ),
        (
            machine("b", *SOUND, driver="535.2"),
            "warning",
            "driver should be the same everywhere, got 570.1 but b 535.2",
        ),
        (
            machine("b", *SOUND, cuda="12.6"),
            "warning",
            "CUDA that torch was built for should be the same everywhere, got 13.0 but b 12.6",
        ),
        (
            machine("b", *SOUND, hints=("2 x Xid 79 of PCI:0000:65:00",)),
            "warning",
            "b: its driver should have nothing to complain of, got 2 x Xid 79 of PCI:0000:65:00",
        ),
    ],
)
def test_an_odd_device_is_named_with_its_machine(odd: Facts, state: str, found: str) -> None:
    told = [each for each in check_devices([machine("a", *SOUND), odd, machine("c", *SOUND)]) if each.state != "ok"]
    assert [(each.state, each.found, each.machines) for each in told] == [(state, found, ("b",))]
    assert told[0].remedy


def test_speeds_of_different_kinds_are_not_compared() -> None:
    slices = (device("0", memory_bytes=18 * GIB, tflops=7.0), device("1", memory_bytes=71 * GIB, tflops=25.0))
    assert [each.state for each in check_devices([machine("a", *SOUND), machine("b", *slices)])] == ["ok"]
