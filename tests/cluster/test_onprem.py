"""clusters/onprem.yaml for real: hosts reached over SSH, `ray up`, a search, `ray down`."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import ich_ray
from ich_ray.cluster.jobs import outcome
from ich_ray.search.audit.search_audit import audit
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
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "clusters/onprem.yaml").read_text())
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
        "worker": f"--num-cpus=1 --dashboard-agent-listen-port={free_port()}",
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


def until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def both_train(search: Path) -> bool:
    """Whether two trials have reported and run, of which each worker holds one."""
    trials = ich_ray.open_search(search).trials if (search / "search.json").exists() else ()
    return sum(trial.state == "running" and len(trial.reports) > 1 for trial in trials) == 2


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_a_search_on_hosts_over_ssh(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head and two workers, of which one is lost half-way."""
    write_token(folder / "token", TOKEN)
    make_dataset(tmp_path / "data", patients=20)
    space = SPACE.replace("images: 400,", "images: 6000,").replace("first_rung: 200", "first_rung: 6000")
    (tmp_path / "mine.yaml").write_text(space)
    dashboard = free_port()
    with running_hosts(folder, 3) as hosts:
        (folder / "mine.yaml").write_text(yaml.safe_dump(filled_in(hosts, folder, dashboard)))
        ray(folder, "up", "--yes", "--no-config-cache", str(folder / "mine.yaml"))
        assert hosts.run(hosts.addresses[0], "stat -c %a ~/.ray/auth_token") == "600"
        listing = "ps -eo args= | grep -E '[r]aylet|[g]cs_server|[r]ay::' | cut -c1-80 || true"
        until(
            lambda: all("raylet" in hosts.run(host, listing) for host in hosts.addresses), 200
        )  # the head sets them up

        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
        url = f"http://127.0.0.1:{dashboard}"
        job = ich_ray.submit(
            ["search", f"{tmp_path}/data", f"--space={tmp_path}/mine.yaml", f"--out={tmp_path}/s", "--trials=4"],
            address=url,
        )
        until(lambda: both_train(tmp_path / "s"), 300)
        hosts.lose(hosts.addresses[2])
        printed = "".join(ich_ray.logs(job, address=url, follow=True))
        assert outcome(job, url).state == "succeeded", printed
        assert "its process died, starting it again" in printed
        audited = audit(tmp_path / "s")
        assert (audited.state, audited.breached) == ("ended", ())
        found = ich_ray.open_search(tmp_path / "s")
        assert (len(found.trials), found.count("completed")) == (4, 4)
        assert sorted(trial.attempts for trial in found.trials) == [1, 1, 1, 2]
        best = found.best()
        assert best.value == max(trial.value or 0 for trial in found.trials if trial.state == "completed")

        ray(folder, "down", "--yes", str(folder / "mine.yaml"))
        # Ray stops the head; a worker ends by itself when it has not heard of the head for a minute.
        assert hosts.run(hosts.addresses[0], listing) == ""
        until(lambda: hosts.run(hosts.addresses[1], listing) == "", 180)
    assert not [name for name in os.listdir("/dev/shm") if folder.name in name]
