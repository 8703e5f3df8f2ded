from __future__ import annotations

import asyncio
import copy
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import ActorDiedError

from ich_ray.errors import TrialFailure
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.results import SearchResult, open_search
from ich_ray.runtime import connected
from ich_ray.search.run import run_search
from ich_ray.search.trial_output import Output
from ich_ray.search.tune import multi_worker_trial as module
from ich_ray.search.tune.multi_worker_trial import MultiWorkerTrainer, _Mailbox, _reason, _Step, _step, _visible
from ich_ray.search.tune.train_workers import FaultOfWorker, WorkersLost
from ich_ray.search.tune.trial import TrialSettings
from ich_ray.storage import sha256
from ich_ray.training.data_parallel import PeerLost, Shard
from ich_ray.usage import ReportUsage
from tests.prepared import make_dataset
from tests.search.fakes import SPACE, FakeWorker

FAILURE = TrialFailure("out_of_memory", "first")
STEP = _Step(100, {"average_precision": 0.5}, 1.0, None, b"state")


def test_workers_wait_at_the_desk_until_they_may_go_on() -> None:
    async def report(desk: _Mailbox, job: int, number: int, goes_on: bool) -> list[bool]:
        workers = [asyncio.create_task(desk.hand_in(job, number, step)) for step in (STEP, None)]
        assert await desk.next() == STEP
        await asyncio.sleep(0.01)
        assert not any(worker.done() for worker in workers)
        await desk.answer(goes_on)
        return await asyncio.gather(*workers)

    async def meet() -> list[Any]:
        desk = _Mailbox()
        late = asyncio.create_task(desk.job(2))
        await desk.post({"seed": 1})
        first = [await desk.job(1), await report(desk, 1, 1, True), await report(desk, 1, 2, False), late.done()]
        await desk.post({"seed": 2})
        second = [await late, await report(desk, 2, 1, True), await report(desk, 2, 2, True)]
        await desk.post(None)
        return [*first, *second, await desk.job(3)]

    yes, no = [True, True], [False, False]
    assert asyncio.run(meet()) == [{"seed": 1}, yes, no, False, {"seed": 2}, yes, yes, None]


def test_what_a_worker_says_of_its_failure_comes_after_the_reports_before() -> None:
    async def meet() -> list[Any]:
        desk = _Mailbox()
        await desk.post({})
        task = asyncio.create_task(desk.hand_in(1, 1, STEP))
        await asyncio.sleep(0)
        await desk.fail(FAILURE)
        await desk.fail(TrialFailure("error", "second"))
        told = [await desk.next(), await desk.next()]
        task.cancel()
        return told

    assert asyncio.run(meet()) == [STEP, FAILURE]


def test_a_state_travels_as_the_file_that_it_will_be(tmp_path: Path) -> None:
    assert STEP.state().save(tmp_path / "a.safetensors") == sha256(b"state")
    assert (tmp_path / "a.safetensors").read_bytes() == b"state"


def test_the_last_report_of_a_trial_of_few_epochs_needs_no_state() -> None:
    settings = TrialSettings("", "", "", images=10_000, report_every=50, cpus=1, gpus=0)
    parameters = Hyperparameters(training_slices=50, epochs=3)
    assert settings.images_of(parameters) == 150
    packed = SimpleNamespace(packed=lambda: b"state")
    progress = SimpleNamespace(images_seen=100, metrics={}, elapsed_s=1.0, setup=None, state=lambda: packed)
    assert _step(progress, settings, parameters).data == b"state"
    assert _step(progress, settings, parameters).usage is None
    progress.usage = ReportUsage(images_per_s=50.0)
    assert _step(progress, settings, parameters).usage == ReportUsage(images_per_s=50.0), "what the first worker took"
    progress.images_seen = 150
    assert _step(progress, settings, parameters).data == b""
    assert _step(progress, replace(settings, keep_weights=True), parameters).data == b"state", "it may be the best"


def test_a_fault_of_a_worker_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the worker that met it to the process of its trial, with the desk between them."""
    post: list[bytes] = []
    desk = SimpleNamespace(
        job=SimpleNamespace(remote=lambda _: {}),
        fail=SimpleNamespace(remote=lambda reason: post.append(pickle.dumps(reason))),
        next=SimpleNamespace(remote=lambda: pickle.loads(post.pop(0))),  # noqa: S301
    )
    errors: list[Exception] = [
        torch.AcceleratorError("CUDA error: unspecified launch failure"),
        RuntimeError("NCCL error: unhandled system error"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ]

    def fail(*_: object, **__: object) -> None:
        raise errors[0]

    monkeypatch.setattr(module, "_train", fail)
    monkeypatch.setattr(module, "ray", SimpleNamespace(get=lambda told: told, wait=lambda asked, **_: (asked, [])))
    group = object.__new__(module.WorkerGroup)
    group._desk, group._thread = desk, threading.current_thread()
    for kind, told in ((FaultOfWorker, "device"), (FaultOfWorker, "nccl"), (TrialFailure, "out_of_memory")):
        with pytest.raises(type(errors[0])):
            module._work({"desk": desk})
        with pytest.raises(kind) as raised:
            group.next()
        assert raised.value.args[0] == told
        assert raised.value.args[1].endswith(str(errors.pop(0)))


class Desk:
    """Stands in for Ray: a mailbox with a state in it, and what is asked of it and does not answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gone: str = "") -> None:
        self.gone, self.asked, self.made = gone, list[str](), list[Any]()
        monkeypatch.setattr(module, "ray", self)
        monkeypatch.setattr(module, "atexit", SimpleNamespace(register=lambda _: None))
        monkeypatch.setattr(module, "run_workers", lambda *_, **__: None)
        monkeypatch.setattr(module, "_own_address", lambda: "10.0.0.1")
        monkeypatch.setattr(module, "own_devices", list)

    def remote(self, **held: Any) -> Any:
        self.made.append(held)
        return lambda _: SimpleNamespace(options=self.options)

    def options(self, **options: Any) -> Any:
        self.made.append(options)
        return SimpleNamespace(remote=lambda: self)

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "a" * 56)

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *_: name)

    def wait(self, asked: list[str], **_: Any) -> Any:
        return asked, []

    def kill(self, _: object) -> None:
        self.asked.append("kill")

    def get(self, asked: Any, **_: Any) -> Any:
        asked = asked if isinstance(asked, str) else ",".join(asked)
        self.asked.append(asked)
        if self.gone and self.gone in asked:
            raise ActorDiedError
        return STEP


def reports() -> Any:
    settings = TrialSettings("", "", "", images=300, report_every=100, cpus=2, gpus=0, workers=2)
    return MultiWorkerTrainer(FakeWorker())(Hyperparameters(), None, settings, 1, None)  # type: ignore[arg-type]


@pytest.fixture
def no_group() -> Iterator[None]:
    module._group.cache_clear()
    yield
    module._group.cache_clear()


def test_the_mailbox_of_a_trial_stands_on_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(monkeypatch)
    module.WorkerGroup(2, [])
    held, options = desk.made
    strategy = options["scheduling_strategy"]
    assert (held, strategy.node_id, strategy.soft) == ({"num_cpus": 0}, "a" * 56, False)


@pytest.mark.usefixtures("no_group")
@pytest.mark.parametrize("gone", ["post", "next", "answer"])
def test_a_mailbox_that_is_gone_costs_an_attempt_and_fails_no_trial(monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    desk = Desk(monkeypatch, gone)
    with pytest.raises(WorkersLost, match="must answer, got ActorDiedError"):
        list(reports())
    assert desk.asked[-1] == "kill", "and the next attempt has other workers"
    assert module._group.cache_info().currsize == 0


@pytest.mark.usefixtures("no_group")
def test_a_mailbox_that_is_gone_when_its_trial_is_stopped_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(monkeypatch)
    steps = reports()
    assert next(steps) == STEP
    desk.gone = "answer"
    steps.close()
    assert desk.asked[-1] == "kill"
    assert module._group.cache_info().currsize == 0


def test_workers_see_the_accelerators_of_their_trial_and_no_others() -> None:
    assert _visible([]) == {}
    assert _visible(["3", "1"]) == {
        "CUDA_VISIBLE_DEVICES": "3,1",
        "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
    }


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer",
            PeerLost,
        ),
        ("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory", RuntimeError),
    ],
)
def test_a_peer_that_is_lost_in_the_backward_pass(message: str, kind: type[Exception]) -> None:
    class Failing:
        def backward(self) -> None:
            raise RuntimeError(message)

    with pytest.raises(kind) as caught:
        Shard(0, 2).backward(Failing())  # type: ignore[arg-type]
    assert type(caught.value) is kind


def test_a_lost_peer_is_told_from_a_failure_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def reset(_: torch.Tensor) -> None:
        raise RuntimeError("[pair.cc:537] Connection closed by peer\nmore")

    def full(_: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.distributed, "all_reduce", reset)
    with pytest.raises(PeerLost, match=r"every worker must take part, got \[pair.cc:537\] Connection closed by peer$"):
        Shard(0, 2).total(torch.ones(1))
    monkeypatch.setattr(torch.distributed, "all_reduce", full)
    with pytest.raises(torch.OutOfMemoryError):
        Shard(0, 2).total(torch.ones(1))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together") / "data"
    make_dataset(folder)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        root = str(Path(__file__).parents[3])
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")])))
        with connected(cpus=2):
            yield


def search(data: Path, folder: Path, space: str = SPACE, **keys: Any) -> SearchResult:
    folder.mkdir(exist_ok=True)
    (folder / "space.yaml").write_text(space)
    return run_search(data, folder / "space.yaml", folder / "s", **{"concurrent": 1, "workers_per_trial": 2, **keys})


def everything_is_free(within_s: float = 30) -> bool:
    """Whether all CPUs come back, and no placement group stays."""
    import ray
    from ray.util.placement_group import placement_group_table

    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        states = {entry["state"] for entry in placement_group_table().values()}
        if ray.available_resources().get("CPU") == 2 and states <= {"REMOVED"}:
            return True
        time.sleep(0.1)
    return False


def all_gone(pids: Path, within_s: float = 10) -> bool:
    deadline = time.monotonic() + within_s
    while any(Path(f"/proc/{path.name}").exists() for path in pids.iterdir()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


NO_DROPOUT = """
name: real
budget: {images: 600, report_every: 200, first_rung: 200, min_peers: 1}
parameters:
  architecture: {fixed: plain_cnn}
  blocks: {fixed: 1}
  filters: {fixed: 8}
  dense: {fixed: 0}
  batch_size: {choice: [16, 21]}
  learning_rate: {loguniform: [1e-4, 1e-1]}
  dropout: {fixed: 0.0}
points: [{learning_rate: 3.0e-3, batch_size: 16}, {learning_rate: 1.0e-4, batch_size: 21}, {learning_rate: 1.0e-1}]
"""


@pytest.mark.slow
@pytest.mark.timeout(600)  # minutes where other work is going on: a group is six processes that import torch
def test_two_workers_write_the_ledger_that_one_writes(data: Path, tmp_path: Path, cluster: None) -> None:
    """Batches of 16 and of an uneven 21, halved: the same draws, decisions and figures as without Ray Train."""
    one, two = (
        search(data, tmp_path / str(workers), NO_DROPOUT, trials=3, workers_per_trial=workers) for workers in (1, 2)
    )
    assert [trial.parameters for trial in one.trials] == [trial.parameters for trial in two.trials]
    assert [(trial.state, trial.reason) for trial in one.trials] == [
        (trial.state, trial.reason) for trial in two.trials
    ]
    assert {trial.state for trial in one.trials} == {"completed", "pruned"}
    for alone, together in zip(one.trials, two.trials, strict=True):
        assert len(alone.reports) == len(together.reports)
        for report, other in zip(alone.reports, together.reports, strict=True):
            assert other.images_seen == report.images_seen
            assert other.metrics == pytest.approx(report.metrics, abs=2e-3)
    assert everything_is_free()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_worker_and_a_fault_of_one_cost_their_trial_an_attempt_each(
    data: Path, tmp_path: Path, cluster: None
) -> None:
    traps = [tmp_path / "trap", tmp_path / "fault"]
    for trap in traps:
        trap.touch()
    worker = FakeWorker(kill_once=str(traps[0]), fault_once=str(traps[1]))
    trial = search(data, tmp_path, trials=1, _trainer=worker).trials[0]
    assert not any(trap.exists() for trap in traps)
    assert (trial.state, trial.attempts) == ("completed", 3)
    assert [(one.cause, one.images_seen) for one in trial.lost] == [("device", 500)]
    assert [report.images_seen for report in trial.reports] == list(range(100, 901, 100))
    assert {report.metrics["workers"] for report in trial.reports} == {2}
    assert everything_is_free()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("error", "reason", "detail"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", "OutOfMemoryError: CUDA out of memory"),
        (ValueError("planted"), "error", "ValueError: planted"),
    ],
)
def test_a_worker_that_fails_fails_its_trial(
    data: Path, tmp_path: Path, cluster: None, error: Exception, reason: str, detail: str
) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    found = search(data, tmp_path, trials=1, _trainer=FakeWorker(raise_at=(error, 300), pids=str(pids)))
    trial = found.trials[0]
    assert (trial.state, trial.reason, trial.detail, trial.attempts) == ("failed", reason, detail, 1)
    assert [report.images_seen for report in trial.reports] == [100, 200]
    assert everything_is_free()
    assert all_gone(pids)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_workers_end_with_a_stopped_trial(data: Path, tmp_path: Path, cluster: None) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    points = "points: [{learning_rate: 1.0e-3, dropout: 0.3}, {learning_rate: 0.09, dropout: 0.6}]\n"
    space = SPACE.replace("min_peers: 2", "min_peers: 1") + points
    found = search(data, tmp_path, space, trials=2, _trainer=FakeWorker(pids=str(pids)))
    assert [(trial.state, trial.reason) for trial in found.trials] == [("completed", ""), ("pruned", "rung_100")]
    assert found.trials[1].images_seen == 100
    assert len([*pids.iterdir()]) == 2  # the same workers in both trials
    assert everything_is_free(within_s=10)
    assert all_gone(pids)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_stays_of_a_trial_whose_process_is_killed(data: Path, tmp_path: Path, cluster: None) -> None:
    """Ray Train leaves the placement group of such a run until the driver ends; the CPUs are the trial's own."""
    pids, killed = tmp_path / "pids", []
    pids.mkdir()

    def kill() -> None:
        deadline = time.monotonic() + 500
        while time.monotonic() < deadline and not killed:
            with_report = [trial for trial in trials() if trial.reports]
            for trial in with_report:
                killed.append(int(trial.where.split(":")[1]))
                os.kill(killed[0], signal.SIGKILL)
                return
            time.sleep(0.05)

    def trials() -> Any:
        return open_search(tmp_path / "s").trials if (tmp_path / "s" / "search.json").exists() else ()

    thread = threading.Thread(target=kill)
    thread.start()
    found = search(data, tmp_path, trials=1, _trainer=FakeWorker(pids=str(pids), wait_s=0.5))
    thread.join()
    assert killed
    assert (found.trials[0].state, found.trials[0].attempts) == ("completed", 2)
    assert [report.images_seen for report in found.trials[0].reports] == list(range(100, 901, 100))
    assert everything_is_free()
    assert all_gone(pids)


@pytest.mark.parametrize(
    ("error", "kind", "noted"),
    [
        (
            ValueError("planted"),
            TrialFailure,
            ["its last lines", "of this worker", "where the error came", "ValueError"],
        ),
        (TrialFailure("diverged", "loss is nan"), TrialFailure, ["its last lines", "of this worker"]),
        (
            torch.AcceleratorError("CUDA error: planted"),
            FaultOfWorker,
            ["its last lines", "of this worker", "where the"],
        ),
    ],
)
def test_what_ended_a_worker_brings_its_last_lines_along(
    error: Exception, kind: type[Exception], noted: list[str], tmp_path: Path
) -> None:
    (tmp_path / "worker.err").write_text("of this worker\n")
    output = Output("gpu-1, process 8", (str(tmp_path / "worker.err"),), (0,))
    told = copy.deepcopy(_reason(error, output))  # as Ray brings it
    assert isinstance(told, kind)
    (note,) = told.__notes__
    assert [line for line in noted if line not in note] == []
    assert ("where the error came" in note) == (not isinstance(error, TrialFailure))
    assert not hasattr(_reason(TrialFailure("diverged"), Output("gpu-1, process 8", (), ())), "__notes__")
