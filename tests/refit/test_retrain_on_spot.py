"""A retraining on machines that are taken away, for real."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from ich_ray.data.dataset import PreparedDataset
from ich_ray.refit import ray_train
from ich_ray.refit.retrain import retrain
from ich_ray.storage import SearchFiles, read_json
from tests.search.machines import HEALTH, drain, family, running_cluster
from tests.searched import PARAMETERS, make_search

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two machines of one slot each, beside a head without any."""
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    with running_cluster(num_cpus=0, _system_config=HEALTH) as made:
        for _ in range(2):
            made.add_node(num_cpus=1)
        yield made


def test_a_retraining_leaves_a_machine_that_is_drained_at_its_next_report(
    cluster: Cluster, dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(ray_train, "say", said.append)
    parameters = PARAMETERS.model_copy(update={"learning_rate": 1e-5})
    files = make_search(tmp_path / "search", dataset, parameters, images=10_000, report_every=500)
    drained: list[str] = []

    def take_away() -> None:
        deadline, found = time.monotonic() + 400, None
        while not found and time.monotonic() < deadline:
            time.sleep(0.1)
            found = worker(cluster) if states(files) else None
        assert found is not None
        node, process = found
        process.send_signal(signal.SIGSTOP)  # until Ray Train has had time to look
        try:
            assert drain(cluster.address, node, 600) == (True, "")
            while not noticed(cluster) and time.monotonic() < deadline:
                time.sleep(0.1)
            drained.append(node)
        finally:
            process.send_signal(signal.SIGCONT)

    thread = threading.Thread(target=take_away)
    thread.start()
    try:
        retrain(files.root, address=cluster.address)
    finally:
        thread.join()
    (line,) = said
    assert line.startswith("  retrain: 1 of its machines went, going on from ")
    reports = [entry["images_seen"] for entry in read_json(files.retraining)["reports"]]
    assert reports == [500 * (number + 1) for number in range(len(reports))]
    assert len(drained) == 1


def states(files: SearchFiles) -> list[Any]:
    return list(files.final.glob("retraining-*/state-*.json"))


def noticed(cluster: Cluster) -> bool:
    """Whether Ray Train has told of it in the log of the process that looks for drained machines."""
    logs = Path(cluster.head_node.get_session_dir_path()) / "logs"
    return any("preemption detected" in log.read_text(errors="replace") for log in logs.glob("worker-*"))


def worker(cluster: Cluster) -> tuple[str, psutil.Process] | None:
    """The machine that trains, and its process there."""
    for node in cluster.worker_nodes:
        for process in family(node):
            with suppress(psutil.Error):  # it has ended meanwhile
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    return node.node_id, process
    return None
