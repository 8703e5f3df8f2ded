"""Machines of a cluster that are taken away, with a notice of their cloud and without, under running trials."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from ich_ray.ray_internals import draining_nodes
from ich_ray.results import open_search
from ich_ray.runtime import connected
from ich_ray.search.audit.search_audit import audit
from tests.prepared import make_dataset
from tests.search.cloud_metadata import ACTION, TOKEN, running_service
from tests.search.drivers import Driver
from tests.search.fakes import SPACE, FakeTrainer
from tests.search.machines import HEALTH, kill, running_cluster

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]


def test_a_machine_with_a_notice_is_left_at_the_next_report_and_one_without_costs_no_retry(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", patients=12, size=16)
    (tmp_path / "space.yaml").write_text(SPACE.replace("first_rung: 100", "first_rung: 900"))
    hold = tmp_path / "hold"
    hold.touch()
    with running_cluster(_system_config=HEALTH) as cluster, running_service() as cloud:
        cloud.answers = {TOKEN: "secret"}
        spot = cluster.add_node(num_cpus=1, env_vars={"ICH_RAY_METADATA_SERVICE": f"aws={cloud.url}"})
        other = cluster.add_node(num_cpus=1)
        driver = Driver(
            [str(tmp_path / "data"), "--space", str(tmp_path / "space.yaml"), "--trials", "4", "--address",
             cluster.address],
            tmp_path / "s",
            FakeTrainer(hold=str(hold)),
        )  # fmt: skip
        driver.until(lambda found: [trial.images_seen for trial in found.trials] == [300] * 3)
        cloud.answers[ACTION] = '{"action": "terminate", "time": "2126-11-29T10:02:00Z"}'
        kill(cluster, other)
        driver.until(lambda found: any(one.cause == "node_lost" for trial in found.trials for one in trial.lost))
        until_drained(cluster, spot.node_id)
        hold.unlink()
        assert driver.wait(300) == 0, driver.said.read_text()
        assert cloud.asked[:2] == [TOKEN, ACTION]
    found = audit(driver.out)
    assert (found.state, found.breached) == ("ended", ())
    after = open_search(driver.out)
    assert after.count("completed") == 4
    lost = sorted((one.cause, one.node, one.images_seen) for trial in after.trials for one in trial.lost)
    assert lost == [("node_lost", other.node_id, 300), ("preempted", spot.node_id, 400)]
    assert sorted(trial.attempts for trial in after.trials) == [1, 1, 2, 2]
    said = driver.said.read_text()
    assert "2 attempts moved from 2 machines that went" in said
    assert said.count(": AWS spot terminate\n") == 1


def until_drained(cluster: Cluster, node: str) -> None:
    deadline = time.monotonic() + 300
    with connected(cluster.address):
        while node not in draining_nodes():
            assert time.monotonic() < deadline
            time.sleep(0.2)
