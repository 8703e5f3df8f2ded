"""A confirmation on two CPUs whose last training grows, beside one whose trainings stay as they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ich_ray.data.dataset import PreparedDataset
from ich_ray.refit.confirm import confirm
from ich_ray.results import open_search
from ich_ray.runtime import connected
from ich_ray.search.ledger import trial_seed
from ich_ray.search.tune import driver, growing
from tests.prepared import make_dataset
from tests.refit.test_confirm import SPACE, searched
from tests.search.tune.growing_trainer import PatientTrainer

BUDGET = {"images": 600, "report_every": 100, "first_rung": 100, "reduction": 3, "min_peers": 3}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_dataset(tmp_path_factory.mktemp("grown") / "data", patients=40)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        root = str(Path(__file__).parents[2])
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")])))
        patch.setattr(growing, "SWITCH_S", 0.0)  # trainings of no time would never be worth it
        patch.setattr(driver, "SILENT_S", 3000.0)  # where much else is going on workers take minutes to start
        with connected(cpus=2):
            yield


def test_the_last_training_grows_onto_a_free_slot_and_says_the_same(
    tmp_path: Path, dataset: PreparedDataset, cluster: None
) -> None:
    """The values are digests of every step and of the fold, so that nothing but the same will do."""
    log, found = tmp_path / "log", {}
    for grow in (False, True):
        folder = searched(tmp_path / str(grow), dataset, {1e-3: 0.8, 1e-2: 0.7}, space={**SPACE, "budget": BUDGET})
        seed = trial_seed(trial_seed(4, 2**31), 1) if grow else None
        trainer = PatientTrainer(seed, str(log), digests=True)
        told = confirm(folder, top=1, folds=2, grow=grow, _trainer=trainer)
        trainings = open_search(open_search(folder).files.confirming("folds").root)
        found[grow] = told, trainings.trials, weights(Path(str(trainings.files.weights)))
    (alone, stayed, kept), (told, grown, also) = found[False], found[True]
    workers = [int(line.split()[1]) for line in log.read_text().splitlines()]
    assert workers[:2] == [1, 1]
    assert 2 in workers, "at the report after its slots were held"
    assert [note.workers for note in grown[1].grown][:1] == [2]
    assert not any(trial.grown for trial in (*stayed, grown[0]))
    assert [[report.metrics for report in trial.reports] for trial in stayed] == [
        [report.metrics for report in trial.reports] for trial in grown
    ]
    assert len({trial.value for trial in grown}) == 2, "two folds, two values"
    assert [(trial.state, trial.attempts, trial.lost) for trial in grown] == [("completed", 1, ())] * 2
    assert told.candidates[0].values == alone.candidates[0].values
    assert (told.chosen, told.images, told.images) == (alone.chosen, alone.images, 1200)
    assert also == kept
    assert len(kept) >= 2, "of each training, for a bundle of the confirmation's networks"


def weights(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}
