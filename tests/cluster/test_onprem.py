"""cluster-onprem.yaml for real: hosts reached over SSH, `ray up`, a search, `ray down`."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import ich_ray
from ich_ray.cluster.jobs import outcome
from tests.cluster.heads import TOKEN, free_port, ray_environment, write_token
from tests.cluster.hosts import Hosts, missing, running_hosts
from tests.cluster.test_jobs import SPACE
from tests.prepared import make_dataset

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Near the root: Ray puts UNIX sockets below it, whose paths may have 107 characters."""
    made = Path(tempfile.mkdtemp(prefix="ich", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def filled_in(hosts: Hosts, folder: Path, dashboard: int) -> dict[str, Any]:
    """The file as a user fills it in, with ports of its own and without installing what is installed."""
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "cluster-onprem.yaml").read_text())
    head, *workers = hosts.addresses
    config["cluster_name"] = folder.name
    config["provider"] |= {"head_ip": head, "worker_ips": workers}
    config["auth"] = {"ssh_user": getpass.getuser(), "ssh_private_key": str(hosts.key)}
    config["min_workers"] = config["max_workers"] = len(workers)
    config["file_mounts"]["~/.ray/auth_token"] = str(folder / "token")
    config["setup_commands"] = [
        line for line in config["setup_commands"] if "mountpoint" not in line and "pip install" not in line
    ]
    port = free_port()
    own = "--node-ip-address=$(echo $SSH_CONNECTION | cut -d' ' -f3) --min-worker-port=0 --max-worker-port=0"
    more = {
        "head": f"--dashboard-port={dashboard} --ray-client-server-port={free_port()} --temp-dir={folder}/ray "
        f"--dashboard-agent-listen-port={free_port()}",
        "worker": f"--num-cpus=2 --dashboard-agent-listen-port={free_port()}",
    }
    for kind, flags in more.items():
        key = f"{kind}_start_ray_commands"
        config[key] = [
            f"{line.replace('6379', str(port))} {own} {flags}".replace("PATH=", f"RAY_TMPDIR={folder} PATH=", 1)
            if "ray start" in line
            else line
            for line in config[key]
        ]
    return config


def ray(folder: Path, *arguments: str) -> str:
    environ = ray_environment(folder / "token") | {"RAY_TMPDIR": str(folder)}
    with (folder / "ray.log").open("w+") as log:
        call = subprocess.run(
            [RAY, *arguments], cwd=REPOSITORY, env=environ, stdout=log, stderr=log, check=False, timeout=200
        )
        log.seek(0)
        printed = log.read()
    assert call.returncode == 0, printed[-4000:]
    return printed


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_a_search_on_hosts_over_ssh(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_token(folder / "token", TOKEN)
    make_dataset(tmp_path / "data", patients=20)
    (tmp_path / "mine.yaml").write_text(SPACE)
    dashboard = free_port()
    with running_hosts(folder, 2) as hosts:
        (folder / "mine.yaml").write_text(yaml.safe_dump(filled_in(hosts, folder, dashboard)))
        ray(folder, "up", "--yes", "--no-config-cache", str(folder / "mine.yaml"))
        for address in hosts.addresses[:1]:
            assert hosts.run(address, "stat -c %a ~/.ray/auth_token") == "600"

        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
        url = f"http://127.0.0.1:{dashboard}"
        job = ich_ray.submit(
            ["search", f"{tmp_path}/data", f"--space={tmp_path}/mine.yaml", f"--out={tmp_path}/s", "--trials=3"],
            address=url,
        )
        printed = "".join(ich_ray.logs(job, address=url, follow=True))
        assert outcome(job, url).state == "succeeded", printed
        found = ich_ray.open_search(tmp_path / "s")
        assert len(found.trials) == 3
        assert found.count("running") == 0
        best = found.best()
        assert best.value == max(trial.value or 0 for trial in found.trials if trial.state == "completed")
        # The head holds no work, so that all of it was done on the other host.
        assert hosts.run(hosts.addresses[1], "ps -eo comm= | grep -c raylet") == "1"

        ray(folder, "down", "--yes", str(folder / "mine.yaml"))
        # Ray stops the head; a worker ends by itself when it has not heard of the head for a minute.
        listing = "ps -eo args= | grep -E '[r]aylet|[g]cs_server|[r]ay::' | cut -c1-80 || true"
        deadline = time.monotonic() + 180
        assert hosts.run(hosts.addresses[0], listing) == ""
        while (left := hosts.run(hosts.addresses[1], listing)) and time.monotonic() < deadline:
            time.sleep(2)
        assert left == ""
    assert not [name for name in os.listdir("/dev/shm") if folder.name in name]
