"""`ich-ray doctor` on a real head, sent there as a job."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ich_ray
from tests.cluster.heads import Head, running_head, running_worker

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with running_head(tmp_path_factory.mktemp("head"), "--dashboard-host=0.0.0.0") as made:
        yield made


@pytest.fixture(autouse=True)
def _token(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(head.token_file))


def test_a_dashboard_open_to_other_machines_is_found_from_outside(head: Head, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    findings = asked(head, tmp_path / "shared")
    (listed,) = ich_ray.jobs(head.url)
    assert {finding["check"]: finding["state"] for finding in findings if finding["check"] not in {"disk", "shm"}} == {
        "versions": "ok",
        "gpus": "ok",
        "storage": "ok",
        "clock": "ok",
        "token": "ok",
        "dashboard": "error",
    }
    assert listed.exit_code == 1
    assert list((tmp_path / "shared").iterdir()) == []


def asked(head: Head, storage: Path) -> list[dict[str, Any]]:
    """What `ich-ray doctor` says as a job on that head."""
    job = ich_ray.submit(["doctor", "--json", "--storage", str(storage)], address=head.url)
    printed = "".join(ich_ray.logs(job, address=head.url, follow=True))
    found: list[dict[str, Any]] = json.loads(printed[printed.index("\n[") :])
    return found


def has_mounts() -> bool:
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return os.geteuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not has_mounts(), reason="needs mount namespaces")
def test_what_is_wrong_with_the_second_machine_is_found(head: Head, tmp_path: Path) -> None:
    """Another Optuna, a clock that is fast, a GPU that is none, storage of its own, and little shared memory."""
    shared, planted = tmp_path / "shared", tmp_path / "planted"
    (planted / "optuna-0.1.dist-info").mkdir(parents=True)
    (planted / "optuna-0.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: optuna\nVersion: 0.1\n")
    (planted / "sitecustomize.py").write_text("import time\nreal = time.time\ntime.time = lambda: real() + 1000\n")
    shared.mkdir()
    mounts = f"mount -t tmpfs -o size=1m none {shared} && mount -t tmpfs -o size=1g none /dev/shm"
    with running_worker(tmp_path, head, "127.0.0.2", mounts, PYTHONPATH=str(planted)):
        deadline, findings = time.monotonic() + 120, asked(head, shared)
        while any("1 machine:" in finding["found"] for finding in findings) and time.monotonic() < deadline:
            findings = asked(head, shared)  # the second one was not up yet
    problems = [(f["state"], f["check"], f["found"]) for f in findings if f["state"] != "ok" and f["check"] != "disk"]
    assert [(level, what) for level, what, _ in problems] == [
        ("warning", "versions"),
        ("error", "gpus"),
        ("error", "storage"),
        ("error", "clock"),
        ("warning", "shm"),
        ("error", "dashboard"),
    ]
    said = [found for *_, found in problems]
    assert said[0].startswith("optuna must be the same on all machines, got ")
    assert said[1] == "127.0.0.2: torch must see the 1 that Ray promises, got 0"
    assert said[2].startswith("127.0.0.2: must read and write it, got FileNotFoundError")
    assert re.match(r"127\.0\.0\.2: must agree within 2 s, got \+(999|1000)\.\d s", said[3])
    assert said[4] == "127.0.0.2: 2 GiB free in /dev/shm are good, got 1.0"
    assert "0.1" in said[0].split()
    assert list(shared.iterdir()) == []
