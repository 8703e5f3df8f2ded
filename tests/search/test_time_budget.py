from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from ich_ray.errors import ConfigError
from ich_ray.results import open_search
from ich_ray.search import time_budget
from ich_ray.search.ledger import Ledger, Verdict
from ich_ray.search.space.space import Budget
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.search.stopping.asha import AshaRungs
from ich_ray.search.time_budget import Limits
from ich_ray.search.tune import ledger_callback
from ich_ray.search.tune.ledger_callback import LedgerCallback
from ich_ray.search.tune.scheduler import StoppingScheduler
from ich_ray.search_records import SearchRecord
from tests.prepared import make_dataset
from tests.search.fakes import SPACE

REPOSITORY = Path(__file__).parent.parent.parent
HOURS = Verdict("pruned", "hours", "the search's --hours were over")
GPU_HOURS = Verdict("pruned", "gpu_hours", "the search's --gpu-hours were used up")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    for module in (time_budget, ledger_callback):
        monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: now[0], monotonic=lambda: now[0]))
    return now


def test_each_limit_ends_the_search(clock: list[float]) -> None:
    limit = Limits(hours=0.5, gpu_hours=2, began=1000.0)
    assert limit.exhausted(7199.9) is None
    assert limit.exhausted(7200.0) == GPU_HOURS
    clock[0] = 2799.0
    assert limit.exhausted(0.0) is None
    clock[0] = 2800.0
    assert limit.exhausted(0.0) == HOURS
    clock[0] = 1e9
    assert Limits().exhausted(1e9) is None


def test_gpu_hours_without_gpus_have_no_meaning() -> None:
    Limits(gpu_hours=1).check(0.25)
    Limits(hours=1).check(0)
    with pytest.raises(ConfigError, match="--gpu-hours: has a meaning only where trials hold GPUs, got 0 GPU a trial"):
        Limits(gpu_hours=1).check(0)
    for keys in ({"hours": 0.0}, {"gpu_hours": -1.0}, {"gpu_hours": float("nan")}):
        flag = f"--{next(iter(keys)).replace('_', '-')}: must be above 0, got"
        with pytest.raises(ConfigError, match=flag):
            Limits(**keys)


def callback_of(folder: Path) -> tuple[Ledger, StoppingScheduler, LedgerCallback]:
    record = SearchRecord(
        name="x", space={}, dataset="", fingerprint="f" * 32, prevalence=0.1, seed=0, trials=9, versions={}, created=0.0
    )
    ledger = Ledger.create(folder / "s", record)
    budget = Budget(images=900, report_every=100, first_rung=900)
    held: list[LedgerCallback] = []
    asha = StoppingScheduler(
        budget,
        record.objective,
        AshaRungs(budget, record.objective),
        lambda: Limits(gpu_hours=1).exhausted(held[0].gpu_seconds()),
    )
    sampler: Any = SimpleNamespace()
    held.append(
        LedgerCallback(
            parse_space(yaml.safe_load(SPACE), "space.yaml"),
            ledger,
            asha,
            sampler,
            wanted=9,
            gpus=0.5,
            deadline=math.inf,
        )
    )
    return ledger, asha, held[0]


def start(keeper: LedgerCallback, number: int, again: bool = False) -> Any:
    trial = SimpleNamespace(config={"number": number, "again": again}, trial_id=str(number), status="RUNNING")
    keeper.on_trial_start(0, [], trial)  # type: ignore[arg-type]
    return trial


def report(asha: StoppingScheduler, keeper: LedgerCallback, trial: Any, images_seen: int) -> str:
    result = {"images_seen": images_seen, "metrics": {"average_precision": 0.5}, "elapsed_s": 1.0}
    decision = asha.on_trial_result(None, trial, {**result, "metrics/average_precision": 0.5})
    keeper.on_trial_result(0, [], trial, result)
    return decision


def test_running_trials_count_and_those_of_former_drivers(tmp_path: Path, clock: list[float]) -> None:
    ledger, asha, keeper = callback_of(tmp_path)
    ledger.add({}), ledger.add({}), ledger.add({})
    ledger.report(2, 900, {"average_precision": 0.5}, 1.0, end=Verdict("completed"), cost_gpu_s=1000.0)
    first = start(keeper, 0)
    clock[0] += 1000
    second = start(keeper, 1)
    clock[0] += 2000  # of an hour at half a GPU each: 1000 from before, 1500 and 1000
    assert keeper.gpu_seconds() == 3500.0
    assert report(asha, keeper, first, 100) == "CONTINUE"
    assert ledger.trials[0].cost_gpu_s == 1500.0
    clock[0] += 100
    keeper.on_trial_recover(0, [], first)  # its process died 100 s after the report ...
    start(keeper, 0)
    assert ledger.trials[0].cost_gpu_s == 1550.0  # ... which are not forgotten
    assert ledger.trials[0].attempts == 2
    assert report(asha, keeper, second, 100) == "STOP"
    ended = ledger.trials[1]
    assert (ended.state, ended.reason, ended.cost_gpu_s) == ("pruned", "gpu_hours", 1050.0)
    again = Ledger.open(ledger.files.root)
    assert sum(trial.cost_gpu_s for trial in again.trials.values()) == 3600.0


DRIVER = """
import sys, ray
from ich_ray.local_ray import own_token
from ich_ray.search.run import run_search
from tests.search.fakes import FakeTrainer
with own_token():  # otherwise Ray writes one into the home
    ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
    keys = {"gpus_per_trial": 1, "_trainer": FakeTrainer(wait_s=1)}
    run_search(*sys.argv[1:4], trials=50, gpu_hours=6 / 3600, **keys)
    run_search(*sys.argv[1:4], gpu_hours=6 / 3600, resume=True, **keys)
    ray.shutdown()
"""


@pytest.mark.slow
def test_gpu_hours_end_a_search_and_are_not_given_twice(tmp_path: Path) -> None:
    """On two accelerators that Ray only counts: the trials run on the CPU."""
    make_dataset(tmp_path / "data", patients=20)
    (tmp_path / "space.yaml").write_text(SPACE.replace("first_rung: 100", "first_rung: 900"))
    arguments = [str(tmp_path / name) for name in ("data", "space.yaml", "s")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", DRIVER, *arguments], cwd=REPOSITORY, env=environment, check=True, timeout=240)
    found = open_search(tmp_path / "s")
    assert [(trial.state, trial.reason) for trial in found.trials] == [("pruned", "gpu_hours")] * 2
    assert 6 <= sum(trial.cost_gpu_s for trial in found.trials) < 12
    assert found.trials[0].reports
