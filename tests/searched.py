"""A finished search, written by hand, for tests of everything after `search`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ich_ray.assess.calibration import calibrate
from ich_ray.bundle.bundle import Bundle
from ich_ray.data.dataset import PreparedDataset
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.refit import bundle_builder
from ich_ray.results import open_search
from ich_ray.search_records import SearchRecord
from ich_ray.storage import SearchFiles, locate, write_json
from ich_ray.training.loop import TrainingBudget, train
from ich_ray.trial_records import Objective, Report, TrialResult
from ich_ray.vocabulary import TtaView
from tests.prepared import make_dataset

PARAMETERS = Hyperparameters(batch_size=16, learning_rate=3e-3, dropout=0.2, filters=8, dense=16)


def make_search(
    folder: Path,
    dataset: PreparedDataset,
    parameters: Hyperparameters = PARAMETERS,
    images: int = 600,
    report_every: int = 200,
) -> SearchFiles:
    """Trial 0 is completed, trial 1 was stopped early, trial 2 completed and worse."""
    files = SearchFiles(locate(folder))
    budget = {"images": images, "report_every": report_every, "first_rung": report_every, "reduction": 3}
    record = SearchRecord(
        name="by-hand",
        space={"name": "by-hand", "objective": Objective().model_dump(), "budget": {**budget, "min_peers": 3}},
        dataset=str(dataset.files.root),
        fingerprint=dataset.manifest.fingerprint,
        prevalence=dataset.role("validation").prevalence,
        seed=0,
        trials=3,
        versions={},
        created=0.0,
    )
    write_json(files.search, record.model_dump(mode="json"))
    for number, state, values in (
        (0, "completed", (0.5, 0.6, 0.8)),
        (1, "pruned", (0.9,)),
        (2, "completed", (0.4,) * 3),
    ):
        reports = tuple(
            Report(
                images_seen=report_every * (index + 1),
                metrics={"average_precision": value},
                elapsed_s=index + 1.0,
                time=float(index),
            )
            for index, value in enumerate(values)
        )
        trial = TrialResult(
            number=number,
            parameters={**parameters.model_dump()},
            state=state,  # type: ignore[arg-type]
            reports=reports,
            seed=number + 10,
        )
        write_json(files.trial(number), trial.model_dump(mode="json"))
    return files


def calibrated_bundle(folder: Path, parameters: Hyperparameters = PARAMETERS) -> Path:
    """A calibrated bundle of a search below `folder`, and the dataset of both."""
    dataset = make_dataset(folder / "dataset")
    files = make_search(folder / "search", dataset, parameters)
    make_bundle(files, dataset, parameters)
    calibrate(files.root)
    return Path(str(files.bundle))


def make_bundle(
    files: SearchFiles,
    dataset: PreparedDataset,
    parameters: Hyperparameters = PARAMETERS,
    tta: Sequence[TtaView] = (),
) -> Bundle:
    """What `retrain` leaves, without Ray: a small trained network, not calibrated."""
    found = open_search(files.root)
    roles = dataset.role("train"), dataset.role("validation")
    for progress in train(parameters, *roles, budget=TrainingBudget(1200, 1200), seed=10):
        state = files.final / "state.safetensors"
        progress.state().save(state)
    return bundle_builder.make_bundle(found, found.best(), parameters, dataset, state, tta=tta)
