from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from ich_ray import machines
from ich_ray.data.prepare import run as prepare_module
from ich_ray.data.prepare.run import prepare
from ich_ray.errors import ConfigError
from ich_ray.machines import ask_machines
from ich_ray.refit.retrain import retrain
from ich_ray.runtime import connected
from ich_ray.search import preflight
from ich_ray.search.preflight import check_machines
from ich_ray.search.run import run_search
from ich_ray.storage import locate, read_json
from tests.data.folders import PATIENTS, SLICES, write_cohort
from tests.prepared import make_dataset
from tests.search.fakes import SPACE, FakeTrainer
from tests.search.machines import running_cluster
from tests.searched import make_search

pytestmark = [pytest.mark.cluster]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two machines of one slot each; here they share every folder."""
    with running_cluster() as made:
        made.add_node(num_cpus=1)
        yield made


def test_the_same_search_runs_on_a_cluster(cluster: Cluster, tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", patients=20)
    (tmp_path / "space.yaml").write_text(SPACE)
    call = (tmp_path / "data", tmp_path / "space.yaml", tmp_path / "s")
    with pytest.raises(ConfigError, match="got 2 where the largest has 1 "):
        run_search(*call, cpus_per_trial=2, address=cluster.address)
    (tmp_path / "met").mkdir()
    found = run_search(*call, trials=6, address=cluster.address, _trainer=FakeTrainer(meet=str(tmp_path / "met")))
    assert [trial.state in {"completed", "pruned"} for trial in found.trials] == [True] * 6
    assert len({trial.where for trial in found.trials}) >= 2
    assert not ray.is_initialized()


@pytest.mark.slow
def test_two_machines_retrain_one_network(cluster: Cluster, tmp_path: Path) -> None:
    files = make_search(tmp_path / "search", make_dataset(tmp_path / "data", patients=40))
    retrain(files.root, workers=2, address=cluster.address)
    assert read_json(files.retraining)["workers"] == 2
    assert sorted(path.name for path in files.final.iterdir()) == ["bundle", "retraining.json"]


def test_a_machine_that_sees_other_data_is_named(cluster: Cluster, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", patients=12)
    with connected(cluster.address):
        check_machines(dataset, locate(tmp_path / "data"), witness="dataset.json")
        with pytest.raises(ConfigError, match=r"machine [\d.]+: .*every machine must see the search folder, got none"):
            check_machines(dataset, locate(tmp_path / "data"))
        dataset.manifest = dataset.manifest.model_copy(update={"fingerprint": "other"})
        with pytest.raises(ConfigError, match=r"machine [\d.]+: .*must read this dataset \(other\), got [0-9a-f]{16}"):
            check_machines(dataset, locate(tmp_path / "data"))


def test_a_machine_that_sees_no_images_is_named(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = (tmp_path / "images", write_cohort(tmp_path / "images"), tmp_path / "data")
    missing = str(tmp_path / "images" / "none.dcm")
    assert prepare_module._unseen([str(call[1]), missing]) == f"{missing}: every machine must see this file, got none"
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_unseen", lambda paths: f"{paths[0]} {paths[1]}")
        with pytest.raises(ConfigError, match=r"machine [\d.]+: .*/images/ID_000.dcm .*/data/prepare.json; use a fold"):
            prepare(*call, size=16, address=cluster.address)
    assert len(prepare(*call, size=16, address=cluster.address)) == PATIENTS * SLICES


def test_a_machine_that_does_not_answer_is_named(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset(tmp_path / "data", patients=12)
    monkeypatch.setattr(machines, "_ANSWER_WITHIN_S", 1)
    monkeypatch.setattr(preflight, "_look", lambda *_: time.sleep(15))
    with (
        connected(cluster.address),
        pytest.raises(
            ConfigError, match=r"machine [\d.]+: must answer within 1 s, got nothing; check it with `ray sta"
        ),
    ):
        check_machines(dataset, locate(tmp_path / "data"))


@pytest.mark.slow
def test_a_machine_with_another_torch_is_named(cluster: Cluster, tmp_path: Path) -> None:
    facts = tmp_path / "torch-0.1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 0.1\n")
    told = r"machine [\d.]+: torch must be \d\S+ as in this process, got 0\.1; install the same there"
    node = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(tmp_path)})
    try:
        with connected(cluster.address), pytest.raises(ConfigError, match=told):
            ask_machines()
    finally:
        cluster.remove_node(node)
