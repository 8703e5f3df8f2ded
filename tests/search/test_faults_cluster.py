"""What may happen to the cluster under a search, and that nothing is lost by it. The whole list is in test_faults.py

All but the last test share one cluster, to which each adds the machines that it harms.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray._private.node import Node
from ray.cluster_utils import Cluster

from ich_ray.results import SearchResult, open_search
from ich_ray.runtime import connected
from ich_ray.search.audit.search_audit import audit
from tests.prepared import make_dataset
from tests.search.drivers import Driver, reported
from tests.search.fakes import SPACE, FakeTrainer
from tests.search.machines import HEALTH, drain, family, kill, running_cluster

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]

# Ray may tell of the process before it tells of its machine.
GONE = "its (?:process died, starting it again|machine is gone, it goes back to the queue)"


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    """A file that holds all trials at 300 images as long as it is there."""
    (tmp_path / "hold").touch()
    return tmp_path / "hold"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A machine of one slot; tests may add others."""
    with running_cluster(_system_config=HEALTH) as made:
        yield made


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    make_dataset(tmp_path / "data", patients=12, size=16)
    (tmp_path / "space.yaml").write_text(SPACE.replace("first_rung: 100", "first_rung: 900"))
    return [str(tmp_path / "data"), "--space", str(tmp_path / "space.yaml"), "--trials", "4"]


def held(driver: Driver, node: Node) -> tuple[SearchResult, int]:
    """The search once a trial on that machine and another one are held, and the number of the first."""
    found = driver.until(lambda found: [trial.images_seen for trial in found.trials] == [300, 300])
    pids = {process.pid for process in family(node)}
    (number,) = (trial.number for trial in found.trials if int(trial.where.split(":")[1]) in pids)
    return found, number


def check_end(driver: Driver, before: SearchResult, lost: int) -> None:
    """The search has ended as it should, with one more attempt at the trial that was lost."""
    assert driver.wait(300) == 0, driver.said.read_text()
    found = audit(driver.out)
    assert (found.state, found.breached) == ("ended", ())
    after = open_search(driver.out)
    assert after.count("completed") == 4
    assert [trial.number for trial in after.trials if trial.attempts == 2] == [lost]
    check_kept(before, after)


def check_kept(before: SearchResult, after: SearchResult) -> None:
    for trial in before.trials:
        assert after.trials[trial.number].reports[: len(trial.reports)] == trial.reports


def test_a_node_that_joins_late_is_used_and_killed_hard_leaves_no_gap(
    cluster: Cluster, arguments: list[str], tmp_path: Path, hold: Path
) -> None:
    driver = Driver([*arguments, "--address", cluster.address], tmp_path / "s", FakeTrainer(hold=str(hold)))
    assert len(driver.until(lambda found: reported(found) == 3).trials) == 1
    node = cluster.add_node(num_cpus=1)
    before, lost = held(driver, node)
    kill(cluster, node)
    hold.unlink()
    check_end(driver, before, lost)
    said = driver.said.read_text()
    assert re.search(rf"trial {lost}: {GONE}", said)
    assert "state-dump" not in said  # of Ray's log


def test_a_machine_taken_away_after_its_notice_leaves_no_gap(
    cluster: Cluster, arguments: list[str], tmp_path: Path, hold: Path
) -> None:
    node = cluster.add_node(num_cpus=1)
    driver = Driver([*arguments, "--address", cluster.address], tmp_path / "s", FakeTrainer(hold=str(hold)))
    before, lost = held(driver, node)
    assert drain(cluster.address, node.node_id, 1) == (True, "")
    time.sleep(1)
    kill(cluster, node)
    hold.unlink()
    check_end(driver, before, lost)


def test_a_machine_that_stood_still_spoils_nothing_when_it_goes_on(
    cluster: Cluster, arguments: list[str], tmp_path: Path, hold: Path
) -> None:
    node, log = cluster.add_node(num_cpus=1), tmp_path / "log"
    trainer = FakeTrainer(wait_s=0.2, hold=str(hold), log=str(log))
    driver = Driver([*arguments, "--address", cluster.address], tmp_path / "s", trainer)
    before, lost = held(driver, node)
    still = family(node)
    for process in still:
        process.send_signal(signal.SIGSTOP)
    try:
        driver.until(lambda _: re.search(GONE, driver.said.read_text()) is not None)
        hold.unlink()  # the other trial ends, and the lost one goes on in its place
        driver.until(lambda found: found.trials[lost].images_seen >= 500)
    finally:
        for process in still:
            process.send_signal(signal.SIGCONT)
    for _ in range(20):  # its worker saves a state at once, before its machine learns that it was given up
        assert audit(tmp_path / "s").breached == ()
        time.sleep(0.03)
    check_end(driver, before, lost)
    assert log.read_text().splitlines().count(f"{before.trials[lost].seed} 400") == 2
    assert psutil.wait_procs(still, timeout=60)[1] == []
    cluster.remove_node(node, allow_graceful=False)


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


def test_a_head_that_is_started_again_or_dies_is_told_in_one_line(
    cluster: Cluster, arguments: list[str], tmp_path: Path
) -> None:
    """The last test: it takes the cluster's head away."""
    out = tmp_path / "s"
    first = Driver([*arguments, "--address", cluster.address], out, FakeTrainer(wait_s=0.3))
    first.until(lambda found: reported(found) > 1)
    cluster.head_node.kill_gcs_server()
    time.sleep(2)
    cluster.head_node.start_gcs_server()
    check_told(first, cluster, "must stay the one that it was, got one that was started again")

    before = open_search(out)
    with running_cluster(_system_config=HEALTH) as new:
        second = Driver([*arguments, "--resume", "--address", new.address], out, FakeTrainer(wait_s=0.3))
        second.until(lambda found: reported(found) > reported(before) + 1)
        os.kill(new.head_node.all_processes["gcs_server"][0].process.pid, signal.SIGKILL)
        check_told(second, new, "must answer, got nothing for 40 s")
    check_kept(before, open_search(out))

    before = open_search(out)
    third = Driver([*arguments, "--resume"], out, FakeTrainer())
    assert third.wait(300) == 0, third.said.read_text()
    assert (audit(out).state, audit(out).breached) == ("ended", ())
    check_kept(before, open_search(out))


def check_told(driver: Driver, cluster: Cluster, problem: str) -> None:
    """The driver ended with one line on its head, and left a search that can go on."""
    assert driver.wait(60) == 1, driver.said.read_text()
    said = driver.said.read_text()
    assert said.splitlines()[-1].startswith(f"ich-ray: {cluster.address}: the head of the cluster {problem}; see to")
    assert "Traceback" not in said
    assert "StackTrace" not in said
    assert (audit(driver.out).state, audit(driver.out).breached) == ("interrupted", ())
