from __future__ import annotations

import itertools
import os
import pickletools
import socket
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError, IntegrityError, TrialFailure
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network
from ich_ray.statistics.metrics import average_precision, floors, log_loss
from ich_ray.training import loop
from ich_ray.training.data_parallel import Shard
from ich_ray.training.inference import predict_logits
from ich_ray.training.loop import Progress, TrainingBudget, TrainingState, train
from ich_ray.training.stream import Stream
from ich_ray.trial_records import ExecutionInfo
from tests.prepared import make_dataset

QUICK = Hyperparameters(batch_size=16, learning_rate=3e-3, dropout=0.2, filters=8, dense=16)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_dataset(tmp_path_factory.mktemp("prepared") / "dataset")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def reports(
    dataset: PreparedDataset, parameters: Hyperparameters = QUICK, images: int = 200, every: int = 100, **more: object
) -> list[Progress]:
    roles = dataset.role("train"), dataset.role("validation")
    return list(train(parameters, *roles, budget=TrainingBudget(images, every), seed=3, **more))  # type: ignore[arg-type]


def test_it_learns(dataset: PreparedDataset) -> None:
    found = reports(dataset, images=2400, every=1200)
    prevalence = dataset.role("validation").prevalence
    assert found[-1].metrics["average_precision"] > 0.9
    assert found[-1].metrics["log_loss"] < floors(prevalence)["log_loss"]
    assert found[-1].metrics["roc_auc"] > 0.9
    assert found[-1].metrics["f2"] > floors(prevalence)["f2"]
    assert found[1].metrics["train_loss"] < found[0].metrics["train_loss"]
    assert found[1].elapsed_s > found[0].elapsed_s > 0
    assert found[0].images_per_s > 0


def test_every_report_says_what_it_took(dataset: PreparedDataset) -> None:
    first, second = (progress.usage for progress in reports(dataset))
    assert first.images_per_s is not None
    assert first.images_per_s > 0
    for usage in (first, second):
        assert None not in {usage.data_wait_s, usage.validation_s, usage.device_use}
        assert usage.saving_s is usage.bytes_written is None  # not its business
    budget = TrainingBudget(100, 100)
    (alone,) = train(QUICK, dataset.role("train"), None, budget=budget, seed=3)
    assert alone.usage.validation_s is None


@pytest.mark.parametrize("batch_size", [1, 7, 16, 64, 1000])
def test_reports_land_on_multiples_whatever_the_batch(dataset: PreparedDataset, batch_size: int) -> None:
    parameters = QUICK.model_copy(update={"batch_size": batch_size})
    assert [progress.images_seen for progress in reports(dataset, parameters, images=70, every=30)] == [30, 60, 70]


def test_every_epoch_shows_every_slice_once(dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[np.ndarray] = []
    original = Stream.slices

    def spy(self: Stream, start: int, count: int) -> np.ndarray:
        shown.append(original(self, start, count))
        return shown[-1]

    monkeypatch.setattr(Stream, "slices", spy)
    monkeypatch.setattr(loop.Lookahead, "coming", lambda *_: np.empty(0, np.int64))  # it has a stream of its own
    slices = len(dataset.role("train"))
    reports(dataset, images=3 * slices, every=50)
    order = np.concatenate(shown)
    epochs = order.reshape(3, slices)
    assert (np.sort(epochs, axis=1) == np.arange(slices)).all()
    assert not (epochs[0] == epochs[1]).all()
    assert min(len(part) for part in shown) >= 8


def test_the_same_seed_gives_the_same_numbers(dataset: PreparedDataset) -> None:
    one, other = reports(dataset), reports(dataset)
    assert [progress.metrics for progress in one] == [progress.metrics for progress in other]
    assert (
        one[-1].metrics
        != list(
            train(QUICK, dataset.role("train"), dataset.role("validation"), budget=TrainingBudget(200, 100), seed=4)
        )[-1].metrics
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_resume_goes_on_bit_for_bit(dataset: PreparedDataset, optimizer: str, tmp_path: Path) -> None:
    parameters = QUICK.model_copy(update={"optimizer": optimizer, "learning_rate": 0.01})
    roles = dataset.role("train"), dataset.role("validation")
    states = []
    for progress in train(parameters, *roles, budget=TrainingBudget(300, 100), seed=3):
        states.append(progress.state())
        torch.rand(7)  # what a caller draws between reports must not matter
    path = tmp_path / "state.safetensors"
    states[0].save(path)
    resumed = list(train(parameters, *roles, budget=TrainingBudget(300, 100), seed=3, resume=TrainingState.load(path)))
    assert [progress.images_seen for progress in resumed] == [200, 300]
    last = resumed[-1].state()
    assert last.tensors.keys() == states[2].tensors.keys()
    for name, tensor in last.tensors.items():
        assert torch.equal(tensor, states[2].tensors[name]), name
    assert resumed[-1].elapsed_s > states[0].numbers["elapsed_s"]


def test_a_state_file_holds_no_pickle_and_is_checked(dataset: PreparedDataset, tmp_path: Path) -> None:
    state = reports(dataset, images=50, every=50)[-1].state()
    path = tmp_path / "state.safetensors"
    digest = state.save(path)
    assert len(digest) == 64
    with pytest.raises(ValueError, match=r"."):
        list(pickletools.genops(path.read_bytes()))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(IntegrityError, match="a training state must be there, whole"):
        TrainingState.load(path)
    with pytest.raises(IntegrityError):
        TrainingState.load(tmp_path / "absent")


def test_a_state_of_another_plan_is_refused(dataset: PreparedDataset) -> None:
    state = reports(dataset, images=50, every=50)[-1].state()
    with pytest.raises(ConfigError, match="resume: the state must belong to the same parameters"):
        reports(dataset, QUICK.model_copy(update={"dropout": 0.1}), resume=state)


def test_the_first_step_follows_report_a(dataset: PreparedDataset) -> None:
    """One batch of everything, no dropout: the reported loss is -(w1 y log p + w0 (1 - y) log(1 - p)) by hand."""
    slices = dataset.role("train")
    parameters = QUICK.model_copy(update={"dropout": 0.0, "batch_size": len(slices)})
    found = reports(dataset, parameters, images=len(slices), every=len(slices))[0].metrics["train_loss"]
    torch.manual_seed(3)
    network = build_network(parameters, dataset.image_shape)
    with torch.no_grad():
        p = torch.sigmoid(network(torch.from_numpy(slices.gather(np.arange(len(slices)))))).numpy().astype(float)
    y, n1 = slices.labels, slices.labels.sum()
    w1, w0 = len(y) / (2 * n1), len(y) / (2 * (len(y) - n1))
    assert found == pytest.approx(-(w1 * y * np.log(p) + w0 * (1 - y) * np.log(1 - p)).mean(), rel=1e-4)


def test_the_rate_decays_with_epochs(dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    original = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self, *a: (rates.append(self.param_groups[0]["lr"]), original(self, *a))[1]
    )
    slices = len(dataset.role("train"))
    parameters = QUICK.model_copy(update={"optimizer": "sgd", "learning_rate": 0.1, "decay": 0.5, "batch_size": slices})
    reports(dataset, parameters, images=3 * slices, every=slices)
    assert rates == pytest.approx([0.1, 0.1 / 1.5, 0.1 / 2])


def test_the_reported_log_loss_is_corrected_for_the_class_weights(dataset: PreparedDataset) -> None:
    progress = next(
        iter(train(QUICK, dataset.role("train"), dataset.role("validation"), budget=TrainingBudget(100, 100), seed=3))
    )
    network = build_network(QUICK, dataset.image_shape)
    network.load_state_dict(progress.state().part("weights"))
    validation, labels = dataset.role("validation"), dataset.role("train").labels
    logits = predict_logits(network, validation, QUICK)
    assert logits.dtype == np.float32
    assert progress.metrics["average_precision"] == pytest.approx(average_precision(validation.labels, logits))
    shift = np.log(labels.sum() / (len(labels) - labels.sum()))
    expected = log_loss(validation.labels, 1 / (1 + np.exp(-(logits.astype(float) + shift))))
    assert progress.metrics["log_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_loss_that_is_not_finite_ends_the_trial(dataset: PreparedDataset) -> None:
    wild = QUICK.model_copy(update={"optimizer": "sgd", "learning_rate": 10.0, "weight_decay": 1.0, "decay": 0.0})
    with pytest.raises(TrialFailure) as caught:
        reports(dataset, wild, images=20_000, every=1_000)
    assert caught.value.reason == "diverged"


def test_out_of_memory_ends_the_trial(dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. Process 1 has")

    monkeypatch.setattr(loop._Run, "_step", full)
    with pytest.raises(TrialFailure, match="out_of_memory: CUDA out of memory"):
        reports(dataset)


def test_memory_that_ran_out_elsewhere_is_told_from_other_errors(
    dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wanted, detail in {
        lambda: torch.empty(1 << 50): "can't allocate memory: you tried to allocate 4503599627370496 bytes$",
        lambda: cublas(
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"
        ): "CUBLAS_STATUS_ALLOC_FAILED",
    }.items():
        monkeypatch.setattr(loop._Run, "_step", lambda *_, wanted=wanted: wanted())
        with pytest.raises(TrialFailure, match=f"out_of_memory: .*{detail}"):
            reports(dataset)
    monkeypatch.setattr(loop._Run, "_step", lambda *_: cublas("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"))
    with pytest.raises(RuntimeError, match="EXECUTION_FAILED"):
        reports(dataset)


def cublas(problem: str) -> torch.Tensor:
    raise RuntimeError(problem)


def test_its_memory_is_free_when_the_failure_is_told(dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other trials on the device need it, and empty_cache frees only what nothing refers to."""
    runs: list[weakref.ref[loop._Run]] = []

    def full(self: loop._Run, _: int) -> None:
        runs.append(weakref.ref(self))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop._Run, "_step", full)
    steps = train(QUICK, dataset.role("train"), dataset.role("validation"), budget=TrainingBudget(100, 100), seed=3)
    try:
        next(steps)
    except TrialFailure:
        assert runs[0]() is None
    assert len(runs) == 1


def test_a_state_goes_on_in_its_own_precision(dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the device that it comes to would choose, and whatever its search says."""
    asked: list[object] = []

    def spy(device: torch.device, wanted: str | None = None) -> str:
        asked.append(wanted)
        return "float32"

    monkeypatch.setattr(loop, "precision_on", spy)
    state = reports(dataset, images=32, every=16, precision="bfloat16 channels_last")[0].state()
    assert state.numbers["precision"] == "float32"
    reports(dataset, images=32, every=16, resume=state, precision="bfloat16 channels_last")
    of_version_0_1_0 = TrainingState(state.tensors, {k: v for k, v in state.numbers.items() if k != "precision"})
    reports(dataset, images=32, every=16, resume=of_version_0_1_0)
    assert asked == ["bfloat16 channels_last", "float32", None]


def test_how_it_was_computed_is_told(dataset: PreparedDataset) -> None:
    setup = reports(dataset, images=16, every=16)[0].setup
    assert setup == ExecutionInfo(device="cpu", workers=1, images="host", mode="float32", rates={})
    assert str(setup) == "cpu, float32, images on host"
    assert reports(dataset, images=16, every=16, placement="device")[0].setup.images == "device"


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_state_goes_on_in_another_memory_layout(
    dataset: PreparedDataset, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moments lie as their weights do; what was kept in the usual layout is laid out again."""
    roles, keys = (dataset.role("train"), dataset.role("validation")), {"budget": TrainingBudget(64, 32), "seed": 3}
    parameters = QUICK.model_copy(update={"optimizer": optimizer, "dropout": 0.0})
    state = next(train(parameters, *roles, **keys)).state()  # type: ignore[arg-type]
    resumed: list[loop._Run] = []
    original = loop._Run._restore
    monkeypatch.setattr(loop._Run, "_restore", lambda self, state: (original(self, state), resumed.append(self)))
    for layout in (torch.contiguous_format, torch.channels_last):
        monkeypatch.setattr(
            loop, "build_network", lambda *of, layout=layout: build_network(*of).to(memory_format=layout)
        )
        next(train(parameters, *roles, resume=state, **keys))  # type: ignore[arg-type]
        run = resumed.pop()
        for weight, kept in run.optimizer.state.items():
            for value in kept.values():
                if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                    assert value.stride() == weight.stride()


@pytest.mark.parametrize(("images", "every"), [(0, 0), (100, 0), (100, 101)])
def test_an_impossible_budget_is_refused(images: int, every: int) -> None:
    with pytest.raises(ConfigError, match="0 < report_every <= images must hold"):
        TrainingBudget(images, every)


def test_frozen_weights_do_not_move(dataset: PreparedDataset) -> None:
    parameters = QUICK.model_copy(update={"architecture": "resnet18", "unfreeze_from": "head"})
    roles = dataset.role("train"), dataset.role("validation")
    before, after = (
        progress.state().part("weights")
        for progress in train(parameters, *roles, budget=TrainingBudget(32, 16), seed=3)
    )
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"body.fc.1.weight", "body.fc.1.bias"}


FITTED = QUICK.model_copy(
    update={"schedule": "cosine", "warmup": 0.1, "decay_norms": False, "weight_decay": 0.01, "optimizer": "adamw",
            "clip": 0.5, "ema": 0.9}
)  # fmt: skip


def test_every_way_of_fitting_resumes_bit_for_bit(dataset: PreparedDataset, tmp_path: Path) -> None:
    whole = [(one.metrics, one.state()) for one in train_reports(dataset, FITTED)]
    whole[0][1].save(tmp_path / "state.safetensors")
    state = TrainingState.load(tmp_path / "state.safetensors")
    ((metrics, last),) = [(one.metrics, one.state()) for one in train_reports(dataset, FITTED, resume=state)]
    assert metrics == whole[1][0]
    assert all(torch.equal(last.tensors[name], value) for name, value in whole[1][1].tensors.items())


def test_a_state_on_its_way_to_another_end_is_refused(dataset: PreparedDataset) -> None:
    state = next(train_reports(dataset, FITTED)).state()
    with pytest.raises(ConfigError, match=r"where rates depend on it, budget, got .*'budget': 200.* instead of .*400"):
        next(train_reports(dataset, FITTED, images=400, resume=state))
    forever = FITTED.model_copy(update={"schedule": "constant", "warmup": 0.0})
    state = next(train_reports(dataset, forever)).state()
    assert "budget" not in state.numbers["plan"]
    assert next(train_reports(dataset, forever, images=400, resume=state)).images_seen == 200


def train_reports(
    dataset: PreparedDataset, parameters: Hyperparameters, images: int = 200, resume: TrainingState | None = None
) -> Iterator[Progress]:
    roles, budget = (dataset.role("train"), dataset.role("validation")), TrainingBudget(images, 100)
    return train(parameters, *roles, budget=budget, seed=3, resume=resume)


def test_the_norm_of_a_gradient_ends_at_its_limit(dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.SGD.step

    def spy(self: torch.optim.SGD, *given: object) -> object:
        gradients = [weight.grad for group in self.param_groups for weight in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        return step(self, *given)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    found = {}
    for clip in (0.0, 0.05, 1e6):
        sgd = QUICK.model_copy(update={"optimizer": "sgd", "learning_rate": 0.01, "clip": clip})
        found[clip] = (reports(dataset, sgd, images=64, every=64)[0].metrics, norms.copy())
        norms.clear()
    assert min(found[0.0][1]) > 0.05
    assert found[0.05][1] == pytest.approx([0.05] * 4, rel=1e-3)
    assert found[1e6] == found[0.0]


PARALLEL = (
    FITTED.model_copy(update={"dropout": 0.0, "batch_size": 15, "learning_rate": 1e-3}),
    QUICK.model_copy(update={"dropout": 0.0, "batch_size": 15, "learning_rate": 1e-3}),
    QUICK.model_copy(
        update={"architecture": "resnet18", "dropout": 0.0, "optimizer": "sgd", "learning_rate": 1e-3, "batch_size": 11}
    ),
)
BUDGETS = ({"images": 107, "every": 50}, {"images": 107, "every": 50}, {"images": 31, "every": 31})


def worker(rank: int, port: int, folder: str, out: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    for number, parameters in enumerate(PARALLEL):
        found = reports(PreparedDataset.open(folder), parameters, **BUDGETS[number], shard=Shard(rank, 2))
        if rank == 0:
            found[-1].state().save(Path(out) / f"{number}.safetensors")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_workers_equal_one(dataset: PreparedDataset, tmp_path: Path) -> None:
    """Uneven batches of 15 (8 + 7), cut at reports, with batch normalization: the same weights as on one worker."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(worker, (port, str(dataset.files.root), str(tmp_path)), nprocs=2)
    for number, parameters in enumerate(PARALLEL):
        alone = reports(dataset, parameters, **BUDGETS[number])[-1].state()
        together = TrainingState.load(tmp_path / f"{number}.safetensors")
        assert together.images_seen == alone.images_seen == BUDGETS[number]["images"]
        compared = [name for name in alone.tensors if not name.startswith("optimizer.")]
        assert any(name.startswith("average.") for name in compared) == (parameters.ema > 0)
        for name in compared:
            torch.testing.assert_close(together.tensors[name], alone.tensors[name], atol=2e-3, rtol=2e-3, msg=name)


def test_the_core_needs_neither_ray_nor_sklearn() -> None:
    import subprocess
    import sys

    code = (
        "import sys\nfor name in ('ray', 'sklearn', 'scipy'): sys.modules[name] = None\n"
        "import ich_ray.training.loop, ich_ray.statistics.metrics"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_progress_is_lazy(dataset: PreparedDataset) -> None:
    stream = train(QUICK, dataset.role("train"), dataset.role("validation"), budget=TrainingBudget(10**9, 50), seed=0)
    assert [progress.images_seen for progress in itertools.islice(stream, 2)] == [50, 100]
