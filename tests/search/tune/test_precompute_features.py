"""Features of frozen layers through Ray Data, and a search that uses them."""

from __future__ import annotations

import shutil
import threading
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.feature_store import FeatureFiles, Features
from ich_ray.errors import ConfigError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network
from ich_ray.results import open_search
from ich_ray.runtime import connected
from ich_ray.search.audit.search_audit import audit
from ich_ray.search.run import run_search
from ich_ray.search.tune.precompute_features import share_trunks
from tests.prepared import make_dataset

SPACE = """
name: frozen
budget: {{images: 96, report_every: 48, first_rung: 96}}
candidates:
  - {{architecture: mobilenet_v3_small, weights: {weights}, unfreeze_from: features10, batch_size: 16, dropout: 0.1}}
  - {{architecture: mobilenet_v3_small, weights: {weights}, unfreeze_from: features10, batch_size: 16, dropout: 0.4}}
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with connected(cpus=2):
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    network = build_network(Hyperparameters(architecture="mobilenet_v3_small"), (3, 32, 32))
    path = Path(tmp_path_factory.mktemp("weights")) / "w.safetensors"
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    return path


def frozen(weights: Path) -> Hyperparameters:
    return Hyperparameters(architecture="mobilenet_v3_small", weights=str(weights), unfreeze_from="features10")


def test_a_search_shares_a_trunk_and_finds_the_same(tmp_path: Path, weights: Path) -> None:
    dataset = make_dataset(tmp_path / "data", patients=30)
    (tmp_path / "space.yaml").write_text(SPACE.format(weights=weights))
    apart = run_search(dataset.files.root, tmp_path / "space.yaml", tmp_path / "apart")
    assert not (dataset.files.root / "features").exists()
    together = run_search(dataset.files.root, tmp_path / "space.yaml", tmp_path / "together", share_trunks=True)
    (folder,) = (dataset.files.root / "features").iterdir()
    assert (folder / "features.json").exists()
    for one, other in zip(apart.trials, together.trials, strict=True):
        assert one.state == other.state == "completed"
        for before, after in zip(one.reports, other.reports, strict=True):
            for name in ("log_loss", "train_loss", "average_precision"):
                assert after.metrics[name] == pytest.approx(before.metrics[name], rel=5e-3), name
    assert not audit(tmp_path / "together").breached
    assert not audit(dataset.files.root).breached
    assert open_search(tmp_path / "together").count("completed") == 2


def test_two_at_once_make_one_and_an_interrupted_one_goes_on(tmp_path: Path, weights: Path) -> None:
    dataset = make_dataset(tmp_path / "data", patients=150)
    keys: list[list[str]] = []
    threads = [
        threading.Thread(
            target=lambda: keys.append(share_trunks(PreparedDataset.open(tmp_path / "data"), [frozen(weights)]))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 2
    assert keys[0] == keys[1]
    files = FeatureFiles.of(dataset, keys[0][0])
    written = {path.name: path.stat().st_mtime_ns for path in files.root.glob("*.arrow")}
    assert sorted(written) == ["00000.arrow", "00001.arrow"]
    files.manifest.unlink()
    files.block(1).unlink()
    assert share_trunks(dataset, [frozen(weights)]) == keys[0]
    assert files.block(0).stat().st_mtime_ns == written["00000.arrow"]
    assert files.block(1).exists()
    features = Features.open(dataset, keys[0][0])
    assert features is not None
    assert features.covers(dataset.role("train").rows)


def test_no_room_refuses_before_anything_starts(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset(tmp_path / "data", patients=30)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 0, 100))
    (tmp_path / "space.yaml").write_text(SPACE.format(weights=weights))
    with pytest.raises(ConfigError, match="GB must be free for features"):
        run_search(dataset.files.root, tmp_path / "space.yaml", tmp_path / "s", share_trunks=True)
    assert not (tmp_path / "s").exists()
    assert not (dataset.files.root / "features").exists()
