from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from ich_ray import cli
from ich_ray.assess.calibration import calibrate
from ich_ray.bundle.bundle import load_bundle
from ich_ray.data.dataset import PreparedDataset, RoleCounts
from ich_ray.data.folds import trained_and_validated
from ich_ray.errors import ConfigError, IchRayError, IntegrityError, TrialFailure
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.refit import retrain as module
from ich_ray.refit.confirmation import chosen_trial
from ich_ray.refit.ray_train import RetrainPlan, _resources, _train, checkpoints_in, patience_over, read_reports
from ich_ray.refit.retrain import _plan, retrain
from ich_ray.refit.retrain_record import (
    RetrainCourse,
    Retraining,
    SeedRun,
    best_runs,
    check_views,
    folder_names,
    parse_views,
    planned,
    spread,
)
from ich_ray.results import open_search
from ich_ray.runtime import connected
from ich_ray.search.cluster_resources import Machine
from ich_ray.storage import locate, read_json, write_json
from ich_ray.training.data_parallel import ALONE
from ich_ray.training.loop import TrainingBudget, train
from ich_ray.trial_records import ExecutionInfo, FoldNote, LogitsReference, Objective, Report
from ich_ray.vocabulary import Patients, Role
from tests.records import make_confirmation
from tests.search.fakes import FakeState
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
    assert not patience_over(reports, Objective(), 5)
    assert patience_over([*reports, report(6, 0.5)], Objective(), 5)
    assert not patience_over([*reports, report(6, 0.6)], Objective(), 5)
    assert patience_over([report(number, None) for number in range(5)], Objective(), 5)
    assert not patience_over([*reports, report(6, 0.5)], Objective(), None)


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


@pytest.mark.parametrize(("names", "got"), [(["vflip"], "vflip"), (["hflip", "hflip"], "hflip, hflip")])
def test_views_that_do_not_exist_or_count_twice_are_refused_before_anything_trains(names: list[str], got: str) -> None:
    assert parse_views(["hflip"]) == ("hflip",)
    with pytest.raises(ConfigError, match=rf"--tta: each must be one of .*, depth_flip, named once, got {got}; co"):
        retrain("nowhere", tta=names)


def test_neighbors_are_exchanged_only_where_there_are_some(dataset: PreparedDataset, tmp_path: Path) -> None:
    assert parse_views(["depth_flip", "hflip"]) == ("hflip", "depth_flip")
    check_views(("hflip",), [PARAMETERS])
    check_views(("depth_flip",), [PARAMETERS, PARAMETERS.model_copy(update={"neighbors": 1})])
    files = make_search(tmp_path / "search", dataset)
    with pytest.raises(ConfigError, match=r"--tta depth_flip: exchanges the neighbors .*, got neighbors: 0; "):
        retrain(files.root, tta=["depth_flip"])
    assert not files.final.exists()


def test_the_chosen_trial(dataset: PreparedDataset, tmp_path: Path) -> None:
    files = make_search(tmp_path / "search", dataset)
    assert chosen_trial(open_search(files.root)).number == 0
    write_json(files.confirmation, make_confirmation(2))
    assert chosen_trial(open_search(files.root)).number == 2
    write_json(files.confirmation, make_confirmation(7))
    with pytest.raises(IntegrityError, match="'chosen' must be the number of a trial of this search, got 7"):
        chosen_trial(open_search(files.root))
    for damaged in ([], {"chosen": 2}):
        write_json(files.confirmation, damaged)
        with pytest.raises(
            IntegrityError, match=r"confirm\.json: must match its format, got .*; remove the file and conf"
        ):
            chosen_trial(open_search(files.root))


SEEDS = [
    SeedRun(seed=1, value=0.7, best_images_seen=300),
    SeedRun(seed=2, reason="diverged"),
    SeedRun(seed=3, value=0.9, best_images_seen=500),
    SeedRun(seed=4, value=0.9, best_images_seen=200),
]


def test_the_best_seed_on_validation_is_kept_and_all_are_told() -> None:
    assert [run.seed for run in best_runs(SEEDS, Objective())] == [3, 4, 1]
    assert [run.seed for run in best_runs(SEEDS, Objective(metric="log_loss", mode="min"))] == [1, 3, 4]
    assert best_runs([SEEDS[1]], Objective()) == []
    found = spread(SEEDS)
    assert found is not None
    assert (found.seeds, found.failed, found.low, found.high) == (3, 1, 0.7, 0.9)
    assert found.mean == pytest.approx(2.5 / 3)
    assert found.std == pytest.approx(0.11547, abs=1e-5)
    assert str(found) == "mean 0.8333, SD 0.1155, 0.7000 to 0.9000 over 3 seeds, 1 more failed"
    assert spread([SEEDS[1]]) is None


def fold(number: int, images: int) -> FoldNote:
    logits = LogitsReference(file="logits/x", sha256="0" * 64)
    return FoldNote(number=number, images_seen=images, whole=images == 400, value=0.5, logits=logits)


def test_what_a_retraining_may_see(dataset: PreparedDataset, tmp_path: Path) -> None:
    found = open_search(make_search(tmp_path / "search", dataset).root)
    roles = {"train": RoleCounts(slices=300, patients=1, positives=1),
             "validation": RoleCounts(slices=100, patients=1, positives=1)}  # fmt: skip
    trial = found.best()  # its best report was its last, at 600 images

    def course(
        patients: Patients, before: Sequence[SeedRun] = (), parameters: Hyperparameters = PARAMETERS
    ) -> RetrainCourse:
        return planned(found, trial, parameters, roles, patients, before)

    assert (course("train").images, course("train").report_every) == (1200, 200)
    assert course("train").budget == "2 times that of the search at most, ended by patience"
    assert course("train+validation").images == 800
    assert course("train+validation").budget.endswith("the best report of trial 0, which had seen 600 images")
    measured = [run for run in SEEDS if run.value is not None]
    assert course("train+validation", measured).images == 400  # the median of 200, 300, 500
    annealing = PARAMETERS.model_copy(update={"schedule": "cosine"})
    alone = course("train", parameters=annealing)
    assert (alone.images, alone.budget) == (600, "that of the search")
    assert course("train+validation", measured, annealing).images == 800
    sized = PARAMETERS.model_copy(update={"training_slices": 40, "epochs": 20})
    assert course("train+validation", parameters=sized).images == 600, "a sample is as large for all"
    # With folds, as many passes as a network of its own took: 200 images of 4/5 of the patients make 250 of all.
    folded = [
        report.model_copy(update={"fold": fold(number, images)})
        for report, (number, images) in zip(trial.reports, ((0, 400), (1, 200), (1, 400)), strict=True)
    ]
    folded[1] = folded[1].model_copy(update={"metrics": {"average_precision": 0.9}})
    trial = trial.model_copy(update={"reports": tuple(folded)})
    found.record.space["objective"] = {"folds": 5}
    assert course("train+validation").images == 250


def test_the_precision_of_the_search_names_no_folder() -> None:
    keys = {"parameters": PARAMETERS.identity(), "objective": {}, "images": 9, "report_every": 3, "seed": 1}
    plan = asdict(RetrainPlan(folder="", dataset="/data", fingerprint="f", **keys))  # type: ignore[arg-type]
    of_0_1_0 = {name: value for name, value in plan.items() if name != "precision"}
    assert folder_names(plan, PARAMETERS) == folder_names(of_0_1_0, PARAMETERS)
    assert folder_names(plan | {"precision": "float32"}, PARAMETERS) == folder_names(of_0_1_0, PARAMETERS)


def test_seeds_that_nothing_can_tell_apart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--seeds 3 first and then with --patients train\+validation alone"):
        retrain(tmp_path, seeds=3, patients="train+validation")
    with pytest.raises(ConfigError, match="--seeds: must be at least 1, got 0"):
        retrain(tmp_path, seeds=0)


def test_a_failed_seed_of_several_is_a_finding(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = make_search(tmp_path / "search", dataset)

    def fail(*_: object) -> None:
        raise TrialFailure("diverged", "the loss is nan")

    monkeypatch.setattr("ich_ray.refit.retrain.fit", fail)
    monkeypatch.setattr("ich_ray.refit.retrain.connected", lambda _: nullcontext())
    monkeypatch.setattr("ich_ray.refit.retrain.ask_machines", lambda: None)
    with pytest.raises(IchRayError, match="one seed at least must get to its end, got diverged, diverged"):
        retrain(files.root, seeds=2)
    with pytest.raises(TrialFailure, match="diverged: the loss is nan"):
        retrain(files.root)
    assert not files.retraining.exists()


def test_another_dataset_is_refused(dataset: PreparedDataset, tmp_path: Path) -> None:
    files = make_search(tmp_path / "search", dataset)
    write_json(files.search, {**read_json(files.search), "fingerprint": "f" * 32})
    with pytest.raises(IntegrityError, match="the fingerprint must be ffff"):
        retrain(files.root)


def test_a_resumed_seed_knows_its_reports(tmp_path: Path) -> None:
    folder = locate(tmp_path / "r")
    assert read_reports(folder) == []
    reports = [report(1, 0.5), report(2, None)]
    checkpoints_in(folder).save(2, FakeState(2), [entry.model_dump(mode="json") for entry in reports])
    assert read_reports(folder) == reports
    checkpoints_in(folder).save(3, FakeState(3), [{"images_seen": "many"}])
    with pytest.raises(IntegrityError, match=r"r: checkpoints must hold a list of reports, got .*; remove it and"):
        read_reports(folder)


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
    assert (record.patients, record.images, record.seed, len(record.runs)) == ("train", 800, 10, 1)
    note = bundle.card.retraining
    assert note is not None
    assert (note.patients, note.images, note.seeds, note.rule) == ("train", 800, (10,), "the only one")
    assert note.validation is not None
    assert note.validation.mean == max(value or 0 for value in values.values())
    with pytest.raises(ConfigError, match="--workers: each of 1 or more workers needs a CPU and 0 GPU"):
        retrain(files.root, workers=3)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retrain in this process."""
    monkeypatch.setattr("ich_ray.refit.retrain.fit", lambda plan, *_: ("cpu", _train(plan, ALONE, torch.device("cpu"))))
    monkeypatch.setattr("ich_ray.refit.retrain.connected", lambda _: nullcontext())


@pytest.mark.parametrize(("schedule", "ends"), [("inverse_time", 160), ("cosine", 200), ("flat_cosine", 200)])
def test_a_retraining_without_a_better_report_ends_where_its_schedule_may(
    dataset: PreparedDataset, tmp_path: Path, schedule: str, ends: int, here: None
) -> None:
    still = PARAMETERS.model_copy(update={"schedule": schedule, "learning_rate": 1e-9, "filters": 2})
    files = make_search(tmp_path / "search", dataset, still, images=200, report_every=20)
    assert cli.call(["retrain", str(files.root), "--tta", "hflip"]) == 0
    assert load_bundle(files.bundle).card.tta == ("hflip",)
    record = Retraining.model_validate(read_json(files.retraining))
    assert (record.best_images_seen, record.reports[-1].images_seen) == (60, ends)  # only batch statistics move


@pytest.mark.parametrize("patients", ["train", "train+validation"])
def test_the_bundle_of_a_retraining_is_its_average(
    dataset: PreparedDataset, tmp_path: Path, patients: Patients, here: None
) -> None:
    averaged = PARAMETERS.model_copy(update={"ema": 0.9, "schedule": "cosine", "warmup": 0.1})
    files = make_search(tmp_path / "search", dataset, averaged, images=200, report_every=100)
    bundle = retrain(files.root, patients=patients)
    record = Retraining.model_validate(read_json(files.retraining))
    training, validation = trained_and_validated(dataset, patients)
    budget = TrainingBudget(record.images or 0, 100)
    states = [one.state() for one in train(averaged, training, validation, budget=budget, seed=10)]
    state = next(one for one in states if one.images_seen == record.best_images_seen)
    for name, tensor in bundle.network.state_dict().items():
        assert torch.equal(tensor, state.part("average")[name]), name
    assert not torch.equal(state.part("average")["body.head.0.bias"], state.part("weights")["body.head.0.bias"])


@pytest.mark.slow
def test_seeds_and_then_all_patients(dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One search through both: three seeds, killed after the second; then all patients for as long as was best."""
    files = make_search(tmp_path / "search", dataset, images=200, report_every=100)
    trained: list[int] = []
    killed = False

    def fit_here(plan: RetrainPlan, *_: object) -> tuple[str, ExecutionInfo | None]:
        nonlocal killed
        if len(trained) == 2 and not killed:
            killed = True
            raise KeyboardInterrupt
        trained.append(plan.seed)
        return "cpu", _train(plan, ALONE, torch.device("cpu"))

    monkeypatch.setattr("ich_ray.refit.retrain.fit", fit_here)
    monkeypatch.setattr("ich_ray.refit.retrain.connected", lambda _: nullcontext())
    monkeypatch.setattr("ich_ray.refit.retrain.ask_machines", lambda: None)
    with pytest.raises(KeyboardInterrupt):
        retrain(files.root, seeds=3)
    assert not files.retraining.exists()
    bundle = retrain(files.root, seeds=3)
    assert trained[0] == 10
    assert len(trained) == 3 == len(set(trained)), "what had ended was not trained again"
    record = Retraining.model_validate(read_json(files.retraining))
    assert [run.seed for run in record.runs] == trained
    values = [run.value for run in record.runs]
    best = max(record.runs, key=lambda run: run.value or 0)
    assert (record.seed, record.best_images_seen) == (best.seed, best.best_images_seen)
    note = bundle.card.retraining
    assert note is not None
    assert note.validation is not None
    assert note.validation.mean == pytest.approx(sum(value or 0 for value in values) / 3)
    assert (note.validation.low, note.validation.high) == (min(values, key=float), max(values, key=float))  # type: ignore[arg-type]
    assert not list(files.final.glob("retraining-*"))

    again = retrain(files.root, patients="train+validation")
    folded = Retraining.model_validate(read_json(files.retraining))
    share = (len(dataset.role("train")) + len(dataset.role("validation"))) / len(dataset.role("train"))
    seen = sorted(run.best_images_seen for run in record.runs)[1]
    assert folded.images == round(seen * share) == folded.best_images_seen == folded.reports[-1].images_seen
    assert not folded.stopped_early
    assert all(report.metrics.keys() == {"train_loss"} for report in folded.reports)
    assert folded.rehearsal == record.runs
    assert again.card.trained_by == ("train", "validation")
    assert again.card.retraining is not None
    assert again.card.retraining.validation == note.validation
    assert calibrate(files.root).prior_shift == pytest.approx(_shift(dataset, "train", "validation"))


def _shift(dataset: PreparedDataset, *roles: Role) -> float:
    labels = np.concatenate([dataset.role(role).labels for role in roles])
    return math.log(labels.sum() / (1 - labels).sum())


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
        while time.monotonic() < deadline and not list(files.final.glob("retraining-*/state-*.json")):
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


def test_a_course_that_is_handed_in_is_kept(dataset: PreparedDataset, tmp_path: Path) -> None:
    found = open_search(make_search(tmp_path / "search", dataset).root)
    sized = PARAMETERS.model_copy(update={"training_slices": 40, "epochs": 20})
    plan = _plan(found, RetrainCourse(sized, 800, 40, "as was asked"), "train")
    assert (plan.images, plan.report_every, plan.patients) == (800, 40, "train")
    assert (plan.parameters["training_slices"], plan.parameters["epochs"]) == (40, 20)


def test_a_storage_that_does_not_answer_for_a_while_hides_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: list[list[Report] | Exception] = [
        [],
        OSError(5, "Input/output error"),
        RuntimeError("503"),
        [report(1, 0.5)],
    ]

    def answered(_: object) -> list[Report]:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    said: list[str] = []
    monkeypatch.setattr(module, "read_reports", answered)
    monkeypatch.setattr(module, "say", said.append)
    monkeypatch.setattr(module, "_POLL_S", 0.01)
    with module._report_progress(locate(tmp_path), "average_precision"):
        deadline = time.monotonic() + 60
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
    assert [line.partition(", ")[0] for line in said] == ["  retrain: 1 images"]
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_retraining_says_so(
    dataset: PreparedDataset, tmp_path: Path, with_signal: signal.Signals
) -> None:
    files = make_search(tmp_path / "search", dataset)
    command = [sys.executable, "-m", "ich_ray.cli", "retrain", str(files.root), "--slices", "100", "--epochs", "1000"]
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root})
    deadline = time.monotonic() + 120
    while (
        time.monotonic() < deadline and process.poll() is None and not list(files.final.glob("retraining-*/ray_train"))
    ):
        time.sleep(0.1)
    process.send_signal(with_signal)
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, said.splitlines()[-1]) == (
        130,
        "ich-ray: interrupted; nothing finished is lost, run the same command again to go on",
    )
    assert "Traceback" not in said
