"""Whether devices and disks will carry a search, and clouds give notice: facts in, findings out."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import TYPE_CHECKING

from ich_ray.cluster.findings import Finding
from ich_ray.versions import DRIVER

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ich_ray.cluster.device_facts import DeviceFacts
    from ich_ray.cluster.machine_facts import Facts

__all__ = ["check_devices", "check_disks", "check_metadata"]

_GIB = 1 << 30
# Ray spills no objects to a disk that is 95 % full; checkpoints and spilled blocks of one search take a few GiB.
_LEAST_DISK, _GOOD_DISK, _FULLEST = 2 * _GIB, 20 * _GIB, 0.95
# The object store falls back to slow files below what `prepare` keeps in flight; Docker gives 64 MiB.
_GOOD_SHM = 2 * _GIB
# Of the median of others of its kind; clocks, cooling and who else computes make 10 or 20 % between sound ones.
_SLOW_SHARE = 0.7


def check_devices(machines: Sequence[Facts]) -> Iterable[Finding]:
    """What PyTorch sees, what each device computed and how fast, and whether drivers are the same."""
    for machine in machines:
        yield from _seen(machine)
        for device in machine.devices.found:
            yield from _computed(machine, device)
        for hint in machine.devices.hints:
            yield Finding(
                "warning", "gpus", f"{machine.machine}: its driver should have nothing to complain of, got {hint}",
                "look at `nvidia-smi -q` there; what goes on after a restart needs a repair", (machine.machine,),
            )  # fmt: skip
    machines = [machine for machine in machines if "gpus" not in machine.unanswered]
    yield from _slow(machines)
    yield from _mixed(machines, "driver", {machine.machine: machine.versions.get(DRIVER, "") for machine in machines})
    yield from _mixed(
        machines,
        "CUDA that torch was built for",
        {m.machine: "" if isinstance(m.devices.seen, str) else m.devices.cuda or "none" for m in machines},
    )
    total = sum(machine.devices.seen for machine in machines if isinstance(machine.devices.seen, int))
    kinds = Counter(device.kind for machine in machines for device in machine.devices.found)
    told = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common())
    yield Finding(
        "ok", "gpus", f"torch sees {total}{': ' * bool(told)}{told}" if total else "torch sees 0, so trials run on CPUs"
    )


def _seen(machine: Facts) -> Iterable[Finding]:
    seen, where = machine.devices.seen, (machine.machine,)
    if "gpus" in machine.unanswered:
        return
    if isinstance(seen, str):
        yield Finding("error", "gpus", f"{machine.machine}: torch must load, got {seen}", "install torch again", where)
    elif machine.gpus is not None and seen < machine.gpus:
        yield Finding(
            "error",
            "gpus",
            f"{machine.machine}: torch must see the {machine.gpus:g} that Ray promises, got {seen}",
            "compare the driver (`nvidia-smi`) with torch's CUDA, or correct `resources` of the node",
            where,
        )


def _computed(machine: Facts, device: DeviceFacts) -> Iterable[Finding]:
    called = f"{machine.machine}: GPU {device.number}{f' ({device.name})' if device.name else ''}"
    if device.problem:
        yield Finding(
            "error",
            "gpus",
            f"{called} must compute a small matmul and a sum as the CPU does, got {device.problem}",
            "restart the machine; if that does not help, start Ray there with CUDA_VISIBLE_DEVICES without it",
            (machine.machine,),
        )
    elif device.is_full:
        yield Finding(
            "warning",
            "gpus",
            f"{called} should have room for a trial, got no room for 16 MB",
            "see who uses it: `nvidia-smi`",
            (machine.machine,),
        )


def _slow(machines: Iterable[Facts]) -> Iterable[Finding]:
    measured = [(machine, device) for machine in machines for device in machine.devices.found if device.tflops]
    for machine, device in measured:
        others = [each.tflops for _, each in measured if each.kind == device.kind and each is not device]
        usual = statistics.median(others) if others else 0.0
        if device.tflops < _SLOW_SHARE * usual:
            yield Finding(
                "warning",
                "gpus",
                f"{machine.machine}: GPU {device.number} ({device.name}) should be as fast as others of its kind "
                f"({usual:.1f} TFLOPS), got {device.tflops:.1f}",
                "see who else uses it, its clocks and its temperature: `nvidia-smi -q -d PERFORMANCE`",
                (machine.machine,),
            )


def _mixed(machines: Sequence[Facts], what: str, values: dict[str, str]) -> Iterable[Finding]:
    """One line where machines that have something differ in it."""
    count = Counter(value for value in values.values() if value)
    if len(count) < 2:
        return
    usual = count.most_common(1)[0][0]
    odd = [machine.machine for machine in machines if values[machine.machine] not in {"", usual}]
    yield Finding(
        "warning",
        "gpus",
        f"{what} should be the same everywhere, got {usual} but {', '.join(f'{each} {values[each]}' for each in odd)}",
        "install the same there: results and speed of trials depend on it",
        tuple(odd),
    )


def check_disks(machines: Sequence[Facts]) -> Iterable[Finding]:
    """The disk of Ray's files, that of copies of remote datasets, and shared memory."""
    for machine in machines:
        yield from _ray_disk(machine)
        yield from _cache(machine)
        shared = machine.shm_free_bytes
        if shared is not None and shared < _GOOD_SHM:
            yield Finding(
                "warning",
                "shm",
                f"{machine.machine}: {_GOOD_SHM // _GIB} GiB free in /dev/shm are good, got {shared / _GIB:.1f}",
                "give the container more (`--shm-size`), or `prepare` works from disk",
                (machine.machine,),
            )
    free = [machine.disk_free_bytes for machine in machines if machine.disk_free_bytes is not None]
    if free and min(free) >= _GOOD_DISK:
        yield Finding("ok", "disk", f"at least {min(free) / _GIB:.0f} GiB free")


def _ray_disk(machine: Facts) -> Iterable[Finding]:
    free, total, where = machine.disk_free_bytes, machine.disk_total_bytes, (machine.machine,)
    if machine.disk:
        yield Finding(
            "error",
            "disk",
            f"{machine.machine}: Ray's files must be written, got {machine.disk}",
            "look at that disk (`dmesg`, `mount`), or start Ray with --temp-dir on another one",
            where,
        )
    elif free is not None and free < _GOOD_DISK:
        yield Finding(
            "error" if free < _LEAST_DISK else "warning",
            "disk",
            f"{machine.machine}: {_GOOD_DISK // _GIB} GiB free for Ray's files are good, got {free / _GIB:.1f}",
            "free some, or start Ray with --temp-dir on a larger disk",
            where,
        )
    elif free is not None and total and free < (1 - _FULLEST) * total:
        yield Finding(
            "warning",
            "disk",
            f"{machine.machine}: Ray spills nothing to a disk that is over {_FULLEST:.0%} full, got "
            f"{1 - free / total:.1%}",
            "free some, or start Ray with --temp-dir on another disk",
            where,
        )


def _cache(machine: Facts) -> Iterable[Finding]:
    free, where = machine.cache_free_bytes, (machine.machine,)
    if machine.cache:
        yield Finding(
            "error",
            "cache",
            f"{machine.machine}: copies of remote datasets must be written, got {machine.cache}",
            "name a folder on another disk in ICH_RAY_CACHE, where Ray is started",
            where,
        )
    elif machine.cache is not None and free is not None and free < _GOOD_DISK:
        yield Finding(
            "warning",
            "cache",
            f"{machine.machine}: {_GOOD_DISK // _GIB} GiB free in {machine.cache_folder} are good for copies of remote "
            f"datasets, got {free / _GIB:.1f}",
            "name a folder on a larger disk in ICH_RAY_CACHE, where Ray is started",
            where,
        )


def check_metadata(machines: Sequence[Facts]) -> Iterable[Finding]:
    """Whether machines of a cloud hear that they will be taken away."""
    clouds = [machine for machine in machines if machine.cloud]
    for machine in clouds:
        if machine.metadata:
            yield Finding(
                "warning",
                "metadata",
                f"{machine.machine}: the metadata service of {machine.cloud} should answer, got {machine.metadata}: no "
                "notice that the machine will be taken away would be heard",
                "let processes reach 169.254.169.254; in containers on AWS with a hop limit of 2",
                (machine.machine,),
            )
    if clouds and not any(machine.metadata for machine in clouds):
        yield Finding("ok", "metadata", f"answers on {len(clouds)} of {len(machines)}")
