"""A trial's files are written beside its training; storage is planted, and nothing here waits for a clock."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import TrialFailure
from ich_ray.search.tune import lost_attempts, trial_files
from ich_ray.search.tune import trial as trials
from ich_ray.search.tune.trial import TrialSettings, checkpoints_of, trial_function
from ich_ray.storage import Location, SearchFiles, locate, sha256
from ich_ray.trial_records import CheckpointReference
from tests.search.fakes import FakeProgress, FakeState
from tests.searched import make_search

WITHIN_S = 60
CONFIG = {"number": 7, "seed": 1, "parameters": {}, "fold": None, "reported": 0}


@dataclass(frozen=True)
class PlantedState:
    """A state that runs something before it is written."""

    state: FakeState
    before: Callable[[], None]

    def save(self, path: Location) -> str:
        self.before()
        return self.state.save(path)


@dataclass(frozen=True)
class PlantedProgress(FakeProgress):
    saving: Callable[[int], None] = lambda _: None

    def state(self) -> Any:
        return PlantedState(super().state(), lambda: self.saving(self.images_seen))


@dataclass
class Told:
    """What Tune is told, and what it does then."""

    reports: list[dict[str, Any]]
    at_report: Callable[[int], None] = lambda _: None

    def report(self, one: dict[str, Any]) -> None:
        self.reports.append(one)
        self.at_report(one.get("images_seen", 0))

    @property
    def brief(self) -> list[Any]:
        """Images of each report and of the state that it names, or how the attempt ended."""
        return [
            (one["images_seen"], (one["checkpoint"] or {}).get("images_seen"))
            if "images_seen" in one
            else one.get("failure") or one["lost"]
            for one in self.reports
        ]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told([])
    for module in (trials, lost_attempts):
        monkeypatch.setattr(module, "tune", told)
    for ask in ("node_id", "devices_held"):
        monkeypatch.setattr(trials, ask, lambda: "")
    monkeypatch.setattr(lost_attempts, "_faulty", threading.Event())
    written = threading.Event()
    written.set()
    monkeypatch.setattr(trial_files, "_has_written", written)
    return told


@pytest.fixture
def settings(tmp_path: Path, dataset: PreparedDataset) -> TrialSettings:
    files = make_search(tmp_path / "s", dataset)
    return TrialSettings(
        dataset=str(dataset.files.root), fingerprint=dataset.manifest.fingerprint, search=str(files.root), images=500,
        report_every=100, cpus=1, gpus=0,
    )  # fmt: skip


def folder_of(settings: TrialSettings) -> Path:
    return Path(settings.search) / "checkpoints" / "00007"


def trainer(saving: Callable[[int], None] = lambda _: None, training: Callable[[int], None] = lambda _: None) -> Any:
    """Trains to 500 images; `training` runs before each report, `saving` before each state is written."""

    def train(_: object, __: object, settings: TrialSettings, ___: object, resume: Any) -> Generator[FakeProgress]:
        seen = int(resume.read_text().split(":")[1].strip(" }")) if resume else 0
        while seen < settings.images:
            seen += 100
            training(seen)
            yield PlantedProgress(seen, {"average_precision": seen / 1000}, 1.0, saving=saving)

    return train


def test_training_goes_on_while_a_state_is_written(told: Told, settings: TrialSettings) -> None:
    """Each state is written only once training has come to the next report, where a training that waited would hang."""
    trained = {seen: threading.Event() for seen in range(100, 600, 100)}

    def saving(seen: int) -> None:
        assert trained[seen + 100].wait(WITHIN_S)

    trial_function(settings, trainer(saving, lambda seen: trained[seen].set()))(CONFIG)
    assert told.brief[:5] == [(100, None), (200, 100), (300, 200), (400, 300), (500, None)]


def test_the_first_state_of_a_process_is_whole_before_its_report(
    told: Told, settings: TrialSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report says that trials run well there, which ends a quarantine: who cannot write must not say so."""
    monkeypatch.setattr(trial_files, "_has_written", threading.Event())
    for _ in range(2):  # the process serves another trial then
        trial_function(settings, trainer())(CONFIG)
        for path in folder_of(settings).iterdir():
            path.unlink()
    assert told.brief[:4] == [(100, 100), (200, 100), (300, 200), (400, 300)]
    assert told.brief[6:8] == [(100, None), (200, 100)]


def test_a_trial_that_is_stopped_writes_no_state_and_leaves_nobody_at_work(told: Told, settings: TrialSettings) -> None:
    """The driver removes its files as soon as it has the report."""
    written: list[int] = []

    def stop(seen: int) -> None:
        if seen == 300:
            for path in folder_of(settings).iterdir():
                path.unlink()
            folder_of(settings).rmdir()
            raise SystemExit  # as Tune does

    told.at_report = stop
    with pytest.raises(SystemExit):
        trial_function(settings, trainer(written.append))(CONFIG)
    assert written == [100, 200]
    assert not folder_of(settings).exists()


def test_a_state_that_cannot_be_written_is_told_at_the_next_report(told: Told, settings: TrialSettings) -> None:
    def full(seen: int) -> None:
        if seen == 200:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")

    with pytest.raises(OSError, match="No space left on device"):
        trial_function(settings, trainer(full))(CONFIG)
    assert told.brief == [(100, None), (200, 100), "storage"]
    assert told.reports[-1]["full"]
    kept = checkpoints_of(SearchFiles(folder_of(settings).parents[1]), 7).newest()  # type: ignore[arg-type]
    assert kept is not None
    assert kept.images_seen == 100


def test_a_failure_is_told_once_the_state_before_it_is_whole(told: Told, settings: TrialSettings) -> None:
    failed = threading.Event()

    def training(seen: int) -> None:
        if seen == 300:
            failed.set()
            raise TrialFailure("diverged", "loss is nan")

    def saving(seen: int) -> None:
        if seen == 200:
            assert failed.wait(WITHIN_S)

    def at_report(seen: int) -> None:
        if not seen:
            there.extend(sorted(path.suffix for path in folder_of(settings).iterdir()))

    there: list[str] = []
    told.at_report = at_report
    trial_function(settings, trainer(saving, training))(CONFIG)
    assert told.brief == [(100, None), (200, 100), "diverged"]
    assert there == [".json", ".json", ".safetensors", ".safetensors"]


def test_a_fault_that_its_process_tells_costs_no_report(
    told: Told, settings: TrialSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Met while the state of the newest report is being written, which is whole before the process ends."""
    met = threading.Event()

    def training(seen: int) -> None:
        if seen == 300:
            met.set()
            raise torch.AcceleratorError("CUDA error: unspecified launch failure (planted)")

    def saving(seen: int) -> None:
        if seen == 200:
            assert met.wait(WITHIN_S)

    with pytest.raises(torch.AcceleratorError):
        trial_function(settings, trainer(saving, training))(CONFIG)
    assert told.brief == [(100, None), (200, 100), "device"]
    monkeypatch.setattr(lost_attempts, "_faulty", threading.Event())  # another process
    told.reports.clear()
    trial_function(settings, trainer())(CONFIG | {"reported": 200})
    assert told.brief[:2] == [(200, 200), (300, 200)], "what the ledger has, with its state, and then the next"


@pytest.mark.parametrize(
    ("reported", "of_state", "note"),
    [
        (200, 300, ""),
        (300, 300, ""),
        (300, 200, ""),
        (100, 0, ""),
        (300, 100, "the newest checkpoint was missing: went back from 300 to 100 images"),
        (200, 0, "no good checkpoint after 200 images: started again"),
    ],
)
def test_an_attempt_goes_on_from_the_newest_state_that_is_whole(
    told: Told, settings: TrialSettings, reported: int, of_state: int, note: str
) -> None:
    """One report more than the state is as it must be: the process before died while it was writing."""
    store = checkpoints_of(SearchFiles(folder_of(settings).parents[1]), 7)  # type: ignore[arg-type]
    for seen in range(100, of_state + 100, 100):
        history = [
            {"images_seen": at, "metrics": {"average_precision": at / 1000}, "elapsed_s": 1.0}
            for at in range(100, seen + 100, 100)
        ]
        store.save(seen, FakeState(seen), history)
    trial_function(settings, trainer())(CONFIG | {"reported": reported})
    known = [(seen, of_state) for seen in range(reported, of_state + 100, 100)]
    assert told.brief[: len(known)] == known, "the ledger names this state before a newer one takes its place"
    made = told.reports[len(known) : -1]
    assert told.brief[len(known)] == (of_state + 100, of_state or None)
    assert [one["images_seen"] for one in made] == [*range(of_state + 100, 600, 100)]
    assert {one["note"] for one in made} == {note}


@pytest.mark.parametrize("has_written", [False, True])
@pytest.mark.parametrize("of_state", [200, 300])
def test_what_the_ledger_names_is_there_at_every_report_and_before_every_write(
    told: Told, settings: TrialSettings, monkeypatch: pytest.MonkeyPatch, has_written: bool, of_state: int
) -> None:
    """Of 300 images it has the report, and the state of 200; that of 300 may be whole, too."""
    if not has_written:
        monkeypatch.setattr(trial_files, "_has_written", threading.Event())
    files = SearchFiles(locate(settings.search))
    store, history = checkpoints_of(files, 7), list[dict[str, Any]]()
    states = {}
    for seen in range(100, of_state + 100, 100):
        history.append({"images_seen": seen, "metrics": {"average_precision": seen / 1000}, "elapsed_s": 1.0})
        states[seen] = trial_files.reference_to(store.save(seen, FakeState(seen), history))
    named = [states[200]]

    def check(_: int) -> None:
        assert sha256(files.root / named[-1].file) == named[-1].sha256

    def at_report(seen: int) -> None:
        check(seen)
        if reference := told.reports[-1].get("checkpoint"):
            named.append(CheckpointReference.model_validate(reference))
            check(seen)

    told.at_report = at_report
    trial_function(settings, trainer(check))(CONFIG | {"reported": 300})
    assert named[-1].images_seen >= 300
    assert told.brief[-1] == "error", "it ends where Tune would have ended it"
    assert told.reports[-1]["detail"] == "training ended at 500 of 500 images"


def test_a_resumed_trial_reports_what_an_undisturbed_one_does(told: Told, settings: TrialSettings) -> None:
    """Killed while the state of 300 images was being written: that report is made again, and no other."""

    def killed(seen: int) -> None:
        if seen == 300:
            raise SystemExit

    trial_function(settings, trainer())(CONFIG)
    plain = [(one["images_seen"], one["metrics"]) for one in told.reports[:5]]
    for path in folder_of(settings).iterdir():
        path.unlink()
    told.reports.clear()
    with pytest.raises(SystemExit):
        trial_function(settings, trainer(killed))(CONFIG)
    before = [(one["images_seen"], one["metrics"]) for one in told.reports]
    told.reports.clear()
    trial_function(settings, trainer())(CONFIG | {"reported": 300})
    after = [(one["images_seen"], one["metrics"]) for one in told.reports[:-1]]
    assert before == plain[:3]
    assert after == plain[2:]


@pytest.mark.parametrize("keep_weights", [False, True])
def test_all_bytes_of_a_trial_are_counted_with_the_report_after_them(
    told: Told, settings: TrialSettings, keep_weights: bool
) -> None:
    sizes: list[int] = []
    root, there = Path(settings.search), set[Path]()

    def at_report(seen: int) -> None:
        new = {path for name in ("checkpoints", "logits", "weights") for path in (root / name).rglob("*.*")} - there
        there.update(new)
        changed = {path for path in new if path.is_file()}
        sizes.append(sum(path.stat().st_size for path in changed))
        for path in changed:
            if "checkpoints" in path.parts:
                there.discard(path)
                path.unlink()

    def with_logits(*arguments: Any) -> Generator[FakeProgress]:
        for progress in trainer()(*arguments):
            yield replace(progress, logits=np.zeros((30, 1), np.float32))

    told.at_report = at_report
    settings = replace(settings, compares=True, keep_weights=keep_weights)
    trial_function(settings, with_logits)(CONFIG)
    assert [one["bytes_written"] for one in told.reports[:5]] == sizes[:5]
    assert sizes[0] == 0, "nothing but a report has come out of it yet"
    assert sizes[1] > 120, "the logits, and a state with its index"
    assert all(one["saving_s"] >= 0 for one in told.reports[:5])


def test_a_stop_at_the_first_report_has_written_nothing(told: Told, settings: TrialSettings) -> None:
    """Two of three trials of a search end there."""
    told.at_report = lambda _: (_ for _ in ()).throw(SystemExit)
    with pytest.raises(SystemExit):
        trial_function(replace(settings, compares=True, keep_weights=True), trainer())(CONFIG)
    assert not folder_of(settings).exists()
    assert not (Path(settings.search) / "weights").exists()
    assert told.reports[0]["bytes_written"] == 0
