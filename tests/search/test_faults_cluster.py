"""What may happen to the cluster under a search, and that nothing is lost by it. The whole list is in test_faults.py"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from ich_ray.results import open_search
from ich_ray.runtime import connected
from ich_ray.search.audit import audit
from tests.prepared import make_dataset
from tests.search.drivers import Driver, reported
from tests.search.fakes import SPACE, FakeTrainer

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A machine of one slot; tests may add others."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    make_dataset(tmp_path / "data", patients=12, size=16)
    (tmp_path / "space.yaml").write_text(SPACE.replace("first_rung: 100", "first_rung: 900"))
    return [str(tmp_path / "data"), "--space", str(tmp_path / "space.yaml"), "--trials", "4"]


def resumed(arguments: list[str], out: Path) -> Driver:
    """A driver on this machine alone, once it has ended the search."""
    driver = Driver([*arguments, "--resume"], out, FakeTrainer())
    assert driver.wait(300) == 0, driver.said.read_text()
    return driver


def test_a_node_killed_hard_leaves_no_gap(cluster: Cluster, arguments: list[str], tmp_path: Path) -> None:
    out, node = tmp_path / "s", cluster.add_node(num_cpus=1)
    driver = Driver([*arguments, "--address", cluster.address], out, FakeTrainer(wait_s=0.3))
    before = driver.until(lambda found: len(found.trials) == 2 and min(len(t.reports) for t in found.trials) >= 3)
    cluster.remove_node(node, allow_graceful=False)
    assert driver.wait(300) == 0, driver.said.read_text()
    found = audit(out)
    assert (found.state, found.breached) == ("ended", ())
    after = open_search(out)
    assert after.count("completed") == 4
    assert sorted(trial.attempts for trial in after.trials) == [1, 1, 1, 2]
    for trial in before.trials:
        assert after.trials[trial.number].reports[: len(trial.reports)] == trial.reports


def test_a_killed_driver_gives_its_cpus_back(cluster: Cluster, arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "s"
    driver = Driver([*arguments, "--address", cluster.address], out, FakeTrainer(wait_s=0.2))
    driver.until(lambda found: reported(found) > 1)
    driver.kill()
    deadline = time.monotonic() + 60
    with connected(cluster.address):
        while ray.available_resources().get("CPU") != 1:
            assert time.monotonic() < deadline, ray.available_resources()
            time.sleep(0.5)
    again = Driver([*arguments, "--resume", "--address", cluster.address], out, FakeTrainer())
    assert again.wait(300) == 0, again.said.read_text()
    assert audit(out).breached == ()


def test_a_head_that_dies_is_told_within_a_minute(cluster: Cluster, arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "s"
    driver = Driver([*arguments, "--address", cluster.address], out, FakeTrainer(wait_s=0.2))
    driver.until(lambda found: reported(found) > 1)
    os.kill(cluster.head_node.all_processes["gcs_server"][0].process.pid, signal.SIGKILL)
    assert driver.wait(60) == 1, driver.said.read_text()
    said = driver.said.read_text()
    line = f"ich-ray: {cluster.address}: the head of the cluster must answer, got nothing for 40 s; see to the cluster"
    assert said.splitlines()[-1].startswith(line)
    assert "Traceback" not in said
    assert (audit(out).state, audit(out).breached) == ("interrupted", ())
    before = open_search(out)
    resumed(arguments, out)
    assert audit(out).breached == ()
    for trial in before.trials:
        assert open_search(out).trials[trial.number].reports[: len(trial.reports)] == trial.reports
