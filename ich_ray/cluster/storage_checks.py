"""Whether all machines write to and read from one storage, and fast enough: facts in, findings out."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from ich_ray.cluster.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ich_ray.cluster.machine_facts import Facts

__all__ = ["check_storage"]

# A state is to be written between two reports, which come every minute or so.
_SLOW_STATE_S = 30.0
# A machine that takes so many times as long as most, and longer than anyone would not notice.
_UNEVEN_TIMES, _UNEVEN_S = 5.0, 5.0


def check_storage(machines: Sequence[Facts]) -> Iterable[Finding]:
    """What machines wrote to the storage, what others read of it, and how long it took."""
    asked = [machine for machine in machines if machine.storage is not None]
    for machine in asked:
        if machine.storage:
            yield Finding(
                "error",
                "storage",
                f"{machine.machine}: must read and write it, got {machine.storage}",
                "mount it at the same path with write access, or give the node credentials for it",
                (machine.machine,),
            )
        elif machine.unread:
            other, why = next(iter(machine.unread.items()))
            more = f", and of {len(machine.unread) - 1} more" if len(machine.unread) > 1 else ""
            yield Finding(
                "error",
                "storage",
                f"{machine.machine}: must read what {other} has just written there, got {why}{more}",
                "mount one folder for all machines, not one each; for NFS with lookupcache=none or a short actimeo",
                (machine.machine,),
            )
    if asked and not any(machine.storage or machine.unread for machine in asked):
        found = f"read and written from {len(asked)} of {len(machines)}"
        yield from _speed(asked)
        yield Finding("ok", "storage", found + _said(asked))


def _speed(machines: Sequence[Facts]) -> Iterable[Finding]:
    takes = {machine.machine: machine.speed.state_s for machine in machines if machine.speed}
    usual = statistics.median_low(takes.values()) if takes else 0.0
    for machine, state_s in takes.items():
        if state_s > max(_UNEVEN_S, _UNEVEN_TIMES * usual):
            yield Finding(
                "warning",
                "storage",
                f"{machine}: must be about as fast as on most machines, where a state of 100 MB takes "
                f"{_seconds(usual)} to write, got {state_s:.1f} s",
                "compare how it is mounted there, and its network",
                (machine,),
            )
    if usual > _SLOW_STATE_S:
        yield Finding(
            "warning",
            "storage",
            f"a state of 100 MB should be written within {_SLOW_STATE_S:g} s, got {usual:.0f} s on most machines",
            "use a faster folder, or let reports be further apart than that (`report_every` of the budget)",
            tuple(takes),
        )


def _said(machines: Iterable[Facts]) -> str:
    speeds = [machine.speed for machine in machines if machine.speed]
    if not speeds:
        return ""
    slowest = max(speeds, key=lambda speed: speed.state_s)
    reads = [speed.read_mb_per_s for speed in speeds if speed.read_mb_per_s]
    read = f", {_seconds(100 / min(reads))} to read" if reads else ""
    small = f", a small file {max(1.0, slowest.latency_s * 1e3):.0f} ms{' on the slowest' * (len(speeds) > 1)}"
    return f"; a state of 100 MB takes {_seconds(slowest.state_s)} to write{read}{small}"


def _seconds(took: float) -> str:
    """As exact as one file of some MB tells it."""
    return f"{took:.1f} s" if took >= 0.1 else "under 0.1 s"
