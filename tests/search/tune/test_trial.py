from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import TrialFailure
from ich_ray.search.tune import lost_attempts, trial_files
from ich_ray.search.tune import trial as trials
from ich_ray.search.tune.train_workers import FaultOfWorker, WorkersLost
from ich_ray.search.tune.trial import TrialSettings, as_failure, checkpoints_of, train_model, trial_function
from ich_ray.storage import SearchFiles, locate
from ich_ray.training.machine_faults import machine_fault
from tests.search.fakes import FakeProgress, FakeState
from tests.searched import PARAMETERS, make_search


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Tune is told by trials of a process that has met no fault yet."""
    told: list[dict[str, Any]] = []
    for module in (trials, lost_attempts):
        monkeypatch.setattr(module, "tune", SimpleNamespace(report=told.append))
    monkeypatch.setattr(lost_attempts, "_faulty", threading.Event())
    return told


def test_checkpoints_of_a_trial_lie_below_its_number(tmp_path: Path) -> None:
    files = SearchFiles(locate(tmp_path))
    assert str(checkpoints_of(files, 3).folder) == str(tmp_path / "checkpoints" / "00003")


@pytest.mark.parametrize(
    "report", [{}, [], {"images_seen": "x"}, {"elapsed_s": -1.0}, {"metrics": {"a\x1b[2J": 1.0}}, {"more": 1}]
)
def test_reports_that_no_ledger_would_take_are_damage(report: Any, tmp_path: Path) -> None:
    files, good = SearchFiles(locate(tmp_path)), {"images_seen": 200, "metrics": {}, "elapsed_s": 1.0}
    store = checkpoints_of(files, 3)
    for seen in (100, 200):
        newest = store.save(seen, FakeState(seen), [{**good, "images_seen": seen}])
    index = Path(str(newest.file.with_suffix(".json")))
    reports = [good | report if isinstance(report, dict) and report else report]
    index.write_text(json.dumps(json.loads(index.read_text()) | {"reports": reports}))
    kept = checkpoints_of(files, 3).newest()
    assert kept is not None
    assert kept.images_seen == 100


@pytest.mark.parametrize(
    ("error", "reason", "detail"),
    [
        (TrialFailure("diverged", "loss is nan"), "diverged", "loss is nan"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", "OutOfMemoryError: CUDA out of memory"),
        (MemoryError("host"), "out_of_memory", "MemoryError: host"),
        (RuntimeError("STATUS_ALLOC_FAILED"), "out_of_memory", "RuntimeError: STATUS_ALLOC_FAILED"),
        (ValueError("planted"), "error", "ValueError: planted"),
    ],
)
def test_every_error_becomes_a_reason(error: Exception, reason: str, detail: str) -> None:
    failure = as_failure(error)
    assert (failure.reason, failure.detail) == (reason, detail)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without an accelerator")
def test_a_trial_that_sees_no_promised_accelerator_does_not_train_on_the_cpu(dataset: PreparedDataset) -> None:
    settings = TrialSettings(
        dataset="", fingerprint="", search="", images=100, report_every=100, cpus=1, gpus=1
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="promised an accelerator and sees none") as raised:
        next(train_model(PARAMETERS, dataset, settings, 0, None))
    assert machine_fault(raised.value) == "driver"


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: unspecified launch failure"),
        FaultOfWorker("device", "AcceleratorError: CUDA error: unspecified launch failure"),
    ],
)
def test_a_process_that_has_met_a_fault_takes_no_further_trial(
    tmp_path: Path, dataset: PreparedDataset, told: list[dict[str, Any]], error: Exception
) -> None:
    files = make_search(tmp_path / "s", dataset)
    settings = TrialSettings(
        dataset=str(dataset.files.root), fingerprint=dataset.manifest.fingerprint, search=str(files.root), images=100,
        report_every=100, cpus=1, gpus=0,
    )  # fmt: skip

    def sick(*_: object) -> Any:
        raise error

    config = {"number": 7, "seed": 1, "parameters": {}, "fold": None, "reported": 0}
    with pytest.raises(type(error)):
        trial_function(settings, sick)(config)
    with pytest.raises(WorkersLost, match="this machine or process gets no trials"):
        trial_function(settings)(config)
    assert [(one["lost"], one["detail"]) for one in told] == [
        ("device", "AcceleratorError: CUDA error: unspecified launch failure"),
        ("declined", ""),
    ]


def test_a_state_that_cannot_be_written_is_lost_to_its_storage(
    tmp_path: Path, dataset: PreparedDataset, told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_files, "_has_written", threading.Event())
    files = make_search(tmp_path / "s", dataset)
    settings = TrialSettings(
        dataset=str(dataset.files.root), fingerprint=dataset.manifest.fingerprint, search=str(files.root), images=200,
        report_every=100, cpus=1, gpus=0,
    )  # fmt: skip

    def full(*_: object) -> Any:
        yield FakeProgress(100, {"average_precision": 0.5}, 1.0, disk_is_full=True)

    with pytest.raises(OSError, match="No space left on device"):
        trial_function(settings, full)({"number": 7, "seed": 1, "parameters": {}, "fold": None, "reported": 0})
    (one,) = told
    assert (one["lost"], one["full"]) == ("storage", True)
    assert one["detail"] == f"{files.checkpoint(7)}: No space left on device"


@pytest.mark.parametrize("gone", ["dataset", "search"])
def test_a_machine_that_sees_a_folder_no_more_loses_an_attempt_and_fails_no_trial(
    tmp_path: Path, dataset: PreparedDataset, told: list[dict[str, Any]], gone: str
) -> None:
    trials._whole.cache_clear()
    empty = tmp_path / "mount"
    settings = TrialSettings(
        dataset=str(empty if gone == "dataset" else dataset.files.root), fingerprint=dataset.manifest.fingerprint,
        search=str(empty if gone == "search" else make_search(tmp_path / "s", dataset).root), images=200,
        report_every=100, cpus=1, gpus=0,
    )  # fmt: skip
    with pytest.raises(FaultOfWorker):
        trial_function(settings)({"number": 7, "seed": 1, "parameters": {}, "fold": None, "reported": 0})
    (one,) = told
    assert one["lost"] == "storage"
    assert one["detail"].startswith(f"{empty}: ")
    assert not empty.exists(), "nothing is written where a shared folder should be"


@pytest.mark.parametrize(
    ("keep_weights", "values", "taken", "kept"),
    [
        (False, [0.3, 0.2, 0.4], [100, 200], []),
        (True, [0.3, 0.2, 0.4], [100, 200, 300], ["000000000100=0.3.safetensors", "000000000300=0.4.safetensors"]),
        (True, [0.3, 0.4, 0.2], [100, 200], ["000000000100=0.3.safetensors", "000000000200=0.4.safetensors"]),
    ],
)
def test_the_state_of_a_report_is_taken_once_and_only_to_be_written(
    tmp_path: Path,
    dataset: PreparedDataset,
    monkeypatch: pytest.MonkeyPatch,
    keep_weights: bool,
    values: list[float],
    taken: list[int],
    kept: list[str],
) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(trials, "tune", SimpleNamespace(report=told.append))
    for ask in ("node_id", "devices_held"):
        monkeypatch.setattr(trials, ask, lambda: "")
    monkeypatch.setattr(trial_files, "_has_written", threading.Event())
    files, asked = make_search(tmp_path / "s", dataset), list[int]()
    settings = TrialSettings(
        dataset=str(dataset.files.root), fingerprint=dataset.manifest.fingerprint, search=str(files.root), images=300,
        report_every=100, cpus=1, gpus=0, keep_weights=keep_weights,
    )  # fmt: skip

    class Progress(FakeProgress):
        def state(self) -> FakeState:
            asked.append(self.images_seen)
            return super().state()

    def trained(*_: object) -> Any:
        for at, value in enumerate(values, start=1):
            yield Progress(100 * at, {"average_precision": value}, 1.0)

    config = {"number": 7, "seed": 1, "parameters": {}, "fold": None, "reported": 0}
    trial_function(settings, trained)(config)
    assert asked == taken
    assert [bool(one["checkpoint"]) for one in told[:3]] == [True, True, False]
    weights = Path(str(files.weights_of(1)))
    assert sorted(path.name for path in weights.glob("*")) == kept


def test_a_trial_leaves_a_machine_that_is_drained_with_the_state_of_its_report(
    tmp_path: Path, dataset: PreparedDataset, told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving: dict[str, int] = {}
    monkeypatch.setattr(lost_attempts, "draining", lambda: leaving)
    monkeypatch.setattr(lost_attempts, "is_draining", leaving.__contains__)
    files = make_search(tmp_path / "s", dataset)
    settings = TrialSettings(
        dataset=str(dataset.files.root), fingerprint=dataset.manifest.fingerprint, search=str(files.root), images=900,
        report_every=100, cpus=1, gpus=0,
    )  # fmt: skip

    def trained(*_: object) -> Any:
        for seen in (100, 200, 300):
            if seen == 200:
                leaving[""] = 1795946520000
            yield FakeProgress(seen, {"average_precision": 0.5}, 1.0)

    config = {"number": 7, "seed": 1, "parameters": {}, "fold": None, "reported": 0}
    with pytest.raises(WorkersLost, match="the machine is taken away at 10:02:00 UTC"):
        trial_function(settings, trained)(config)
    with pytest.raises(WorkersLost, match="this machine or process gets no trials"):
        trial_function(settings, trained)(config)
    assert [(one.get("images_seen"), one.get("lost")) for one in told] == [
        (100, None), (200, None), (None, "preempted"), (None, "declined"),
    ]  # fmt: skip
    kept = checkpoints_of(files, 7).newest()
    assert kept is not None
    assert kept.images_seen == 200
