"""`ich-ray doctor` on a real head, sent there as a job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ich_ray
from tests.cluster.heads import running_head

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


def test_a_dashboard_open_to_other_machines_is_found_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_head(tmp_path, "--dashboard-host=0.0.0.0") as head:
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(head.token_file))
        job = ich_ray.submit(["doctor", "--json", "--storage", str(tmp_path / "shared")], address=head.url)
        printed = "".join(ich_ray.logs(job, address=head.url, follow=True))
        (listed,) = ich_ray.jobs(head.url)
    findings = json.loads(printed[printed.index("\n[") :])
    assert {finding["what"]: finding["level"] for finding in findings if finding["what"] not in {"disk", "shm"}} == {
        "versions": "ok",
        "gpus": "ok",
        "storage": "ok",
        "clock": "ok",
        "token": "ok",
        "dashboard": "problem",
    }
    assert listed.exit_code == 1
    assert list((tmp_path / "shared").iterdir()) == []
