"""Shares of trials as Tune is told of them, and the second try of one whose memory ran out; no Ray at work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.results import fault_note
from ich_ray.search.gpu_shares import DeviceKind, GpuShares
from ich_ray.search.ledger import Ledger, Verdict
from ich_ray.search.plan.share_plan import CONTEXT_BYTES, Need
from ich_ray.search.space.space import Budget
from ich_ray.search.stopping.asha import AshaRungs
from ich_ray.search.tune import trial as trial_module
from ich_ray.search.tune import trial_shares
from ich_ray.search.tune.scheduler import StoppingScheduler
from ich_ray.search.tune.trial import TrialSettings, _with_share, train_model
from ich_ray.search.tune.trial_shares import TrialShares, equal_shares
from ich_ray.trial_records import Objective
from tests.records import make_record

BUDGET = Budget(images=900, report_every=100, first_rung=100, reduction=3, min_peers=2)
GIB = 2**30
SMALL = DeviceKind(8 * GIB, 2, 16, frozenset({"a" * 56}))
LARGE = DeviceKind(80 * GIB, 1, 16, frozenset({"b" * 56}))
TOLD = {"lost": "out_of_memory", "detail": "OutOfMemoryError: planted", "node": "ab", "host": "box", "devices": ["0"]}


class TuneTrial(SimpleNamespace):
    """What Tune has of a trial: it takes no resources while it runs."""

    def update_resources(self, resources: Any) -> None:
        assert self.status != "RUNNING"
        self.resources = resources

    @property
    def held(self) -> dict[str, float]:
        return dict(self.resources.required_resources)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "s", make_record())


def scheduler(shares: TrialShares, limit: Verdict | None = None) -> StoppingScheduler:
    rule = AshaRungs(BUDGET, Objective())
    return StoppingScheduler(BUDGET, Objective(), rule, lambda: limit, shares=shares)


def add(ledger: Ledger, shares: TrialShares, tune: StoppingScheduler, **parameters: Any) -> TuneTrial:
    record = ledger.add(parameters)
    trial = TuneTrial(status="PENDING", config={"number": record.number, **shares.begin(record)})
    tune.on_trial_add(None, trial)  # type: ignore[arg-type]
    trial.status = "RUNNING"
    shares.on_trial_start(0, [], trial)  # type: ignore[arg-type]
    return trial


def back_to_the_queue(tune: StoppingScheduler, trial: TuneTrial) -> None:
    """As Tune does with a trial whose process has raised."""
    trial.status = "ERROR"
    tune.on_trial_error(None, trial)  # type: ignore[arg-type]
    trial.status = "PENDING"
    tune.on_trial_add(None, trial)  # type: ignore[arg-type]


def by_memory(ledger: Ledger, needs: Mapping[str, float], images: float = 0.0) -> TrialShares:
    shares = GpuShares(lambda: [SMALL, LARGE])
    kinds = {8 * GIB: ["b" * 56], 80 * GIB: ["a" * 56]}
    return TrialShares(
        ledger,
        shares,
        lambda parameters: Need(needs[str(parameters["size"])] * GIB, images),
        1,
        lambda memory: kinds[int(memory)],
        is_memory=True,
    )


def test_each_trial_asks_ray_for_its_share_of_devices_of_its_kind(ledger: Ledger) -> None:
    shares = by_memory(ledger, {"small": 2, "large": 30}, images=3 * GIB)
    tune = scheduler(shares)
    small, large = (add(ledger, shares, tune, size=size) for size in ("small", "large"))
    assert small.held == {"CPU": 1, "GPU": 0.25}
    assert large.held == {"CPU": 1, "GPU": 0.5}
    assert small.resources._kwargs == {"bundle_label_selector": [{"ray.io/node-id": f"!in({'b' * 56})"}]}
    assert small.config == {
        "number": 0,
        "gpus": 0.25,
        "may_grow": True,
        "memory_bytes": 2 * GIB - CONTEXT_BYTES,
        "images_fit": False,
    }
    assert large.config["images_fit"] is True
    assert add(ledger, shares, tune, size="small").resources is small.resources, "so that it takes over its process"


def test_a_trial_whose_memory_ran_out_is_tried_once_with_a_larger_share(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(trial_shares, "say", said.append)
    shares = equal_shares(ledger, 1, 0.25, lambda: 4)
    tune = scheduler(shares)
    trial = add(ledger, shares, tune)
    assert (trial.held, trial.config["may_grow"]) == ({"CPU": 1, "GPU": 0.25}, True)
    assert tune.on_trial_result(None, trial, TOLD) == "CONTINUE"  # type: ignore[arg-type]
    back_to_the_queue(tune, trial)
    assert (trial.held, trial.config) == ({"CPU": 1, "GPU": 0.5}, {"number": 0, "gpus": 0.5, "may_grow": False})
    (attempt,) = ledger.trials[0].lost
    assert (attempt.cause, attempt.devices, ledger.trials[0].state) == ("out_of_memory", ("0",), "running")
    assert attempt.detail == "with 0.25 of a GPU: OutOfMemoryError: planted"
    assert said == ["trial 0: memory ran out on box (GPU 0), it is tried once more with a larger share of a GPU"]
    assert fault_note(ledger.record, ledger.trials.values()) == (
        "tried again with a larger share of a GPU, as memory ran out: trial 0"
    )
    assert tune.on_trial_result(None, trial, TOLD) == "STOP"  # type: ignore[arg-type]
    assert tune.verdicts[0] == Verdict("failed", "out_of_memory", "OutOfMemoryError: planted")
    assert len(ledger.trials[0].lost) == 1


def test_the_share_of_the_next_attempt_is_not_held_before_it_starts(ledger: Ledger) -> None:
    shares = equal_shares(ledger, 1, 0.25, lambda: 4)
    tune = scheduler(shares)
    trial = add(ledger, shares, tune)
    tune.on_trial_result(None, trial, TOLD)  # type: ignore[arg-type]
    back_to_the_queue(tune, trial)
    assert (trial.held["GPU"], shares.gpus(0)) == (0.5, 0.25)
    shares.on_trial_start(0, [], trial)  # type: ignore[arg-type]
    assert shares.gpus(0) == 0.5


def test_a_resumed_search_gives_such_a_trial_its_larger_share_at_once(ledger: Ledger) -> None:
    ledger.add({})
    ledger.lose(0, "out_of_memory", "d", "ab", "box")
    shares = equal_shares(ledger, 1, 0.25, lambda: 4)
    assert shares.begin(ledger.trials[0]) == {"gpus": 0.5, "may_grow": False}


def test_a_trial_that_a_machine_has_lost_keeps_its_share(ledger: Ledger) -> None:
    shares = by_memory(ledger, {"small": 2})
    tune = scheduler(shares)
    trial = add(ledger, shares, tune, size="small")
    back_to_the_queue(tune, trial)
    assert trial.held == {"CPU": 1, "GPU": 0.25}
    assert trial.config["may_grow"] is True


def test_a_trial_whose_kind_of_device_has_gone_takes_a_share_of_another(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(trial_shares, "say", said.append)
    kinds, now = [SMALL, LARGE], [0.0]
    others = {8 * GIB: ["b" * 56], 80 * GIB: ["a" * 56]}
    shares = TrialShares(
        ledger,
        GpuShares(lambda: kinds),
        lambda _: Need(30 * GIB, 0),
        1,
        lambda memory: others[int(memory)],
        is_memory=True,
        now=lambda: now[0],
    )
    tune = scheduler(shares)
    trial = TuneTrial(status="PENDING", config={"number": ledger.add({}).number})
    trial.config.update(shares.begin(ledger.trials[0]))
    tune.on_trial_add(None, trial)  # type: ignore[arg-type]
    assert trial.held == {"CPU": 1, "GPU": 0.5}
    kinds.remove(LARGE)
    assert shares.look(trial) is None  # type: ignore[arg-type]
    kinds.append(LARGE)
    now[0] = 700.0
    assert shares.look(trial) is None, "it is back"  # type: ignore[arg-type]
    kinds.remove(LARGE)
    for now[0] in (700.0, 1299.0):
        assert shares.look(trial) is None  # type: ignore[arg-type]
    now[0] = 1300.0
    asked = shares.look(trial)  # type: ignore[arg-type]
    assert asked is not None
    assert dict(asked.required_resources) == {"CPU": 1, "GPU": 1}, "as a trial that is drawn now"
    assert asked._kwargs == {"bundle_label_selector": [{"ray.io/node-id": f"!in({'b' * 56})"}]}
    assert trial.config["gpus"] == 1
    assert len(said) == 1
    assert shares.look(trial) is None  # type: ignore[arg-type]


def test_on_a_whole_device_of_the_largest_there_is_no_second_try(ledger: Ledger) -> None:
    shares = by_memory(ledger, {"huge": 70})
    assert add(ledger, shares, scheduler(shares), size="huge").config["may_grow"] is False


def test_a_trial_whose_memory_ran_out_ends_with_the_time_of_the_search(ledger: Ledger) -> None:
    shares = equal_shares(ledger, 1, 0.5, lambda: 2)
    tune = scheduler(shares, Verdict("pruned", "hours"))
    trial = add(ledger, shares, tune)
    assert tune.on_trial_result(None, trial, TOLD) == "STOP"  # type: ignore[arg-type]
    assert tune.verdicts == {0: Verdict("pruned", "hours")}


def test_a_trial_that_fails_for_good_is_not_placed_again(ledger: Ledger) -> None:
    shares = equal_shares(ledger, 1, 0.5, lambda: 2)
    tune = scheduler(shares)
    trial = add(ledger, shares, tune)
    tune.on_trial_error(None, trial)  # type: ignore[arg-type]
    assert trial.status == "RUNNING"


def test_a_larger_share_takes_the_place_of_two(ledger: Ledger) -> None:
    shares = equal_shares(ledger, 1, 0.25, lambda: 4)
    tune = scheduler(shares)
    trials = [add(ledger, shares, tune) for _ in range(4)]
    assert not shares.has_room()
    assert tune.on_trial_result(None, trials[0], TOLD) == "CONTINUE"  # type: ignore[arg-type]
    back_to_the_queue(tune, trials[0])
    shares.ended(1)
    assert not shares.has_room(), "it waits for two quarters"
    shares.on_trial_start(0, [], trials[0])  # type: ignore[arg-type]
    assert not shares.has_room()
    shares.ended(2)
    assert shares.has_room()


@pytest.mark.parametrize(
    ("config", "placement", "settings"),
    [
        ({}, "auto", (1.0, 0, "auto")),
        ({"gpus": 0.25}, "auto", (0.25, 0, "auto")),
        ({"gpus": 0.25, "memory_bytes": 9, "images_fit": True}, "auto", (0.25, 9, "auto")),
        ({"gpus": 0.25, "memory_bytes": 9, "images_fit": False}, "auto", (0.25, 9, "host")),
        ({"gpus": 0.25, "memory_bytes": 9, "images_fit": False}, "device", (0.25, 9, "device")),
    ],
)
def test_a_trial_is_trained_with_what_it_has_a_share_of(
    config: dict[str, Any], placement: Any, settings: tuple[float, int, str]
) -> None:
    whole = TrialSettings("d", "f", "s", 900, 100, 1, 1.0, placement=placement)
    shared = _with_share(whole, config)
    assert (shared.gpus, shared.memory_bytes, shared.placement) == settings


def test_a_process_may_allocate_no_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """The accelerator is planted: what is asked of PyTorch is what counts."""
    asked: list[tuple[float, str]] = []

    def train(*_: Any, **__: Any) -> Any:
        yield from ()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 * GIB))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda part, device: asked.append((part, str(device)))
    )
    monkeypatch.setattr("ich_ray.training.loop.train", train)
    dataset: Any = SimpleNamespace(role=lambda _: None)
    settings = TrialSettings("d", "f", "s", 900, 100, 1, 0.25, memory_bytes=20 * GIB)
    list(train_model(Hyperparameters(), dataset, settings, 0, None))
    assert asked == [(0.25, "cuda:0")]


def test_a_process_tells_of_memory_that_ran_out_only_where_a_larger_share_may_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[dict[str, Any]] = []
    lost: list[str] = []

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Planted.")

    monkeypatch.setattr(trial_module, "_run", fail)
    monkeypatch.setattr(trial_module, "admitted", lambda *_: 0.0)
    monkeypatch.setattr(trial_module, "lose", lambda cause, _, *, full: lost.append(cause))
    monkeypatch.setattr(trial_module.tune, "report", told.append)
    function = trial_module.trial_function(TrialSettings("d", "f", "s", 900, 100, 1, 0.5))
    with pytest.raises(torch.OutOfMemoryError):
        function({"number": 3, "may_grow": True})
    assert (lost, told) == (["out_of_memory"], [])
    function({"number": 3, "may_grow": False})
    function({"number": 3})
    assert lost == ["out_of_memory"]
    assert [one["failure"] for one in told] == ["out_of_memory"] * 2
