"""Measure what a training takes between two reports, at the cost of reading clocks.

Waits for an accelerator nowhere: rates are right because training waits for it at the end of each interval anyway.
"""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ich_ray.usage import LARGEST_RATE, LEAST_RATE, ReportUsage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["UsageMeter"]

# NVML tells what a device did in the last second or less.
_SAMPLE_EVERY_S = 1.0
_OWN = Path("/proc/self")


class UsageMeter:
    """Measures intervals of one training, each with `begin`, `end` and then `usage`.

    Args:
        device: that trains.
        clock: seconds that pass.
        cpu_clock: seconds that processors spend on this process.
        utilization: of an accelerator, in percent; may raise where nobody can tell.

    Attributes:
        data_wait_s: in this interval, see `waiting`.
        training_s: of the interval that has ended.
        images_per_s: the same.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.process_time,
        utilization: Callable[[torch.device], float] = torch.cuda.utilization,
    ) -> None:
        self._device, self._clock, self._cpu_clock, self._utilization = device, clock, cpu_clock, utilization
        self._on_cpu, self._can_tell = device.type == "cpu", device.type == "cuda"
        self._began = self._sampled = self._cpu_began = 0.0
        self._samples: list[float] = []
        self._use: float | None = None
        self.data_wait_s = self.training_s = self.images_per_s = 0.0
        _peak_memory(device)  # those of whoever came before

    def begin(self) -> None:
        """Training goes on."""
        self.data_wait_s, self._samples = 0.0, []
        self._began = self._sampled = self._clock()
        self._cpu_began = self._cpu_clock()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The training waits for the inputs of a batch meanwhile."""
        asked = self._clock()
        yield
        self.data_wait_s += self._clock() - asked

    def sample(self) -> None:
        """Ask the accelerator what it did lately, if training has gone on for a second since it was asked."""
        if self._can_tell and self._clock() - self._sampled >= _SAMPLE_EVERY_S:
            self._ask()

    def _ask(self) -> None:
        self._sampled = self._clock()
        try:
            self._samples.append(self._utilization(self._device) / 100)
        except Exception:  # noqa: BLE001  (no library, no driver, a device that does not tell: each its own)
            self._can_tell = False

    def end(self, images: int) -> None:
        """So many images were trained, and the device has done all of it."""
        if self._can_tell and not self._samples:  # a short interval
            self._ask()
        self.training_s = max(self._clock() - self._began, 1e-9)
        self.images_per_s = images / self.training_s
        if self._on_cpu:
            spent = self._cpu_clock() - self._cpu_began
            self._use = min(1.0, max(0.0, spent / (self.training_s * torch.get_num_threads())))
        else:
            self._use = sum(self._samples) / len(self._samples) if self._samples else None

    def usage(self, validation_s: float | None) -> ReportUsage:
        """Of the interval that has ended, with the validation after it; None where there was none."""
        return ReportUsage(
            images_per_s=_rate(self.images_per_s),
            data_wait_s=round(self.data_wait_s, 3),
            validation_s=None if validation_s is None else round(validation_s, 3),
            device_use=None if self._use is None else round(self._use, 3),
            peak_memory_bytes=_peak_memory(self._device),
        )


def _rate(images_per_s: float) -> float | None:
    """With four digits, as every report stands in its trial's file; None where nothing was trained."""
    return min(max(float(f"{images_per_s:.4g}"), LEAST_RATE), LARGEST_RATE) if images_per_s else None


def _peak_memory(device: torch.device) -> int | None:
    """The most memory since this was asked last, None where the system does not tell."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    return _peak_resident() if device.type == "cpu" else None


def _peak_resident() -> int | None:
    """Of this process, by Linux: the peak is forgotten once it is read, where that may be done, else it is of now."""
    try:
        told = (_OWN / "status").read_text()
    except OSError:
        return None
    try:
        (_OWN / "clear_refs").write_text("5")
        field = "VmHWM"
    except OSError:
        field = "VmRSS"
    found = re.search(rf"^{field}:\s+(\d+) kB$", told, re.MULTILINE)
    return int(found[1]) * 1024 if found else None
