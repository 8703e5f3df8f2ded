"""A search on two CPUs, whose last trial grows from one process to two, beside one whose trial stays as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ich_ray.results import SearchResult
from ich_ray.runtime import connected
from ich_ray.search.ledger import trial_seed
from ich_ray.search.run import run_search
from ich_ray.search.tune import driver, growing
from tests.prepared import make_dataset
from tests.search.tune.growing_trainer import PatientTrainer

SPACE = """
name: real
budget: {images: 2000, report_every: 200, first_rung: 200, min_peers: 1}
parameters:
  architecture: {fixed: plain_cnn}
  blocks: {fixed: 1}
  filters: {fixed: 8}
  dense: {fixed: 0}
  batch_size: {fixed: 16}
  learning_rate: {fixed: 3.0e-3}
  dropout: {fixed: 0.0}
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("growing") / "data"
    make_dataset(folder)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        root = str(Path(__file__).parents[3])
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")])))
        patch.setattr(growing, "SWITCH_S", 0.0)  # trials of seconds would never be worth it
        patch.setattr(driver, "SILENT_S", 3000.0)  # where much else is going on workers take minutes to start
        with connected(cpus=2):
            yield


def search(data: Path, folder: Path, **keys: Any) -> SearchResult:
    folder.mkdir(exist_ok=True)
    (folder / "space.yaml").write_text(SPACE)
    return run_search(data, folder / "space.yaml", folder / "s", **{"trials": 1, "concurrent": 2, **keys})


def test_the_last_trial_grows_onto_a_free_slot_and_learns_the_same(data: Path, cluster: None, tmp_path: Path) -> None:
    log = tmp_path / "log"
    alone = search(data, tmp_path / "alone", grow=False)
    found = search(data, tmp_path / "grown", _trainer=PatientTrainer(trial_seed(0, 0), str(log)))
    (one,), (other,) = alone.trials, found.trials
    workers = [int(line.split()[1]) for line in log.read_text().splitlines()]
    assert workers[:2] == [1, 1]
    assert 2 in workers, "at the next report after its slots were held"
    shared = 200 * (1 + workers.index(2))
    assert (other.state, other.attempts, other.lost) == ("completed", 1, ())
    assert [note.workers for note in other.grown][:1] == [2]
    assert [report.images_seen for report in other.reports] == list(range(200, 2001, 200))
    for report, same in zip(one.reports, other.reports, strict=True):
        exact = report.images_seen < shared
        assert same.metrics == (report.metrics if exact else pytest.approx(report.metrics, abs=2e-3))
    assert other.logits is not None, "two workers tell what they say of patients, too"
    assert not one.grown
