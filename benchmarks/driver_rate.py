"""How many reports a second the driver of a search sustains, and at how many trials that bends.

The parts of the driver as search/tune/driver.py puts them together (ledger on disk, sampler, stopping rule, callback),
rebuilt from a ledger that already holds so many ended trials, with `--slots` trials at a time that report as fast as
they are listened to. No Ray between them: what its transport and Tune's own loop cost comes on top
(search_overhead.py measures all of it on two slots). Rates are told by processor time, which other work leaves as it
is; waiting for the disk comes on top, about 1.3 ms a report.

    python benchmarks/driver_rate.py [--known 0 100 1000] [--events 400] [--slots 64]
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from ich_ray.search import ledger as ledgers
from ich_ray.search.ledger import Ledger
from ich_ray.search.space.space import RandomSuggest
from ich_ray.search.space.yaml_file import SearchSpace, load_space
from ich_ray.search.stopping.asha import AshaRungs
from ich_ray.search.tune.ledger_callback import LedgerCallback
from ich_ray.search.tune.sampler import LedgerSampler
from ich_ray.search.tune.scheduler import StoppingScheduler
from ich_ray.search_records import SearchRecord

FLOOR = 0.14


@dataclass
class Driver:
    """What the driver holds, and the seconds (of the clock, of the processor) that went into each kind of event."""

    ledger: Ledger
    sampler: LedgerSampler
    asha: StoppingScheduler
    ledger_callback: LedgerCallback
    spent: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: {"report": [], "start": []})

    @classmethod
    def over(cls, space: SearchSpace, ledger: Ledger, slots: int) -> Driver:
        wanted = 10**6
        rungs = AshaRungs.rebuilt(space.budget, space.objective, ledger.trials.values())
        asha = StoppingScheduler(space.budget, space.objective, rungs, lambda: None)
        sampler = LedgerSampler(space, ledger, wanted=wanted, concurrent=lambda: slots, out_of_time=lambda: False)
        ledger_callback = LedgerCallback(space, ledger, asha, sampler, wanted=wanted, gpus=1, deadline=math.inf)
        return cls(ledger, sampler, asha, ledger_callback)

    def start(self, trials: list[Any]) -> Any:
        began = time.perf_counter(), time.process_time()
        trial_id = str(len(trials))
        trial = SimpleNamespace(
            config=self.sampler.suggest(trial_id), trial_id=trial_id, status="RUNNING", metric_analysis={},
            metric_n_steps={}, last_result={}, evaluated_params={},
        )  # fmt: skip
        trials.append(trial)
        self.ledger_callback.on_trial_start(0, trials, trial)
        self._spend("start", began)
        return trial

    def report(self, trials: list[Any], trial: Any, images: int, value: float) -> bool:
        """Whether the trial goes on."""
        began = time.perf_counter(), time.process_time()
        name = f"checkpoints/{trial.config['number']:05d}/a-00000000.safetensors"
        result = {
            "images_seen": images,
            "metrics": {"average_precision": value, "train_loss": 1 - value},
            "metrics/average_precision": value,
            "elapsed_s": images / 1000,
            "hostname": "node",
            "pid": 1,
            "checkpoint": {"file": name, "sha256": "0" * 64, "images_seen": images},
        }
        decision = self.asha.on_trial_result(None, trial, result)
        if decision == "CONTINUE":  # in Tune's order
            self.sampler.on_trial_result(trial.trial_id, result)
        self.ledger_callback.on_trial_result(0, trials, trial, result)
        if decision != "CONTINUE":
            trial.status = "TERMINATED"
            self.sampler.on_trial_complete(trial.trial_id, result)
            self.ledger_callback.on_trial_complete(0, trials, trial)
        self.ledger_callback.on_step_end(0, trials)
        self._spend("report", began)
        return bool(decision == "CONTINUE")

    def _spend(self, what: str, began: tuple[float, float]) -> None:
        self.spent[what].append((time.perf_counter() - began[0], time.process_time() - began[1]))


def value(rng: np.random.Generator, images: int) -> float:
    """A curve that rises, with noise: only its order matters here."""
    return float(np.clip(FLOOR + 0.6 * (1 - math.exp(-images / 1e6)) * rng.random(), 0, 1))


def run(driver: Driver, space: SearchSpace, slots: int, events: int, rng: np.random.Generator) -> None:
    """So many reports of trials that take turns."""
    trials: list[Any] = []
    waiting = deque((driver.start(trials), 0) for _ in range(slots))
    for _ in range(events):
        trial, images = waiting.popleft()
        images += space.budget.report_every
        goes_on = driver.report(trials, trial, images, value(rng, images))
        waiting.append((trial, images) if goes_on else (driver.start(trials), 0))


def ended(space: SearchSpace, folder: Path, known: int, rng: np.random.Generator) -> Ledger:
    """A ledger of `known` ended trials, drawn without a model and not written."""
    record = SearchRecord(
        name=space.name, space=space.source, dataset="", fingerprint="0" * 32, prevalence=FLOOR, seed=0, trials=10**6,
        versions={}, created=0.0,
    )  # fmt: skip
    ledger = Ledger.create(folder, record)
    random = RandomSuggest(seed=int(rng.integers(2**31)))
    asha = StoppingScheduler(space.budget, space.objective, AshaRungs(space.budget, space.objective), lambda: None)
    with mock.patch.object(ledgers, "write_bytes"), mock.patch.object(Ledger, "_drop_checkpoint"):
        for number in range(known):
            ledger.add(space.draw(random).parameters)
            images, end = 0, None
            while end is None:
                images += space.budget.report_every
                measured = value(rng, images)
                result = {"images_seen": images, "metrics/average_precision": measured}
                asha.on_trial_result(None, SimpleNamespace(config={"number": number}), result)  # type: ignore[arg-type]
                end = asha.verdicts.get(number)
                metrics = {"average_precision": measured, "train_loss": 1 - measured}
                ledger.report(number, images, metrics, images / 1000, end=end)
    return ledger


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4 / 1024


def milliseconds(spent: list[tuple[float, float]]) -> tuple[float, float]:
    wall, cpu = np.mean(spent, axis=0) * 1000
    return float(wall), float(cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--known", type=int, nargs="+", default=[0, 100, 1000], help="trials that have ended")
    parser.add_argument("--events", type=int, default=400, help="reports to listen to")
    parser.add_argument("--slots", type=int, default=64, help="trials at a time")
    parser.add_argument("--report-s", type=float, default=100.0, help="seconds between two reports of a trial")
    asked = parser.parse_args()
    space = load_space(Path(__file__).parents[1] / "search_spaces" / "default.yaml")
    print(f"{asked.slots} trials at a time, {asked.events} reports; in ms of the clock (of the processor):")
    for known in asked.known:
        rng = np.random.default_rng(0)
        with tempfile.TemporaryDirectory() as folder:
            ledger = ended(space, Path(folder) / "s", known, rng)
            began = time.perf_counter()
            driver = Driver.over(space, ledger, asked.slots)
            rebuilt_s = time.perf_counter() - began
            run(driver, space, asked.slots, asked.events, rng)
        report, start = (milliseconds(driver.spent[what]) for what in ("report", "start"))
        starts = len(driver.spent["start"]) / len(driver.spent["report"])
        each_s = (report[1] + starts * start[1]) / 1000
        print(
            f"{known:6} trials known: a report {report[0]:.1f} ({report[1]:.1f}), a new trial {start[0]:.1f} "
            f"({start[1]:.1f}), {starts:.2f} of them a report; {1 / each_s:.1f} reports/s, enough for "
            f"{asked.report_s / each_s:,.0f} trials at a time that report every {asked.report_s:g} s; "
            f"rebuilt in {rebuilt_s:.1f} s, {resident_mib():.0f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
