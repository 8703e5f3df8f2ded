"""Hosts to log in to over SSH: an sshd each, with processes, a home and a loopback address of its own.

A PID namespace makes each of them see only its own processes, so that `ray stop` on one stops nothing else here.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

# Ray's SSH knows no port, so it is told how to reach one.
_RELAY = """
import os, socket, sys, threading
line = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def up():
    while data := os.read(0, 65536):
        line.sendall(data)
    line.shutdown(socket.SHUT_WR)
threading.Thread(target=up, daemon=True).start()
while data := line.recv(65536):
    while data:
        data = data[os.write(1, data):]
"""


def missing() -> str:
    """Why there can be no such hosts here; empty if there can."""
    programs = [name for name in ("sshd", "ssh", "ssh-keygen", "rsync", "unshare") if not _program(name)]
    if programs:
        return f"needs {', '.join(programs)}"
    if os.geteuid() != 0:
        return "needs root"
    done = subprocess.run([_program("unshare"), "--pid", "--fork", "--mount-proc", "true"], check=False)
    return "needs PID namespaces" if done.returncode else ""


def _program(name: str) -> str:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/bin") or ""


@dataclass(frozen=True)
class Hosts:
    addresses: tuple[str, ...]
    port: int
    key: Path
    proxy: str

    def run(self, address: str, command: str) -> str:
        """What a command prints there."""
        options = ["-i", str(self.key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        call = ["ssh", *options, "-p", str(self.port), f"{getpass.getuser()}@{address}", command]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


@contextmanager
def running_hosts(folder: Path, count: int, port: int) -> Iterator[Hosts]:
    key, addresses = folder / "key", tuple(f"127.0.0.{number + 11}" for number in range(count))
    for name in ("key", "host_key"):
        subprocess.run([_program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "relay.py").write_text(_RELAY)
    Path("/run/sshd").mkdir(exist_ok=True)
    with ExitStack() as stack:
        for address in addresses:
            stack.enter_context(_sshd(folder, address, port))
        hosts = Hosts(addresses, port, key, f"{sys.executable} {folder}/relay.py %h {port}")
        for address in addresses:
            _wait_for(hosts, address)
        yield hosts


@contextmanager
def _sshd(folder: Path, address: str, port: int) -> Iterator[None]:
    home = folder / address
    home.mkdir()
    (home / "ich_ray_env").symlink_to(Path(sys.executable).parents[1])
    config = folder / f"sshd-{address}"
    config.write_text(
        f"ListenAddress {address}\nPort {port}\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/key.pub\n"
        f"SetEnv HOME={home}\nPidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
    )
    command = [_program("unshare"), "--pid", "--fork", "--kill-child", "--mount-proc"]
    with (folder / f"{address}.log").open("wb") as log:
        process = subprocess.Popen([*command, _program("sshd"), "-D", "-e", "-f", str(config)], stderr=log)
        try:
            yield
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
