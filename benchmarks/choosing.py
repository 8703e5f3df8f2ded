"""What is lost between the best trial that a search tried and the one that it chooses, on the computed problems.

Ours with 4 slots. Regret is that of the parameters, without noise: the best there is less what they are worth. All
images count, those of confirmation included:

    report      the completed trial with the best report, after all images
    third       the same by the best mean of a third of the reports in a row
    model       the same by search/value_model.py, nothing trained again; trials that were stopped are among them
    top         the 3 best reports trained again with 3 seeds, the best mean: as `confirm --top 3 --seeds 3` does
    rounds      the 6 best by thirds trained again in turns, the worst dropped after each: successive halving
    race        refit/racing.py: whoever is expected to improve the choice most, until the images are spent
    race, done  the same among completed trials only

`top` after `--whole` full trainings in all; the others with those images, or (`+`) with what `confirm` may spend upon
them. Intervals are 95 % of paired bootstraps over problems.

    python benchmarks/choosing.py [--seeds 24] [--first 0] [--whole 40] [--noise 0.02] [--workers 1]
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from benchmarks.efficiency.computed import EVERY, IMAGES, SPACE, Landscape
from benchmarks.efficiency.course import course
from benchmarks.efficiency.methods import METRIC, Ours
from ich_ray.refit.confirm_race import SHARE
from ich_ray.refit.racing import Race
from ich_ray.search import ledger as ledgers
from ich_ray.search.value_model import ValueModel, smoothed_best
from ich_ray.trial_records import Report, TrialResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

REPEATS, TOP, ROUNDS_OF = 3, 3, 6


def snapshots(on: Landscape, seed: int, whole: Sequence[float]) -> Iterator[list[TrialResult]]:
    """The trials of a search when it has shown so many full trainings, then so many."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(ledgers, "write_bytes", _unwritten):
        method = Ours(on.space, seed, Path(folder) / "s", 4)
        steps = course(method, on, seed)
        for shown in whole:
            next(so_far for so_far, _ in steps if so_far.images >= shown * IMAGES)
            yield list(method.ledger.trials.values())


def _unwritten(path: Path, content: bytes) -> None:
    """A ledger that stays in memory."""


class Trainer:
    """Trains a trial once more to its end, each time with another seed; the same for every way to choose."""

    def __init__(self, on: Landscape, seed: int) -> None:
        self._on, self._seed, self.trained = on, seed, []
        self.trained: list[TrialResult] = []

    def __call__(self, trial: TrialResult) -> float:
        part = sum(one.repeats == trial.number for one in self.trained)
        training = self._on.begin(trial.parameters, (self._seed, 10**6, trial.number, part))
        reports = tuple(
            Report(images_seen=images, metrics={METRIC: training.report()}, elapsed_s=0, time=0)
            for images in range(EVERY, IMAGES + 1, EVERY)
        )
        again = TrialResult(
            number=len(self.trained), parameters=trial.parameters, state="completed", reports=reports,
            repeats=trial.number,
        )  # fmt: skip
        self.trained.append(again)
        return again.value or 0.0


def _third(trial: TrialResult) -> float:
    return smoothed_best([report.metrics[METRIC] or 0.0 for report in trial.reports])


def _completed(trials: Sequence[TrialResult], by: Callable[[TrialResult], float]) -> list[TrialResult]:
    return sorted((trial for trial in trials if trial.state == "completed"), key=lambda trial: -by(trial))


def top(trials: Sequence[TrialResult], train: Trainer) -> TrialResult:
    best = _completed(trials, lambda trial: trial.value or 0.0)[:TOP]
    return max(best, key=lambda trial: statistics.fmean(train(trial) for _ in range(REPEATS)))


def rounds(trials: Sequence[TrialResult], train: Trainer, trainings: int) -> TrialResult:
    left = {trial.number: [_third(trial)] for trial in _completed(trials, _third)[:ROUNDS_OF]}
    named = {trial.number: trial for trial in trials}
    while trainings > 0 and len(left) > 1:
        for number in sorted(left, key=lambda one: -statistics.fmean(left[one]))[:trainings]:
            left[number].append(train(named[number]))
            trainings -= 1
        kept = sorted(left, key=lambda one: -statistics.fmean(left[one]))[: max(1, len(left) // 2)]
        left = {number: left[number] for number in kept}
    return named[max(left, key=lambda one: statistics.fmean(left[one]))]


def race(
    model: ValueModel, among: Sequence[TrialResult], train: Trainer, trainings: int, at_a_time: int
) -> TrialResult:
    running = Race(model, among, by_fold=False)
    while len(train.trained) < trainings:
        left = trainings - len(train.trained)
        upcoming = running.next(train.trained, min(at_a_time, left), last=at_a_time >= left)
        if not upcoming:
            break
        for trial in upcoming:
            train(trial)
    chosen = running.chosen(train.trained)
    assert chosen is not None
    return chosen


def chosen(seed: int, whole: float, noise: float) -> dict[str, float]:
    """Regrets of one problem by what chose, those of the best tried beside them."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    on = Landscape(seed, noise)
    before, during = whole - TOP * REPEATS, whole / (1 + SHARE)
    shown = dict(zip((before, during, whole), snapshots(on, seed, sorted((before, during, whole))), strict=True))
    found: dict[str, float] = {}

    def note(name: str, trial: TrialResult) -> None:
        found[name] = on.regret(trial.parameters)

    def tried(name: str, trials: Sequence[TrialResult]) -> None:
        found[name] = min(on.regret(trial.parameters) for trial in trials)

    tried("tried, before top", shown[before])
    note("top", top(shown[before], Trainer(on, seed)))
    for at, mark in ((during, ""), (whole, " +")):
        trials, trainings = shown[at], int(SHARE * at)
        tried(f"tried{mark}", trials)
        done = _completed(trials, lambda trial: trial.value or 0.0)
        note(f"report{mark}", done[0])
        note(f"third{mark}", _completed(trials, _third)[0])
        model = ValueModel(SPACE, [trial for trial in trials if trial.state != "running"])
        note(f"model{mark}", model.trials[int(model.ends(model.trials)[0].argmax())])
        note(f"rounds{mark}", rounds(trials, Trainer(on, seed), trainings))
        note(f"race{mark}", race(model, model.trials, Trainer(on, seed), trainings, 1))
        note(f"race by 2{mark}", race(model, model.trials, Trainer(on, seed), trainings, 2))
        note(f"race, done{mark}", race(model, done, Trainer(on, seed), trainings, 1))
    return found


def interval(values: Callable[[np.ndarray], float], count: int) -> str:
    random = np.random.default_rng(0)
    drawn = [values(random.integers(0, count, count)) for _ in range(4000)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{values(np.arange(count)):.4f} [{low:.4f}, {high:.4f}]"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, default=24)
    arguments.add_argument("--first", type=int, default=0)
    arguments.add_argument("--whole", type=int, default=40, help="full trainings in all")
    arguments.add_argument("--noise", type=float, default=0.02)
    arguments.add_argument("--workers", type=int, default=1, help="processes")
    given = arguments.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    seeds = range(given.first, given.first + given.seeds)
    rows: dict[str, list[float]] = {}
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        each = pool.map(partial(chosen, whole=given.whole, noise=given.noise), seeds)
        for seed, found in zip(seeds, each, strict=True):
            print(seed, *(f"{name} {value:.4f}" for name, value in found.items()), sep=", ", file=sys.stderr)
            for name, value in found.items():
                rows.setdefault(name, []).append(value)
    print(
        f"regret, problems {seeds.start} to {seeds.stop - 1}, noise {given.noise:g}, 4 slots; {given.whole} full "
        f"trainings in all, or (+) {given.whole} and at most {SHARE:.0%} of that to confirm"
    )
    told = {name: np.array(values) for name, values in rows.items()}
    for name, regrets in told.items():
        line = f"  {name:18} {interval(lambda drawn, one=regrets: float(one[drawn].mean()), len(regrets))}"
        if not name.startswith("tried"):
            mark = " +" if name.endswith("+") else ""
            best = told["tried, before top" if name == "top" else f"tried{mark}"]
            ratio = interval(lambda drawn, one=regrets, b=best: float(one[drawn].mean() / b[drawn].mean()), len(best))
            less = interval(lambda drawn, one=regrets: float((told["top"] - one)[drawn].mean()), len(best))
            line += f"; over the best tried {ratio}; top less this {less}"
        print(line)


if __name__ == "__main__":
    main()
