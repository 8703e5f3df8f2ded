"""How many training images a search needs, and how good its choice is: ours, random search and stock Ray Tune.

Learning curves are computed, not trained: average precision over images_seen from a formula whose optimum is known and
lies elsewhere for each seed, with noise between trainings (seeds) and between reports. Everything else is the real
thing: our sampler, rungs and ledger (kept in memory), and Ray's own OptunaSearch and AsyncHyperBandScheduler, each
driven report by report on the same simulated slots, with the same space, budget and rungs. Nothing here runs on a
cluster, and a formula is not a network.

Reached: a report whose value without noise is 95 % of the best possible one. A ratio above 1 says that the other method
needs more images. Regret: the best possible value less that of the chosen parameters, without noise; all methods may
show the same number of images, and the ones that ours needs to confirm (top 3, three seeds) are among them.

    python benchmarks/search_efficiency.py [--seeds 20] [--noise 0.02] [--only images]
"""

from __future__ import annotations

import argparse
import heapq
import math
import statistics
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import yaml
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from ich_ray.results import SearchRecord
from ich_ray.search import ledger as ledgers
from ich_ray.search.draw import RandomSuggest
from ich_ray.search.halving import Halving, Rungs
from ich_ray.search.sampler import LedgerSampler
from ich_ray.search.space import parse_space

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SPACE = yaml.safe_load("""
name: efficiency
budget: {images: 27000, report_every: 1000, first_rung: 1000, reduction: 3, min_peers: 3}
parameters:
  architecture:  {choice: [plain_cnn, resnet18]}
  blocks:        {int: [1, 4], when: {architecture: plain_cnn}}
  batch_size:    {choice: [32, 64, 128]}
  learning_rate: {loguniform: [0.00001, 0.1]}
  decay:         {loguniform: [0.001, 0.1]}
  dropout:       {uniform: [0.0, 0.6]}
  optimizer:     {choice: [sgd, adam, adamw]}
""")
CHECKED = parse_space(SPACE, "efficiency.yaml")
IMAGES, EVERY = CHECKED.budget.images, CHECKED.budget.report_every
SLOTS = 4
FLOOR, CEILING = 0.15, 0.9
CONFIRMED, REPEATS = 3, 3

Parameters = dict[str, Any]


class Landscape:
    """A problem of its own for each seed: where the optimum lies, and how far parameters depend on each other.

    Attributes:
        best: the value of the optimum at the end of the budget, by a fine search over what is not decided by sight.
    """

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng((seed, 7))
        self._rate = {"sgd": random.uniform(-2.5, -1.5), "adam": random.uniform(-3.7, -2.3)}
        self._rate["adamw"] = self._rate["adam"] + random.uniform(-0.3, 0.3)
        # The best rate over batch size (linear scaling would be 1) and architecture, the best dropout over decay.
        self._scaling, self._smaller, self._coupled = random.uniform(0, [1, 0.5, 0.7])
        rates, dropouts = np.linspace(-0.5, 0.5, 41), np.linspace(0.0, 0.6, 61)
        fixed = {"architecture": "resnet18", "batch_size": 64, "optimizer": "adam", "decay": 0.01}
        self.best = max(
            self.value({**fixed, "learning_rate": 10 ** (self._rate["adam"] + rate), "dropout": dropout}, IMAGES)
            for rate in rates
            for dropout in dropouts
        )

    def value(self, parameters: Parameters, images: int) -> float:
        """Average precision without noise: an exponential approach to a ceiling, slower at small rates, much dropout.

        Small rates and dropout end higher than they begin, so that early ranks are not the last ones.
        """
        small = parameters["architecture"] == "plain_cnn"
        off = math.log10(parameters["learning_rate"]) - self._rate[parameters["optimizer"]] - self._smaller * small
        off -= self._scaling * math.log10(parameters["batch_size"] / 64)
        dropped, decayed = (parameters["dropout"] - 0.35) / 0.3, math.log10(parameters["decay"]) + 2
        miss = (off / 0.9) ** 2 + 0.8 * dropped**2 + 0.3 * decayed**2 + self._coupled * dropped * decayed
        miss += 0.3 + 0.2 * (parameters["blocks"] - 3) ** 2 if small else 0.0
        miss += 0.15 * (parameters["batch_size"] == 128) + 0.1 * (parameters["optimizer"] == "adamw")
        slow = 0.1 + 0.12 * max(0.0, -off) + 0.15 * parameters["dropout"]
        return FLOOR + (CEILING - FLOOR) * math.exp(-0.5 * miss) * (1 - math.exp(-images / (slow * IMAGES)))

    def regret(self, parameters: Parameters) -> float:
        return self.best - self.value(parameters, IMAGES)


class Training:
    """One network in training, as noisy as asked: half of the variance stays with the seed, half with each report."""

    def __init__(self, on: Landscape, parameters: Parameters, noise: float, seed: tuple[int, ...]) -> None:
        self.parameters, self.images, self._on = parameters, 0, on
        self._random, self._noise = np.random.default_rng(seed), noise / math.sqrt(2)
        self._offset = self._random.normal(0, self._noise) if noise else 0.0
        self.values: list[float] = []

    def report(self) -> float:
        self.images += EVERY
        noise = self._random.normal(0, self._noise) if self._noise else 0.0
        self.values.append(min(max(self.value + self._offset + noise, 0.0), 1.0))
        return self.values[-1]

    @property
    def value(self) -> float:
        """Without noise, now."""
        return self._on.value(self.parameters, self.images)


class Method(Protocol):
    """A search: what to train, and whether to go on after a report."""

    def start(self, trial_id: str) -> Parameters: ...
    def goes_on(self, trial_id: str, training: Training, measured: float) -> bool: ...


class Random:
    """Independent draws, each trained to its end."""

    def __init__(self, seed: int, folder: Path) -> None:
        del folder
        self._suggest = RandomSuggest(seed)

    def start(self, trial_id: str) -> Parameters:
        del trial_id
        return CHECKED.draw(self._suggest).parameters

    def goes_on(self, trial_id: str, training: Training, measured: float) -> bool:
        del trial_id, measured
        return training.images < IMAGES


class Ours:
    """LedgerSampler, Rungs and Halving as search/run.py puts them together."""

    def __init__(self, seed: int, folder: Path) -> None:
        record = SearchRecord(
            name="x", space=SPACE, dataset="", fingerprint="", prevalence=FLOOR, seed=seed, trials=10**6, versions={},
            created=0.0,
        )  # fmt: skip
        self._ledger = ledgers.Ledger.create(folder, record)
        self._sampler = LedgerSampler(
            CHECKED, self._ledger, wanted=10**6, concurrent=lambda: SLOTS, out_of_time=lambda: False
        )
        rungs = Rungs(CHECKED.budget, CHECKED.objective)
        self._halving = Halving(CHECKED.budget, CHECKED.objective, rungs, lambda: None)
        self._configs: dict[str, dict[str, Any]] = {}

    def start(self, trial_id: str) -> Parameters:
        self._configs[trial_id] = self._sampler.suggest(trial_id)
        return dict(self._configs[trial_id]["parameters"])

    def goes_on(self, trial_id: str, training: Training, measured: float) -> bool:
        config = self._configs[trial_id]
        number, metrics = config["number"], {"average_precision": measured}
        result = {"images_seen": training.images, "metrics/average_precision": measured}
        decision = self._halving.on_trial_result(None, SimpleNamespace(config=config), result)  # type: ignore[arg-type]
        if decision == TrialScheduler.CONTINUE:  # in Tune's order: scheduler, sampler, ledger
            self._sampler.on_trial_result(trial_id, result)
        end = self._halving.verdicts.get(number)
        self._ledger.report(number, training.images, metrics, training.images / 1000, end=end)
        if end:
            self._sampler.on_trial_complete(trial_id, {})
        return bool(decision == TrialScheduler.CONTINUE)


class Stock:
    """OptunaSearch with AsyncHyperBandScheduler, told what Tune tells them."""

    def __init__(self, seed: int, folder: Path) -> None:
        del folder
        np.random.seed(seed)  # noqa: NPY002  (the scheduler's own source of randomness)
        self._search = OptunaSearch(_define, metric="average_precision", mode="max", seed=seed)
        self._scheduler = AsyncHyperBandScheduler(
            time_attr="images_seen", metric="average_precision", mode="max", max_t=IMAGES,
            grace_period=CHECKED.budget.first_rung, reduction_factor=CHECKED.budget.reduction,
        )  # fmt: skip

    def start(self, trial_id: str) -> Parameters:
        parameters = self._search.suggest(trial_id)
        assert isinstance(parameters, dict)
        self._scheduler.on_trial_add(None, SimpleNamespace(trial_id=trial_id))  # type: ignore[arg-type]
        return parameters

    def goes_on(self, trial_id: str, training: Training, measured: float) -> bool:
        result = {
            "images_seen": training.images,
            "average_precision": measured,
            "training_iteration": training.images // EVERY,
        }
        trial = SimpleNamespace(trial_id=trial_id)
        decision = self._scheduler.on_trial_result(None, trial, result)  # type: ignore[arg-type]
        if decision == TrialScheduler.CONTINUE:
            self._search.on_trial_result(trial_id, result)
            return True
        self._scheduler.on_trial_complete(None, trial, result)  # type: ignore[arg-type]
        self._search.on_trial_complete(trial_id, result)
        return False


def _define(trial: Any) -> None:
    """The space of this file in Optuna's words."""
    if trial.suggest_categorical("architecture", ["plain_cnn", "resnet18"]) == "plain_cnn":
        trial.suggest_int("blocks", 1, 4)
    trial.suggest_categorical("batch_size", [32, 64, 128])
    trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True)
    trial.suggest_float("decay", 1e-3, 1e-1, log=True)
    trial.suggest_float("dropout", 0.0, 0.6)
    trial.suggest_categorical("optimizer", ["sgd", "adam", "adamw"])


@dataclass
class Course:
    """What a search has shown and trained so far."""

    images: int = 0
    trainings: list[Training] = field(default_factory=list)
    complete: list[Training] = field(default_factory=list)


def course(method: Method, on: Landscape, noise: float, seed: int) -> Iterator[tuple[Course, Training]]:
    """Run a search on simulated slots, which all train equally fast; yields after each report."""
    so_far, slots = Course(), [(0, slot) for slot in range(SLOTS)]
    busy: dict[int, tuple[str, Training]] = {}
    while True:
        clock, slot = heapq.heappop(slots)
        if slot not in busy:
            number = len(so_far.trainings)
            training = Training(on, method.start(str(number)), noise, (seed, number))
            so_far.trainings.append(training)
            busy[slot] = (str(number), training)
        trial_id, training = busy[slot]
        measured = training.report()
        so_far.images += EVERY
        if not method.goes_on(trial_id, training, measured):
            del busy[slot]
        if training.images >= IMAGES:
            so_far.complete.append(training)
        heapq.heappush(slots, (clock + EVERY, slot))
        yield so_far, training


def images_to_reach(method: Method, on: Landscape, noise: float, seed: int, at_most: int) -> int:
    for so_far, training in course(method, on, noise, seed):
        if training.value >= 0.95 * on.best or so_far.images >= at_most:
            return so_far.images
    raise AssertionError


def snapshots(method: Method, on: Landscape, noise: float, seed: int, images: list[int]) -> Iterator[Course]:
    """A search when it has shown so many images, then so many."""
    steps = course(method, on, noise, seed)
    for count in images:
        yield next(so_far for so_far, _ in steps if so_far.images >= count)


def confirmed(found: Course, on: Landscape, noise: float, seed: int) -> Parameters:
    """The best mean of the top trials over new seeds, as final/confirm.py chooses."""
    top = sorted(found.complete, key=lambda training: -max(training.values))[:CONFIRMED]

    def mean(position: int) -> float:
        chosen = top[position].parameters
        again = [Training(on, chosen, noise, (seed, 10**6, position, part)) for part in range(REPEATS)]
        return statistics.fmean(max(training.report() for _ in range(IMAGES // EVERY)) for training in again)

    return top[max(range(len(top)), key=mean)].parameters


def quartiles(values: list[float]) -> str:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.2f} x [{low:.2f}, {high:.2f}]"


def mean_and_error(values: list[float]) -> str:
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values) / math.sqrt(len(values)):.4f}"


def print_images(seeds: int, noise: float, folder: Callable[[], Path]) -> None:
    at_most = 400 * IMAGES  # counted as that many where a search has not reached it by then
    methods: dict[str, Callable[[int, Path], Method]] = {"ours": Ours, "random": Random, "stock": Stock}
    needed: dict[str, list[int]] = {name: [] for name in methods}
    for seed in range(seeds):
        on = Landscape(seed)
        for name, method in methods.items():
            needed[name].append(images_to_reach(method(seed, folder()), on, noise, seed, at_most))
    print(f"images to 95 % of the best AP, {seeds} seeds, noise {noise:g}; median [quartiles] of the ratio per seed")
    for name in ("random", "stock"):
        ratios = [other / own for other, own in zip(needed[name], needed["ours"], strict=True)]
        total, worse = sum(needed[name]) / sum(needed["ours"]), sum(ratio < 1 for ratio in ratios)
        print(
            f"  {name} / ours: {quartiles(ratios)}, of the sums {total:.2f} x; ours needed more in {worse} of {seeds}"
        )
    for name, images in needed.items():
        missed = sum(count >= at_most for count in images)
        budgets = np.percentile(images, [25, 50, 75]) / IMAGES
        note = f", {missed} never" if missed else ""
        print(f"  {name:6} median {budgets[1]:.1f} [{budgets[0]:.1f}, {budgets[2]:.1f}] full trainings{note}")


def print_regret(seeds: int, noise: float, folder: Callable[[], Path]) -> None:
    images = 40 * IMAGES
    spent = CONFIRMED * REPEATS * IMAGES
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        on = Landscape(seed)
        searches = snapshots(Ours(seed, folder()), on, noise, seed, [images - spent, images])
        choices = {"ours, confirmed": confirmed(next(searches), on, noise, seed)}
        ours = next(searches)
        choices["ours, not confirmed"] = max(ours.complete, key=lambda training: max(training.values)).parameters
        (stock,) = snapshots(Stock(seed, folder()), on, noise, seed, [images])
        # What get_best_result gives: the best last report of any trial, stopped or not.
        choices["stock"] = max(stock.trainings, key=lambda training: training.values[-1]).parameters
        for name, tried in (("best tried by ours", ours), ("best tried by stock", stock)):
            choices[name] = min((training.parameters for training in tried.trainings), key=on.regret)
        for name, parameters in choices.items():
            found.setdefault(name, []).append(on.regret(parameters))
    print(f"regret after {images // IMAGES} full trainings of images, {seeds} seeds, noise {noise:g}; mean ± its error")
    for name, regrets in found.items():
        print(f"  {name:20} {mean_and_error(regrets)}")
    for name, own in (("stock", "ours, confirmed"), ("best tried by stock", "best tried by ours")):
        gain = [other - mine for other, mine in zip(found[name], found[own], strict=True)]
        print(f"  {name} less {own}: {mean_and_error(gain)} per seed; above 0 is for ours")


def _unwritten(path: Path, content: bytes) -> None:
    """A ledger that stays in memory; a Mock would remember every call."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, default=20)
    arguments.add_argument("--only", choices=["images", "regret"], help="one of the two comparisons")
    arguments.add_argument("--noise", type=float, default=0.02)
    given = arguments.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary, mock.patch.object(ledgers, "write_bytes", _unwritten):
        made = iter(range(10**9))

        def folder() -> Path:
            return Path(temporary) / str(next(made))

        for name, compare in (("images", print_images), ("regret", print_regret)):
            if given.only in {None, name}:
                compare(given.seeds, given.noise, folder)


if __name__ == "__main__":
    main()
