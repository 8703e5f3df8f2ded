"""What trials take: measured for each report, and added up for a trial or a search.

Knows numbers only, neither trials nor devices: training/usage_meter.py measures, trial_records.py holds the records.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ich_ray.storage import Count, Record, Seconds, Share

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["LARGEST_RATE", "LEAST_RATE", "PARTS", "ReportUsage", "Usage", "added", "format_bytes", "format_usage"]

# Images a second; of any number of images and reports the time stays finite.
LEAST_RATE, LARGEST_RATE = 1e-9, 1e12


class ReportUsage(Record):
    """What a training took since the report before; None for what was not measured.

    Where several processes train a trial, images are those of all of them, and the rest is of the first one.

    Attributes:
        images_per_s: training images per second of training, without validation and saving.
        data_wait_s: of the time in training, until the inputs of each batch were there: read, cut and augmented.
        validation_s: time in validation.
        saving_s: time that training waited until states were written.
        device_use: while it trained, from 0 to 1. Of an accelerator, the share of the time in which it computed
            anything, for whichever process, as NVML samples it; of a CPU, the time of all its threads over that of
            the cores that the training may use.
        peak_memory_bytes: of an accelerator, the most that tensors of this process took; of a CPU, the most that was
            resident in its process, mapped images included.
        bytes_written: in states, weights and logits.
    """

    images_per_s: Annotated[float, Field(ge=LEAST_RATE, le=LARGEST_RATE)] | None = None
    data_wait_s: Seconds | None = None
    validation_s: Seconds | None = None
    saving_s: Seconds | None = None
    device_use: Share | None = None
    peak_memory_bytes: Count | None = None
    bytes_written: Count | None = None


@dataclass(frozen=True)
class Usage:
    """What several reports took together, each field as in `ReportUsage`; None where no report says it.

    Attributes:
        training_s: time in training, waits for data included.
        device_use: the mean over the time in training.
        peak_memory_bytes: the most of any report.
    """

    images_per_s: float | None = None
    training_s: float | None = None
    data_wait_s: float | None = None
    validation_s: float | None = None
    saving_s: float | None = None
    device_use: float | None = None
    peak_memory_bytes: int | None = None
    bytes_written: int | None = None

    def figures(self) -> dict[str, float | int]:
        """What is known, by name; empty where nothing was measured."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    def parts(self) -> dict[str, float]:
        """Where the time went, in seconds: training without waits, and each wait that was measured."""
        if self.training_s is None:
            return {}
        waits = {"data": self.data_wait_s, "validation": self.validation_s, "saving": self.saving_s}
        known = {name: seconds for name, seconds in waits.items() if seconds is not None}
        return {"training": max(0.0, self.training_s - (self.data_wait_s or 0.0)), **known}


def added(measured: Iterable[tuple[int, ReportUsage]]) -> Usage:
    """The sum of reports, each with the images since the one before it."""
    reports = [*measured]
    trained = [(images, images / usage.images_per_s, usage) for images, usage in reports if usage.images_per_s]
    training_s = sum(seconds for _, seconds, _ in trained)
    used = [(seconds, usage.device_use) for _, seconds, usage in trained if usage.device_use is not None]
    used_s = sum(seconds for seconds, _ in used)
    peaks = [usage.peak_memory_bytes for _, usage in reports if usage.peak_memory_bytes is not None]
    written = [usage.bytes_written for _, usage in reports if usage.bytes_written is not None]
    return Usage(
        images_per_s=sum(images for images, _, _ in trained) / training_s if training_s else None,
        training_s=training_s if trained else None,
        data_wait_s=_total(usage.data_wait_s for _, usage in reports),
        validation_s=_total(usage.validation_s for _, usage in reports),
        saving_s=_total(usage.saving_s for _, usage in reports),
        device_use=sum(seconds * use for seconds, use in used) / used_s if used_s else None,
        peak_memory_bytes=max(peaks) if peaks else None,
        bytes_written=sum(written) if written else None,
    )


# Of `Usage.parts`, as people call them.
PARTS = {"training": "training", "data": "waiting for data", "validation": "validation", "saving": "saving"}
_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def format_usage(usage: Usage) -> str:
    """A line on where the time went and what of devices was used; empty where nobody measured."""
    parts = usage.parts()
    whole = sum(parts.values())
    told = [", ".join(f"{seconds / whole:.0%} {PARTS[name]}" for name, seconds in parts.items())] if whole else []
    if usage.device_use is not None:
        told.append(f"devices {usage.device_use:.0%} in use while training")
    if usage.peak_memory_bytes is not None:
        told.append(f"up to {format_bytes(usage.peak_memory_bytes)} of memory a trial")
    if usage.bytes_written is not None:
        told.append(f"{format_bytes(usage.bytes_written)} written")
    return f"time of trials: {'; '.join(told)}" if told else ""


def format_bytes(count: int) -> str:
    """`3.2 GB`, in powers of ten as disks are sold."""
    size, unit = next(((size, unit) for size, unit in _UNITS if count >= size), (1, "bytes"))
    return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:,.0f} {unit}"


def _total(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
