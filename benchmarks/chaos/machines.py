"""Machines that are processes of this one: started, killed, drained, stopped and replaced."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil
from ray.cluster_utils import Cluster

from tests.search.machines import drain

if TYPE_CHECKING:
    from pathlib import Path

    from ray._private.node import Node

# A machine that stands still is given up after about ten seconds, where Ray's own settings take half a minute.
HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 6,
}
STORE_BYTES = 80 * 2**20


@dataclass(eq=False)
class Machine:
    """A machine of the cluster, and the folder that says what is planted on it."""

    node: Node
    folder: Path
    sick_until: float = 0.0
    stopped: list[psutil.Process] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.node.node_id)

    def processes(self) -> list[psutil.Process]:
        """Those of the machine, those of trials included."""
        try:
            raylet = psutil.Process(self.raylet)
            return [raylet, *raylet.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    @property
    def raylet(self) -> int:
        return int(self.node.all_processes["raylet"][0].process.pid)

    def stop(self, processes: list[psutil.Process]) -> None:
        self.stopped = processes
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        for process in self.stopped:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        self.stopped = []


class Fleet:
    """A head without work and machines of one slot each, each with a disk of its own.

    Attributes:
        machines: that are up.
        real_disks: whether disks are file systems of their own.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.machines = folder, list[Machine]()
        self.real_disks = os.getuid() == 0
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": HEALTH}
        self.cluster = Cluster(initialize_head=True, head_node_args={**head, "object_store_memory": STORE_BYTES})
        for _ in range(count):
            self.add()

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self) -> None:
        """Start a machine; on one with too much to do Ray may need several tries."""
        for _ in range(5):
            try:
                node = self.cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
            except Exception as error:  # noqa: BLE001  (of Ray's start)
                print(f"a machine did not start ({type(error).__name__}), again", flush=True)
                for late in self.cluster.worker_nodes - {machine.node for machine in self.machines}:
                    self.cluster.remove_node(late, allow_graceful=False)
                continue
            machine = Machine(node, self.folder / "machines" / str(node.node_id))
            machine.folder.mkdir(parents=True)
            self._mount(machine.folder / "disk")
            self.machines.append(machine)
            return
        raise RuntimeError("Ray starts no machine here")

    def _mount(self, disk: Path) -> None:
        if self.real_disks:
            disk.mkdir()
            mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
            self.real_disks = not subprocess.run(mount, check=False, capture_output=True).returncode
            if not self.real_disks:
                disk.rmdir()

    def replace_lost(self) -> None:
        """Put another one into the place of a machine that Ray gave up, as it may where others need the processors."""
        for machine in [*self.machines]:
            if not machine.stopped and machine.node.all_processes["raylet"][0].process.poll() is not None:
                self.kill(machine)
                self.add()

    def kill(self, machine: Machine) -> bool:
        """At once and altogether, as when a machine loses its power; whether it was there."""
        if machine not in self.machines:
            return False
        for process in machine.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.cluster.remove_node(machine.node, allow_graceful=False)
        self.machines.remove(machine)
        self._unmount(machine)
        return True

    def drain(self, machine: Machine, within_s: float) -> bool:
        """Announce that a machine will be taken away; whether Ray accepts that."""
        return drain(self.address, machine.name, within_s)[0]

    def end(self) -> None:
        for machine in [*self.machines]:
            machine.go_on()
            self._unmount(machine)
        self.cluster.shutdown()

    def _unmount(self, machine: Machine) -> None:
        if (machine.folder / "disk").exists():
            command = ["umount", "--lazy", str(machine.folder / "disk")]
            subprocess.run(command, check=False, capture_output=True)
