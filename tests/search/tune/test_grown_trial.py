"""The processes of a trial that grows, without Ray: groups that count to the end of the budget."""

from __future__ import annotations

import errno
import json
import threading
import weakref
from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest

from ich_ray.errors import TrialFailure
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.search.tune import grown_trial as module
from ich_ray.search.tune import lost_attempts
from ich_ray.search.tune.grown_trial import GrowingTrainer
from ich_ray.search.tune.lent_slots import NOTHING_LENT, Lent
from ich_ray.search.tune.train_workers import FaultOfWorker, WorkersLost
from ich_ray.search.tune.trial import TrialSettings
from tests.search.fakes import FakeState

SETTINGS = TrialSettings("", "", "search", images=600, report_every=100, cpus=1, gpus=0)


class Network:
    """What a training holds in memory."""


class Progress:
    """A report that holds the network, as one of a real training does."""

    def __init__(self, images_seen: int, workers: int, network: Network, disk_is_full: bool) -> None:
        self.images_seen, self.workers, self.network, self.disk_is_full = images_seen, workers, network, disk_is_full

    def state(self) -> FakeState:
        return FakeState(self.images_seen, self.disk_is_full)


class Bench:
    """Stands in for Ray: what is lent at each report, groups that were made, and how theirs fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lent: dict[int, Lent], error: Exception | None = None) -> None:
        self.lent, self.error = lent, error
        self.groups: list[tuple[int, list[str], bool]] = []
        self.networks: list[weakref.ref[Network]] = []
        self.borrowed: list[str] = []
        self.alive_at_start: list[int] = []
        self.seen = 0
        self.full: set[int] = set()
        slots = SimpleNamespace(now=lambda: self.lent.get(self.seen, NOTHING_LENT))
        monkeypatch.setattr(module, "LentSlots", lambda *_: slots)
        monkeypatch.setattr(module, "own_devices", lambda: ["7"])
        monkeypatch.setattr(module, "borrow", lambda devices: self.borrowed.__setitem__(slice(None), devices))
        monkeypatch.setattr(module, "WorkerGroup", self.group)
        monkeypatch.setattr(module, "MultiWorkerTrainer", lambda _, group: group.train)

    def group(self, workers: int, devices: list[str]) -> Any:
        number = len(self.groups)
        self.groups.append((workers, devices, False))

        def end() -> None:
            self.groups[number] = (workers, devices, True)

        def train(*given: Any) -> Generator[Any, None, None]:
            if self.error and self.seen >= 200:
                raise self.error
            assert given[2].workers == workers
            assert given[2].cpus == workers
            yield from self.train(*given)

        return SimpleNamespace(end=end, train=train)

    def train(
        self, parameters: Any, dataset: Any, settings: TrialSettings, seed: int, resume: Any
    ) -> Generator[Progress, None, None]:
        del parameters, dataset, seed
        self.alive_at_start.append(sum(network() is not None for network in self.networks))
        network = Network()
        self.networks.append(weakref.ref(network))
        seen = json.loads(resume.read_text())["images_seen"] if resume else 0
        while seen < settings.images:
            seen += settings.report_every
            if self.error and settings.workers > 1 and seen == 400:
                raise self.error
            yield Progress(seen, settings.workers, network, seen in self.full)

    def run(self) -> list[tuple[int, int, tuple[str, ...]]]:
        found = []
        for report in GrowingTrainer(self.train)(Hyperparameters(), None, SETTINGS, 1, None):  # type: ignore[arg-type]
            self.seen = report.images_seen
            found.append((report.images_seen, report.workers, tuple(self.borrowed)))
        return found


def test_a_trial_takes_what_is_lent_at_its_next_report_and_gives_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    one, three = Lent(1, ("3",)), Lent(3, ("3", "1", "2"))
    bench = Bench(monkeypatch, {200: one, 300: one, 400: three})
    assert bench.run() == [
        (100, 1, ()),
        (200, 1, ()),
        (300, 2, ("3",)),
        (400, 2, ("3",)),
        (500, 4, ("3", "1", "2")),
        (600, 1, ()),
    ]
    assert bench.groups == [(2, ["7", "3"], True), (4, ["7", "3", "1", "2"], True)]
    assert bench.borrowed == []


def test_a_device_is_empty_when_other_processes_take_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports refer to the network of their training, and the ledger's loop to the last report."""
    bench = Bench(monkeypatch, {200: Lent(1), 300: Lent(1)})
    bench.run()
    assert bench.alive_at_start == [0, 0, 0]


@pytest.mark.parametrize("error", [WorkersLost("gone"), TrialFailure("out_of_memory", "CUDA"), TrialFailure("error")])
def test_a_trial_whose_workers_fail_goes_on_alone_from_its_newest_state(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    lent = dict.fromkeys(range(200, 601, 100), Lent(1))
    bench = Bench(monkeypatch, lent, error)
    assert [report[:2] for report in bench.run()] == [(images, 1) for images in range(100, 601, 100)]
    assert bench.groups == [(2, ["7"], True)], "and does not grow again"


def test_workers_that_fail_later_cost_no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, dict.fromkeys(range(100, 601, 100), Lent(1)), WorkersLost("gone"))
    found = [report[:2] for report in bench.run()]
    assert found == [(100, 1), (200, 2), (300, 2), (400, 1), (500, 1), (600, 1)]


def test_a_full_disk_keeps_a_trial_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    lent = {200: Lent(1), 300: Lent(1), 400: Lent(3), 500: Lent(3)}
    bench = Bench(monkeypatch, dict.fromkeys(range(100, 601, 100), Lent(1)))
    bench.full = {100}
    assert [report[:2] for report in bench.run()] == [(images, 1) for images in range(100, 601, 100)]
    assert bench.groups == [], "and it does not grow later"
    grown = Bench(monkeypatch, lent)
    grown.full = {400}
    assert [report[1] for report in grown.run()] == [1, 1, 2, 2, 2, 2]
    assert grown.groups == [(2, ["7"], True)]


def test_a_full_disk_does_not_keep_slots_that_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    lent = {100: Lent(1), 200: Lent(1), 300: Lent(3), 400: Lent(1)}
    bench = Bench(monkeypatch, lent)
    bench.full = {300}
    assert [report[1] for report in bench.run()] == [1, 2, 2, 2, 2, 1]
    bench.full = {500}
    with pytest.raises(OSError, match="No space left"):
        bench.run()


def test_a_machine_without_a_folder_for_states_keeps_a_trial_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(module.tempfile, "TemporaryDirectory", make)
    bench = Bench(monkeypatch, {200: Lent(1)})
    assert [report[1] for report in bench.run()] == [1] * 6


@pytest.mark.parametrize("error", [FaultOfWorker("device", "Xid 79"), TrialFailure("diverged", "at 300 images")])
def test_a_fault_of_the_machine_or_of_the_parameters_is_none_of_growth(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    bench = Bench(monkeypatch, dict.fromkeys(range(100, 601, 100), Lent(1, ("3",))), error)
    with pytest.raises(type(error)):
        bench.run()
    assert bench.groups == [(2, ["7", "3"], True)]
    assert list(bench.borrowed) == ["3"], "told of all devices that the trial had"


def test_a_fault_is_told_of_all_devices_of_a_trial_and_the_next_one_has_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[dict[str, Any]] = []
    node = SimpleNamespace(get_node_id=lambda: "a")
    here = SimpleNamespace(is_initialized=lambda: True, get_gpu_ids=lambda: ["7"], get_runtime_context=lambda: node)
    monkeypatch.setattr(lost_attempts, "tune", SimpleNamespace(report=told.append))
    monkeypatch.setattr(lost_attempts, "ray", here)
    bench = Bench(monkeypatch, dict.fromkeys(range(100, 601, 100), Lent(1, ("3",))), FaultOfWorker("device", "Xid 79"))
    monkeypatch.setattr(module, "borrow", lost_attempts.borrow)
    with pytest.raises(FaultOfWorker):
        bench.run()
    monkeypatch.setattr(lost_attempts, "_faulty", threading.Event())
    lost_attempts.lose("device", "Xid 79")
    assert [one["devices"] for one in told] == [["3", "7"]]
    monkeypatch.setattr(lost_attempts, "_faulty", threading.Event())
    monkeypatch.setattr(lost_attempts, "watch_notices", lambda: None)
    monkeypatch.setattr(lost_attempts, "is_draining", lambda _: False)
    monkeypatch.setattr(lost_attempts, "_quarantined", lambda _: [])
    assert lost_attempts.admitted("search", 0.0) > 0
    assert lost_attempts.devices_held() == ["7"]


def test_what_fails_before_anything_was_lent_fails_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: Any) -> Generator[Any, None, None]:
        raise TrialFailure("error", "planted")
        yield

    bench = Bench(monkeypatch, {})
    with pytest.raises(TrialFailure):
        list(GrowingTrainer(train)(Hyperparameters(), None, SETTINGS, 1, None))  # type: ignore[arg-type]
    assert bench.groups == []
