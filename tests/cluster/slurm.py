"""A Slurm of one machine on loopback: a controller and a daemon, with processes and a network of their own.

`ray symmetric-run` refuses a machine on which a Ray runs, and `ray stop` ends all that it sees: here it sees its own.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
_PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue", "sinfo", "unshare", "nsenter")
_ALONE = ("--pid", "--net", "--uts", "--mount")
_SHIFT = ("--fork", "--kill-child", "--mount-proc")
# Slurm resolves no name, not even a number, where every address is one of 127.0.0.0/8.
_ADDRESS = "10.77.0.1"
_CONFIG = """
ClusterName=ich
SlurmctldHost=node({address})
SlurmUser=root
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
MailProg=/bin/true
SchedulerParameters=sched_interval=2,bf_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=60
FirstJobId={first_job}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName=node NodeAddr={address} CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=idle Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=300
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""


def missing() -> str:
    """Why there can be no Slurm here; empty if there can."""
    programs = [name for name in _PROGRAMS if not _program(name)]
    if programs:
        return f"needs {', '.join(programs)}"
    if os.geteuid() != 0:
        return "needs root"
    done = subprocess.run([_program("unshare"), *_ALONE, *_SHIFT, "true"], check=False, capture_output=True)
    return "needs namespaces of processes and networks" if done.returncode else ""


def _program(name: str) -> str:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/bin") or ""


@dataclass(frozen=True)
class Slurm:
    """What is typed on its one machine.

    Attributes:
        folder: where commands are typed.
        inside: the process whose namespaces it has.
        environ: of every command, and so of every job.
    """

    folder: Path
    inside: int
    environ: Mapping[str, str]

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        enter = [_program("nsenter"), f"--target={self.inside}", *_ALONE, f"--wd={self.folder}", "--", *command]
        return subprocess.run(enter, env=dict(self.environ), capture_output=True, text=True, check=False, timeout=120)

    def run(self, *command: str) -> str:
        """What a command prints that must end well."""
        done = self.call(*command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, number: str, *keys: str) -> tuple[str, ...]:
        """What the controller says of a job, such as its `JobState`."""
        told = dict(word.split("=", 1) for word in self.run("scontrol", "show", "job", number).split() if "=" in word)
        return tuple(told[key] for key in keys)


@contextmanager
def running_slurm(folder: Path, environ: Mapping[str, str]) -> Iterator[Slurm]:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    first_job = 10_000 + os.getpid()  # their folders in /tmp have these numbers
    config = folder / "slurm.conf"
    config.write_text(_CONFIG.format(folder=folder, address=_ADDRESS, first_job=first_job))
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{_ADDRESS} node\n")
    network = f"{sys.executable} -c 'from tests.cluster import slurm; slurm.give_addresses()'"
    begin = (
        f"{network} && hostname node && mount --bind {folder}/hosts /etc/hosts || exit 1\n"
        f"{_program('slurmctld')} -D -f {config} &\n{_program('slurmd')} -D -f {config} &\n"
        "wait"  # the first process of a namespace takes care of those that have lost their parent
    )
    command = [_program("unshare"), *_ALONE, *_SHIFT, "bash", "-c", begin]
    with (folder / "slurm.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=REPOSITORY)
        try:
            inside = _child(process)
            slurm = Slurm(folder, inside, {**environ, "SLURM_CONF": str(config)})
            _until_idle(slurm)
            yield slurm
        finally:
            process.kill()  # and with it everything that runs there
            process.wait(60)
            for number in range(first_job, first_job + 20):
                for left in (*Path("/tmp").glob(f"ich-ray-{number}"), *Path("/tmp").glob(f"ich-ray-{number}-*")):
                    shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()


def give_addresses() -> None:
    """Bring the loopback of a new network up, with a second address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        set_flags, set_address, up_and_running = 0x8914, 0x8916, 0x41
        fcntl.ioctl(door, set_flags, struct.pack("16sh14x", b"lo", up_and_running))
        address = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(_ADDRESS))
        fcntl.ioctl(door, set_address, struct.pack("16s", b"lo:1") + address)


def _child(process: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while not (found := children.read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(found[0])


def _until_idle(slurm: Slurm) -> None:
    deadline = time.monotonic() + 120
    while "idle" not in (told := slurm.call("sinfo", "--noheader", "--format=%T")).stdout:
        assert time.monotonic() < deadline, told.stderr + (slurm.folder / "slurm.log").read_text()[-4000:]
        time.sleep(0.5)
