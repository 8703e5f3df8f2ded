from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError, IchRayError, IntegrityError
from ich_ray.final.bundle import load_bundle
from ich_ray.final.checkpoints import keep, newest, state_file
from ich_ray.final.distributed import _resources, patience_over
from ich_ray.final.retrain import Retraining, _plan, _sized, chosen_trial, retrain
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.training import TrainingState
from ich_ray.results import Objective, Report, open_search
from ich_ray.runtime import connected
from ich_ray.search.machines import Machine
from ich_ray.storage import read_json, write_json
from tests.searched import PARAMETERS, make_search


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        root = str(Path(__file__).parents[2])
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")])))
        with connected(cpus=2):
            yield


def report(images_seen: int, value: float | None) -> Report:
    return Report(images_seen=images_seen, metrics={"average_precision": value}, elapsed_s=0, time=0)


def test_patience_counts_reports_after_the_best() -> None:
    values = [0.2, 0.5, 0.4, 0.4, 0.4, 0.4]
    reports = [report(number, value) for number, value in enumerate(values)]
    assert not patience_over(reports, Objective())
    assert patience_over([*reports, report(6, 0.5)], Objective())
    assert not patience_over([*reports, report(6, 0.6)], Objective())
    assert patience_over([report(number, None) for number in range(5)], Objective())


def of(*kinds: tuple[float | None, float | None, int]) -> list[Machine]:
    return [Machine("machine", cpus, gpus, count) for cpus, gpus, count in kinds]


@pytest.mark.parametrize(
    ("found", "workers", "gpus", "each"),
    [
        (of((2, 0, 1)), 1, None, {"CPU": 2, "GPU": 0}),
        (of((2, 0, 1)), 2, None, {"CPU": 1, "GPU": 0}),
        (of((3, 0, 2)), 3, None, {"CPU": 1, "GPU": 0}),
        (of((0, 0, 1), (8, 0, 1)), 2, None, {"CPU": 4, "GPU": 0}),
        (of((0, 0, 1), (8, 1, 8)), 8, None, {"CPU": 1, "GPU": 1}),  # a head without work, workers still to be started
        (of((8, 1, 1)), 1, 0, {"CPU": 8, "GPU": 0}),
        (of((8, 1, 1)), 2, 0.5, {"CPU": 1, "GPU": 0.5}),
    ],
)
def test_what_each_worker_holds(found: list[Machine], workers: int, gpus: float | None, each: dict[str, float]) -> None:
    assert _resources(found, workers, gpus) == each


@pytest.mark.parametrize(("found", "workers"), [(of((2, 0, 1)), 3), (of((8, 1, 1)), 2), ([], 1), (of((4, 0, 1)), 0)])
def test_more_workers_than_there_are_places_are_refused(found: list[Machine], workers: int) -> None:
    with pytest.raises(ConfigError, match=rf"--workers: .* got {workers} workers and .*; ask for fewer workers"):
        _resources(found, workers, None)


def test_the_chosen_trial(dataset: PreparedDataset, tmp_path: Path) -> None:
    files = make_search(tmp_path / "search", dataset)
    assert chosen_trial(open_search(files.root)).number == 0
    write_json(files.confirmation, {"chosen": 2})
    assert chosen_trial(open_search(files.root)).number == 2
    write_json(files.confirmation, {"chosen": 7})
    with pytest.raises(IntegrityError, match="'chosen' must be the number of a trial of this search, got 7"):
        chosen_trial(open_search(files.root))


def test_another_dataset_is_refused(dataset: PreparedDataset, tmp_path: Path) -> None:
    files = make_search(tmp_path / "search", dataset)
    write_json(files.search, {**read_json(files.search), "fingerprint": "other"})
    with pytest.raises(IntegrityError, match="the fingerprint must be other"):
        retrain(files.root)


def test_only_the_newest_and_the_best_state_stay(tmp_path: Path) -> None:
    from ich_ray.storage import locate

    folder, reports = locate(tmp_path / "r"), []
    for number, value in enumerate([0.2, 0.5, 0.4], start=1):
        reports.append(report(number, value))
        state = TrainingState({"weights.a": torch.zeros(1)}, {"images_seen": number, "elapsed_s": 0.0, "plan": {}})
        keep(folder, state, reports, Objective())
    assert sorted(file.name[-15:-12] for file in folder.glob("state-*")) == ["002", "003"]
    state, known = newest(folder)
    assert state is not None
    assert (state.images_seen, len(known)) == (3, 3)
    state_file(folder, 3).write_bytes(b"torn")
    state, known = newest(folder)
    assert state is not None
    assert (state.images_seen, len(known)) == (2, 2)


def test_retrain_with_one_worker(dataset: PreparedDataset, tmp_path: Path, cluster: None) -> None:
    files = make_search(tmp_path / "search", dataset, images=400, report_every=100)
    bundle = retrain(files.root)
    record = Retraining.model_validate(read_json(files.retraining))
    seen = [entry.images_seen for entry in record.reports]
    assert seen == [100 * (number + 1) for number in range(len(seen))]
    assert seen[-1] == 800 or (record.stopped_early and seen[-1] == record.best_images_seen + 500)
    values = {entry.images_seen: entry.metrics["average_precision"] for entry in record.reports}
    assert values[record.best_images_seen] == max(value or 0 for value in values.values())
    assert not list(files.final.glob("retraining-*"))
    assert str(record.setup) == "cpu, float32, images on host"
    assert bundle.card.search.trial == record.trial == 0
    assert bundle.card.search.selection_value == 0.8
    assert (bundle.card.temperature, bundle.card.operating_points) == (1.0, {})
    images = dataset.role("validation").gather(torch.arange(8).numpy())
    assert load_bundle(files.bundle).logits(images).tolist() == bundle.logits(images).tolist()
    with pytest.raises(ConfigError, match="--workers: each of 1 or more workers needs a CPU and 0 GPU"):
        retrain(files.root, workers=3)


@pytest.mark.slow
def test_a_diverging_draw_is_an_error_and_not_retried(dataset: PreparedDataset, tmp_path: Path, cluster: None) -> None:
    wild = {"optimizer": "sgd", "learning_rate": 10.0, "weight_decay": 1.0, "decay": 0.0}
    files = make_search(tmp_path / "search", dataset, PARAMETERS.model_copy(update=wild), 20_000, 2_000)
    with pytest.raises(IchRayError, match="diverged"):
        retrain(files.root)
    assert not files.retraining.exists()


@pytest.mark.slow
def test_two_workers_equal_one(dataset: PreparedDataset, tmp_path: Path, cluster: None) -> None:
    parameters = PARAMETERS.model_copy(update={"dropout": 0.0, "learning_rate": 1e-3})
    found = []
    for workers in (1, 2):
        files = make_search(tmp_path / f"search{workers}", dataset, parameters, images=200, report_every=100)
        retrain(files.root, workers=workers)
        found.append(Retraining.model_validate(read_json(files.retraining)))
    assert [record.workers for record in found] == [1, 2]
    for one, two in zip(found[0].reports, found[1].reports, strict=True):
        assert two.metrics == pytest.approx(one.metrics, abs=5e-3)


def own_train_workers() -> list[int]:
    """Train workers below this very process: other people's Ray may run on the machine."""
    parents, workers = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            pid, status, name = int(folder.name), (folder / "status").read_text(), (folder / "cmdline").read_text()
        except OSError:  # it ended while we looked
            continue
        parents[pid] = int(status.split("PPid:")[1].split()[0])
        workers += [pid] if "RayTrainWorker" in name else []

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return [pid for pid in workers if ours(pid)]


@pytest.mark.slow
def test_a_killed_worker_goes_on(dataset: PreparedDataset, tmp_path: Path, cluster: None) -> None:
    parameters = PARAMETERS.model_copy(update={"learning_rate": 1e-5})
    files = make_search(tmp_path / "search", dataset, parameters, images=2_000, report_every=400)
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list(files.final.glob("retraining-*/reports.json")):
            time.sleep(0.1)
        for pid in own_train_workers():
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    retrain(files.root)
    thread.join()
    seen = [entry["images_seen"] for entry in read_json(files.retraining)["reports"]]
    assert seen == [400 * (number + 1) for number in range(len(seen))]
    assert killed


def test_a_sample_in_epochs(dataset: PreparedDataset, tmp_path: Path) -> None:
    files = make_search(tmp_path / "search", dataset)
    found = open_search(files.root)
    trial = found.best()
    parameters = Hyperparameters.model_validate(trial.parameters)
    sized = _sized(parameters, dataset, 40, 20)
    plan = _plan(found, trial, sized, 40)
    assert (plan.images, plan.report_every) == (800, 40)
    assert (plan.parameters["training_slices"], plan.parameters["epochs"]) == (40, 20)
    assert _plan(found, trial, parameters, None).images == 1200
    with pytest.raises(ConfigError, match="--slices, --epochs: both must be given"):
        _sized(parameters, dataset, 40, None)
    with pytest.raises(ConfigError, match=r"--slices: at most the \d+ training slices can be drawn, got 100,000"):
        _sized(parameters, dataset, 100_000, 1)
