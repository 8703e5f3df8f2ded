from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ich_ray.training import usage_meter
from ich_ray.training.usage_meter import UsageMeter

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def ticking(*times: float) -> Callable[[], float]:
    return iter(times).__next__


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counters of memory of an accelerator that is not there: a new peak each time."""
    peaks: Iterator[int] = iter([5, 300, 200])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: next(peaks))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)


def test_a_cpu_is_used_by_the_time_of_all_threads_over_that_of_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    meter = UsageMeter(CPU, clock=ticking(10.0, 11.0, 11.5, 14.0), cpu_clock=ticking(1.0, 7.0))
    meter.begin()
    with meter.waiting():
        pass
    meter.end(1000)
    assert (meter.training_s, meter.images_per_s) == (4.0, 250.0)
    usage = meter.usage(1.23456)
    assert (usage.images_per_s, usage.data_wait_s, usage.validation_s, usage.device_use) == (250.0, 0.5, 1.235, 0.75)
    assert usage.saving_s is usage.bytes_written is None


@pytest.mark.parametrize(("images", "seconds", "rate"), [(1, 1e12, 1e-9), (10**6, 1e-9, 1e12), (0, 1.0, None)])
def test_a_rate_is_one_that_a_record_takes(images: int, seconds: float, rate: float | None) -> None:
    meter = UsageMeter(CPU, clock=ticking(0.0, seconds), cpu_clock=lambda: 0.0)
    meter.begin()
    meter.end(images)
    assert meter.usage(None).images_per_s == rate


def test_each_interval_counts_its_own_waits() -> None:
    meter = UsageMeter(CPU, clock=ticking(0.0, 0.25, 0.75, 1.0, 5.0, 6.0), cpu_clock=lambda: 0.0)
    meter.begin()
    with meter.waiting():
        pass
    meter.end(100)
    meter.begin()
    meter.end(300)
    usage = meter.usage(None)
    assert (usage.images_per_s, usage.data_wait_s, usage.validation_s, usage.device_use) == (300.0, 0.0, None, 0.0)


@pytest.mark.usefixtures("gpu")
def test_an_accelerator_is_asked_once_a_second() -> None:
    told = iter([90, 70])
    clock = ticking(0.0, 0.4, 1.2, 1.2, 1.3, 2.5, 2.5, 3.0)
    meter = UsageMeter(GPU, clock=clock, cpu_clock=lambda: 0.0, utilization=lambda _: next(told))
    meter.begin()
    for _ in range(4):  # at 0.4, 1.2, 1.3 and 2.5 seconds
        meter.sample()
    meter.end(300)
    usage = meter.usage(None)
    assert (usage.images_per_s, usage.device_use, usage.peak_memory_bytes) == (100.0, 0.8, 300)


@pytest.mark.usefixtures("gpu")
def test_an_interval_of_less_than_a_second_is_asked_at_its_end() -> None:
    meter = UsageMeter(GPU, clock=ticking(0.0, 0.2, 0.2), cpu_clock=lambda: 0.0, utilization=lambda _: 40)
    meter.begin()
    meter.end(10)
    assert meter.usage(None).device_use == 0.4


@pytest.mark.usefixtures("gpu")
def test_a_device_that_does_not_tell_is_asked_once_and_never_again() -> None:
    asked = []

    def refused(device: torch.device) -> float:
        asked.append(device)
        raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")

    meter = UsageMeter(GPU, clock=ticking(0.0, 1.0, 1.0, 2.0, 3.0, 4.0), cpu_clock=lambda: 0.0, utilization=refused)
    meter.begin()
    meter.sample()
    meter.sample()
    meter.end(10)
    assert meter.usage(None).device_use is None
    assert asked == [GPU]


def test_memory_of_a_cpu_is_the_peak_since_it_was_asked_last() -> None:
    meter = UsageMeter(CPU)
    held = mmap.mmap(-1, 64 * 2**20)  # given back at once; malloc may keep what a tensor had
    held[:: mmap.PAGESIZE] = b"1" * (len(held) // mmap.PAGESIZE)
    first = meter.usage(None).peak_memory_bytes
    held.close()
    second = meter.usage(None).peak_memory_bytes
    if first is None or second is None or not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not tell the memory of a process")
    third = meter.usage(None).peak_memory_bytes
    assert third is not None
    assert first - third > 48 * 2**20


def test_memory_is_unknown_where_the_system_has_no_files_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(usage_meter, "_OWN", tmp_path)
    assert UsageMeter(CPU).usage(None).peak_memory_bytes is None
    (tmp_path / "status").write_text("Name:\tx\nVmHWM:\t    4000 kB\nVmRSS:\t    3000 kB\n")
    assert UsageMeter(CPU).usage(None).peak_memory_bytes == 4000 * 1024
    (tmp_path / "clear_refs").unlink()
    (tmp_path / "clear_refs").mkdir()  # the peak of all its trials cannot be forgotten
    assert UsageMeter(CPU).usage(None).peak_memory_bytes == 3000 * 1024
