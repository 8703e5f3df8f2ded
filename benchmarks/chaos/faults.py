"""The faults that are planted, by kind, each with the ways in which it comes."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.chaos.attempts import running
from ich_ray.results import find_search, read_search_record

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.chaos.machines import Fleet, Machine
    from benchmarks.chaos.supervised import Supervised

KINDS = (
    *("worker killed", "machine killed", "machine drained", "stopped"),
    *("disk full", "device poisoned", "storage slow", "driver killed"),
)
# A machine that is gone is replaced after so long; what is planted on one lasts so long.
REPLACED_S, LASTS_S = 4.0, 12.0
# A driver's trials go on for a moment, and a machine that was stopped until its cluster sees it.
LINGERS_S = 10.0


@dataclass(frozen=True)
class Fault:
    """What was planted, when, and on whom: a machine, a process on it, or the driver where both are empty.

    Attributes:
        until: when its cause was over, by the clock that attempts are written by.
        offset: of the driver's output at that time.
    """

    number: int
    search: str
    kind: str
    way: str
    time: float
    until: float
    node: str
    pid: int
    offset: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Planter:
    """Plants faults, and does later what belongs to them: ends them, and replaces machines."""

    def __init__(self, fleet: Fleet, attempts: Path, moments: random.Random) -> None:
        self._fleet, self._attempts, self._moments = fleet, attempts, moments
        self._later: list[tuple[float, Callable[[], None]]] = []

    def look(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        due = [what for when, what in self._later if when <= now]
        self._later = [(when, what) for when, what in self._later if when > now]
        for what in due:
            what()
        self._fleet.replace_lost()

    def plant(self, number: int, kind: str, driver: Supervised) -> Fault | None:
        """None where there is nothing to harm now, or the last machine that is well would be."""
        began, offset = time.time(), driver.said.stat().st_size
        if kind == "driver killed":
            if not driver.is_up:
                return None
            driver.kill()
            return Fault(number, driver.out.name, kind, "", began, began + LINGERS_S, "", 0, offset)
        # A search that has a machine in quarantine takes it for sick until a report has come from there.
        out = {note.node for note in read_search_record(find_search(driver.out)).quarantined}
        now = time.monotonic()
        well = [one for one in self._fleet.machines if now >= one.sick_until and one.name not in out]
        at_work = running(self._attempts, driver.out.name)
        targets = [machine for machine in well if any(one.node == machine.name for one in at_work)]
        if len(well) < 2 or not targets:
            return None
        machine = self._moments.choice(targets)
        pid = next(one.pid for one in at_work if one.node == machine.name)
        way, until_s, of_process = getattr(self, f"_{kind.replace(' ', '_')}")(machine, pid)
        sick_s = 10.0 if of_process else until_s
        machine.sick_until = max(machine.sick_until, time.monotonic() + sick_s)
        until = time.time() + until_s
        node, process = ("", pid) if of_process else (machine.name, 0)
        return Fault(number, driver.out.name, kind, way, began, until, node, process, offset)

    def _after(self, seconds: float, what: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, what))

    def _replace(self, machine: Machine, after_s: float) -> None:
        """Take a machine away after some time, and put another one into its place."""

        def kill() -> None:
            if self._fleet.kill(machine):
                self._after(REPLACED_S, self._fleet.add)

        self._after(after_s, kill) if after_s else kill()

    def _worker_killed(self, machine: Machine, pid: int) -> tuple[str, float, bool]:  # noqa: ARG002
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return "", 0.0, True

    def _machine_killed(self, machine: Machine, pid: int) -> tuple[str, float, bool]:  # noqa: ARG002
        self._replace(machine, 0.0)
        return "", LINGERS_S, False

    def _machine_drained(self, machine: Machine, pid: int) -> tuple[str, float, bool]:  # noqa: ARG002
        accepted = self._fleet.drain(machine, 3.0)
        self._replace(machine, 3.0)
        return "" if accepted else "not accepted", 3.0 + LINGERS_S, False

    def _stopped(self, machine: Machine, pid: int) -> tuple[str, float, bool]:
        processes = machine.processes()
        way = self._moments.choice(
            ["worker", "worker, goes on", "machine", "machine, goes on", "its Ray alone, goes on"]
        )
        if way.startswith("worker"):
            machine.stop([process for process in processes if process.pid == pid])
            if way == "worker":
                return way, 80.0, True
            self._after(5.0, machine.go_on)
            return way, 5.0, True
        if way.startswith("its Ray"):
            machine.stop([process for process in processes if process.pid == machine.raylet])
            self._after(2.0, machine.go_on)
            return way, 2.0, False
        machine.stop(processes)
        if way == "machine, goes on":
            self._after(20.0, machine.go_on)
        self._replace(machine, 30.0)
        return way, 30.0 + LINGERS_S, False

    def _disk_full(self, machine: Machine, pid: int) -> tuple[str, float, bool]:  # noqa: ARG002
        if self._moments.random() < 0.5:
            return self._marked(machine, "no_room", "of states, as it sees it", "yes", LASTS_S)
        disk = machine.folder / "disk"
        if not disk.exists():
            return self._marked(machine, "full", "its own, planted", "yes", LASTS_S)
        _fill(disk / "fill")
        self._after(LASTS_S, lambda: (disk / "fill").unlink(missing_ok=True))
        return "its own", LASTS_S, False

    def _device_poisoned(self, machine: Machine, pid: int) -> tuple[str, float, bool]:  # noqa: ARG002
        return self._marked(machine, "poisoned", "", "yes", LASTS_S)

    def _storage_slow(self, machine: Machine, pid: int) -> tuple[str, float, bool]:  # noqa: ARG002
        way = self._moments.choice(["1.5 s an access", "EIO for 3 s", "not connected"])
        name = {"1.5 s an access": "slow", "EIO for 3 s": "failing", "not connected": "unmounted"}[way]
        return self._marked(machine, name, way, "1.5", 3.0 if name == "failing" else LASTS_S)

    def _marked(self, machine: Machine, name: str, way: str, value: str, seconds: float) -> tuple[str, float, bool]:
        mark = machine.folder / name
        mark.write_text(value)
        self._after(seconds, lambda: mark.unlink(missing_ok=True))
        return way, seconds, False


def _fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
