"""A Ray head in a process of its own, with the dashboard on loopback and a token that it demands."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TOKEN = "0123456789abcdef" * 4


@dataclass(frozen=True)
class Head:
    url: str
    address: str
    token_file: Path


def write_token(path: Path, token: str = TOKEN, mode: int = 0o600) -> Path:
    path.write_text(token)
    path.chmod(mode)
    return path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])


def ray_environment(token_file: Path) -> dict[str, str]:
    """The environment of a node that demands a token, whatever this process has."""
    interpreter = Path(sys.executable).parent
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "PATH": f"{interpreter}{os.pathsep}{os.environ['PATH']}",
    }


@contextmanager
def running_head(folder: Path, *more: str) -> Iterator[Head]:
    """`ray start --head` on ports that nobody else has; it takes its processes with it when it is told to end."""
    token_file = write_token(folder / "token")
    port, dashboard, agent, client = (free_port() for _ in range(4))
    ports = [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=2", *ports,
        f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0",
        "--dashboard-host=127.0.0.1", "--disable-usage-stats", f"--temp-dir=/tmp/ich{os.getuid()}-{port}", *more,
    ]  # fmt: skip
    head = Head(f"http://127.0.0.1:{dashboard}", f"{_own_address()}:{port}", token_file)
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=ray_environment(token_file)
        )
        try:
            _wait_for_agent(agent, process)
            yield head
        finally:
            process.terminate()
            process.wait(60)
            shutil.rmtree(f"/tmp/ich{os.getuid()}-{port}", ignore_errors=True)


@contextmanager
def running_worker(folder: Path, head: Head, address: str, prepare: str, **environ: str) -> Iterator[None]:
    """A second machine: `ray start` at a loopback address, after a command in a mount namespace of its own."""
    command = [
        str(Path(sys.executable).parent / "ray"), "start", f"--address={head.address}", "--block",
        f"--node-ip-address={address}", "--num-cpus=1", "--num-gpus=1", "--object-store-memory=100000000",
        f"--dashboard-agent-listen-port={free_port()}", "--min-worker-port=0", "--max-worker-port=0",
        "--disable-usage-stats",
    ]  # fmt: skip
    shell = ["unshare", "--mount", "sh", "-c", f"{prepare} && exec {' '.join(command)}"]
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            shell, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=ray_environment(head.token_file) | environ
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)


def _own_address() -> str:
    import ray.util

    return str(ray.util.get_node_ip_address())


def _wait_for_agent(port: int, process: subprocess.Popen[bytes]) -> None:
    """Jobs are started by the node's agent, which comes up last."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the head did not start"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.3)
        else:
            return
    raise TimeoutError("the head's agent did not come up")
