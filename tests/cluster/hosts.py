"""Hosts to log in to over SSH: an sshd each, with processes, a home and a loopback address of its own.

A PID namespace makes each of them see only its own processes, so that `ray stop` on one stops nothing else here.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

# Ray's SSH knows no other; nobody else listens on the loopback addresses below.
PORT = 22


def missing() -> str:
    """Why there can be no such hosts here; empty if there can."""
    programs = [name for name in ("sshd", "ssh", "ssh-keygen", "rsync", "unshare") if not _program(name)]
    if programs:
        return f"needs {', '.join(programs)}"
    if os.geteuid() != 0:
        return "needs root"
    try:
        socket.create_server(("127.0.0.11", PORT)).close()
    except OSError:
        return f"needs port {PORT} of 127.0.0.11"
    done = subprocess.run([_program("unshare"), "--pid", "--fork", "--mount-proc", "true"], check=False)
    return "needs PID namespaces" if done.returncode else ""


def _program(name: str) -> str:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/bin") or ""


@dataclass(frozen=True)
class Hosts:
    addresses: tuple[str, ...]
    key: Path
    processes: tuple[subprocess.Popen[bytes], ...]

    def run(self, address: str, command: str) -> str:
        """What a command prints there."""
        options = ["-i", str(self.key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        call = ["ssh", *options, f"{getpass.getuser()}@{address}", command]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    def lose(self, address: str) -> None:
        """As when somebody pulls its plug: all of its processes at once, its SSH among them."""
        process = self.processes[self.addresses.index(address)]
        process.kill()
        process.wait(30)


@contextmanager
def running_hosts(folder: Path, count: int) -> Iterator[Hosts]:
    key, addresses = folder / "key", tuple(f"127.0.0.{number + 11}" for number in range(count))
    for name in ("key", "host_key"):
        subprocess.run([_program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    with ExitStack() as stack:
        hosts = Hosts(addresses, key, tuple(stack.enter_context(_sshd(folder, address)) for address in addresses))
        for address in addresses:
            _wait_for(hosts, address)
        yield hosts


@contextmanager
def _sshd(folder: Path, address: str) -> Iterator[subprocess.Popen[bytes]]:
    home = folder / address
    home.mkdir()
    (home / "ich_ray_env").symlink_to(Path(sys.executable).parents[1])
    config = folder / f"sshd-{address}"
    config.write_text(
        f"ListenAddress {address}\nPort {PORT}\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/key.pub\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
    )
    # ssh takes the home from there, whatever HOME says.
    passwd = folder / f"passwd-{address}"
    passwd.write_text(f"{getpass.getuser()}:x:0:0::{home}:/bin/bash\nsshd:x:105:65534::/run/sshd:/usr/sbin/nologin\n")
    # And each its own files of Ray: one host's clean-up would remove what the other still uses.
    own, common = folder / f"ray-{address}", folder / "ray"
    own.mkdir()
    common.mkdir(exist_ok=True)
    mounts = f"mount --bind {passwd} /etc/passwd && mount --bind {own} {common}"
    begin = f"{mounts} && exec {_program('sshd')} -D -e -f {config}"
    command = [_program("unshare"), "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", begin]
    with (folder / f"{address}.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
        try:
            yield process
        finally:
            process.kill()  # and with it everything that runs on this host
            process.wait(30)


def _wait_for(hosts: Hosts, address: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            there = hosts.run(address, "readlink /proc/self/ns/pid")
        except subprocess.CalledProcessError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)
        else:
            # `ray stop` is about to be run there: it must not see the processes of this machine.
            assert there != os.readlink("/proc/self/ns/pid")
            return
