"""How many training images a search needs, and how good its choice is: ours, random search and stock Ray Tune.

`computed`: learning curves from a formula, with noise; average precision over images_seen, whose optimum is known and
lies elsewhere for each seed. Reached: a report whose value without noise is 95 % of the best possible one. Regret: the
best possible value less that of the chosen parameters, without noise; all methods may show the same number of images,
and the ones that ours needs to confirm (top 3, three seeds) are among them.

`phantom`: small networks that really train on synthetic patients, in the space and with the budget of the computed
problem; each seed is another search. Reached: 95 % of the best AP on the validation patients that any search reported.
Chosen: what each search hands over after the same images, trained again with new seeds, on the test patients. With
`--best-known AP`, of an earlier run, searches end where they reach 95 % of it, so that they can be given many more
images.

Everything else is the real thing: our sampler, rungs and ledger (kept in memory), and Ray's own OptunaSearch and
AsyncHyperBandScheduler, driven report by report on the same simulated slots, with the same space, budget and rungs.
A ratio above 1 says that the other method needs more images. Images are counted, so other work on the machine changes
nothing.

    python benchmarks/search_efficiency.py [computed] [--slots 4] [--seeds 60] [--searches 1] [--noise 0.02]
                                           [--only images]
    python benchmarks/search_efficiency.py phantom [--slots 4] [--seeds 6] [--whole 16] [--best-known 0.955]

`contest`: floors and published methods beside these (efficiency/rivals.py), on computed problems of three kinds
(efficiency/computed.py) or on the committed curves of real networks (benchmarks/curves.py). Searches are kept in a
file, one a line, and those that are there are not run again. "Not excluded" is the largest ratio ours / theirs within
the interval of theirs / ours; p is of a paired test that ours needs more, over problems, after Holm.

    python benchmarks/search_efficiency.py contest FILE [--kind plain] [--seeds 40] [--searches 1] [--slots 2 4 16 64]
                                                        [--contestants ours stock random "one pass"] [--whole 60]
                                                        [--by images]
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from benchmarks.efficiency.computed import IMAGES, Landscape
from benchmarks.efficiency.contest import kept, keys, print_contest, search_all
from benchmarks.efficiency.course import course
from benchmarks.efficiency.methods import METHODS, Ours, Stock
from benchmarks.efficiency.phantom import PATIENTS, Phantom
from benchmarks.efficiency.rivals import CONTESTANTS
from benchmarks.searchers.task import make_phantom, tested
from ich_ray.search import ledger as ledgers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from benchmarks.efficiency.course import Course, Method, Parameters

CONFIRMED, REPEATS = 3, 3


def images_to_reach(method: Method, on: Landscape, seed: int, at_most: int) -> int:
    for so_far, training in course(method, on, seed):
        if training.value >= 0.95 * on.best or so_far.images >= at_most:
            return so_far.images
    raise AssertionError


def snapshots(method: Method, on: Landscape, seed: int, images: list[int]) -> Iterator[Course]:
    """A search when it has shown so many images, then so many."""
    steps = course(method, on, seed)
    for shown in images:
        yield next(so_far for so_far, _ in steps if so_far.images >= shown)


def confirmed(found: Course, on: Landscape, seed: int) -> Parameters:
    """The best mean of the top trials over new seeds, as refit/confirm.py chooses."""
    top = sorted(found.complete, key=lambda training: -max(training.values))[:CONFIRMED]

    def mean(position: int) -> float:
        chosen = top[position].parameters
        again = [on.begin(chosen, (seed, 10**6, position, part)) for part in range(REPEATS)]
        reports = range(on.space.budget.images // on.space.budget.report_every)
        return statistics.fmean(max(training.report() for _ in reports) for training in again)

    return top[max(range(len(top)), key=mean)].parameters


def quartiles(values: list[float]) -> str:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.2f} x [{low:.2f}, {high:.2f}]"


def mean_and_error(values: list[float]) -> str:
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values) / math.sqrt(len(values)):.4f}"


def print_needed(needed: Mapping[str, Sequence[float]], at_most: int, whole: int) -> None:
    """Ratios of images seed by seed; a search that did not reach it counts with all that it showed."""
    for name in ("random", "stock"):
        ratios = [other / own for other, own in zip(needed[name], needed["ours"], strict=True)]
        total, worse = sum(needed[name]) / sum(needed["ours"]), sum(ratio < 1 for ratio in ratios)
        print(
            f"  {name} / ours: {quartiles(ratios)}, of the sums {total:.2f} x; ours needed more in {worse} of "
            f"{len(ratios)}"
        )
    for name, images in needed.items():
        missed = sum(one >= at_most for one in images)
        budgets = np.percentile(images, [25, 50, 75]) / whole
        note = f", {missed} never" if missed else ""
        print(f"  {name:6} median {budgets[1]:.1f} [{budgets[0]:.1f}, {budgets[2]:.1f}] full trainings{note}")


def print_images(seeds: int, searches: int, noise: float, slots: int, folder: Callable[[], Path]) -> None:
    """Each problem is searched so often, each time with other draws and other noise; its images are their mean."""
    at_most = 400 * IMAGES  # counted as that many where a search has not reached it by then
    needed: dict[str, list[float]] = {name: [] for name in METHODS}
    for problem in range(seeds):
        on = Landscape(problem, noise)
        own = [problem + 10**6 * search for search in range(searches)]
        for name, method in METHODS.items():
            images = [images_to_reach(method(on.space, seed, folder(), slots), on, seed, at_most) for seed in own]
            needed[name].append(statistics.fmean(images))
    each = f", the mean of {searches} searches of each" if searches > 1 else ""
    print(f"images to 95 % of the best AP, {seeds} problems{each}, noise {noise:g}, {slots} slots; median [quartiles]")
    print_needed(needed, at_most, IMAGES)


def print_regret(seeds: int, noise: float, slots: int, folder: Callable[[], Path]) -> None:
    images = 40 * IMAGES
    spent = CONFIRMED * REPEATS * IMAGES
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        on = Landscape(seed, noise)
        searches = snapshots(Ours(on.space, seed, folder(), slots), on, seed, [images - spent, images])
        choices = {"ours, confirmed": confirmed(next(searches), on, seed)}
        ours = next(searches)
        choices["ours, not confirmed"] = max(ours.complete, key=lambda training: max(training.values)).parameters
        (stock,) = snapshots(Stock(on.space, seed, folder(), slots), on, seed, [images])
        # What get_best_result gives: the best last report of any trial, stopped or not.
        choices["stock"] = max(stock.trainings, key=lambda training: training.values[-1]).parameters
        for name, tried in (("best tried by ours", ours), ("best tried by stock", stock)):
            choices[name] = min((training.parameters for training in tried.trainings), key=on.regret)
        for name, parameters in choices.items():
            found.setdefault(name, []).append(on.regret(parameters))
    shown = f"{images // IMAGES} full trainings"
    print(f"regret after {shown}, {seeds} seeds, noise {noise:g}, {slots} slots; mean ± its error")
    for name, regrets in found.items():
        print(f"  {name:20} {mean_and_error(regrets)}")
    pairs = (
        ("stock", "ours, confirmed"),
        ("stock", "ours, not confirmed"),
        ("best tried by stock", "best tried by ours"),
    )
    for name, own in pairs:
        gain = [other - mine for other, mine in zip(found[name], found[own], strict=True)]
        print(f"  {name} less {own}: {mean_and_error(gain)} per seed; above 0 is for ours")


@dataclass(frozen=True)
class Searched:
    """One search on the phantom: images shown and the best AP so far, report by report, and what it chose."""

    images: list[int]
    best: list[float]
    trials: int
    chosen_ap: float

    def needed(self, value: float, at_most: int) -> int:
        return next((n for n, best in zip(self.images, self.best, strict=True) if best >= value), at_most)


def searched(name: str, dataset: Path, seed: int, slots: int, at_most: int, enough: float) -> Searched:
    on = Phantom(dataset)
    with tempfile.TemporaryDirectory() as temporary, mock.patch.object(ledgers, "write_bytes", _unwritten):
        steps = course(METHODS[name](on.space, seed, Path(temporary) / "s", slots), on, seed)
        images, best = [], []
        for so_far, training in steps:
            images.append(so_far.images)
            best.append(max(training.value, best[-1] if best else 0.0))
            if so_far.images >= at_most or best[-1] >= enough:
                break
    if math.isfinite(enough):
        return Searched(images, best, len(so_far.trainings), math.nan)
    if name == "stock":  # what get_best_result gives
        chosen = max(so_far.trainings, key=lambda training: training.value)
    else:
        chosen = max(so_far.complete or so_far.trainings, key=lambda training: max(training.values, default=0.0))
    again = [tested(dataset, chosen.parameters, IMAGES, 10**8 + number) for number in range(REPEATS)]
    return Searched(images, best, len(so_far.trainings), statistics.fmean(again))


def print_phantom(seeds: int, slots: int, whole: int, best_known: float | None) -> None:
    at_most, spawn = whole * IMAGES, get_context("spawn")
    enough = math.inf if best_known is None else 0.95 * best_known
    with tempfile.TemporaryDirectory() as temporary:
        dataset = make_phantom(Path(temporary), PATIENTS)
        with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=spawn) as pool:
            asked = {
                (name, seed): pool.submit(searched, name, dataset, seed, slots, at_most, enough)
                for seed in range(seeds)
                for name in METHODS
            }
            found: dict[str, list[Searched]] = {name: [] for name in METHODS}
            for (name, seed), one in asked.items():
                found[name].append(one.result())
                told = found[name][-1]
                shown = told.images[-1] / IMAGES
                print(f"{name}, seed {seed}: AP {told.best[-1]:.3f} after {shown:.1f} full trainings", file=sys.stderr)
    best = best_known or max(one.best[-1] for searches in found.values() for one in searches)
    print(f"phantom, {seeds} seeds, {slots} slots, at most {whole} full trainings: 95 % of the best known {best:.3f}")
    needed = {name: [one.needed(0.95 * best, at_most) for one in searches] for name, searches in found.items()}
    print_needed(needed, at_most, IMAGES)
    for name, searches in found.items() if best_known is None else ():
        trials = statistics.median(one.trials for one in searches)
        chosen = mean_and_error([one.chosen_ap for one in searches])
        print(f"  {name:6} {trials:.0f} trials; its choice, trained again, on the test patients: AP {chosen}")


def _unwritten(path: Path, content: bytes) -> None:
    """A ledger that stays in memory; a Mock would remember every call."""


def main_contest(given: Sequence[str]) -> None:
    arguments = argparse.ArgumentParser(prog="search_efficiency.py contest")
    arguments.add_argument("file", type=Path)
    arguments.add_argument("--kind", choices=["plain", "slow", "paced", "curves"], default="plain")
    arguments.add_argument("--seeds", type=int, default=40, help="problems")
    arguments.add_argument("--searches", type=int, default=1, help="of each problem")
    arguments.add_argument("--slots", type=int, nargs="+", default=[4])
    arguments.add_argument("--contestants", nargs="*", choices=CONTESTANTS, default=[*METHODS, "one pass"])
    arguments.add_argument("--noise", type=float, default=0.02)
    arguments.add_argument("--whole", type=float, default=60, help="whole trainings, after which a search is given up")
    arguments.add_argument("--by", choices=["images", "seconds", "cost"], default="images")
    asked = arguments.parse_args(given)
    warnings.simplefilter("ignore")
    wanted = keys(asked.kind, asked.seeds, range(asked.searches), asked.slots, asked.contestants)
    search_all(wanted, asked.noise, asked.whole, asked.file)
    print_contest([one for one in kept(asked.file) if one.key.kind == asked.kind], asked.whole, asked.by)


def main() -> None:
    if sys.argv[1:2] == ["contest"]:
        main_contest(sys.argv[2:])
        return
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("on", nargs="?", choices=["computed", "phantom"], default="computed")
    arguments.add_argument("--seeds", type=int, help="60, or 6 on the phantom")
    arguments.add_argument("--only", choices=["images", "regret"], help="one of the two comparisons")
    arguments.add_argument("--searches", type=int, default=1, help="of each computed problem, of which the mean counts")
    arguments.add_argument("--noise", type=float, default=0.02)
    arguments.add_argument("--slots", type=int, default=4, help="trials at a time")
    arguments.add_argument("--whole", type=int, default=16, help="images of so many whole trainings, on the phantom")
    arguments.add_argument("--best-known", type=float)
    given = arguments.parse_args()
    if given.seeds is not None and given.seeds < 2:
        arguments.error("--seeds: at least 2 are needed for a spread")
    warnings.simplefilter("ignore")
    if given.on == "phantom":
        print_phantom(given.seeds or 6, given.slots, given.whole, given.best_known)
        return
    with tempfile.TemporaryDirectory() as temporary, mock.patch.object(ledgers, "write_bytes", _unwritten):
        made = count()

        def folder() -> Path:
            return Path(temporary) / str(next(made))

        if given.only != "regret":
            print_images(given.seeds or 60, given.searches, given.noise, given.slots, folder)
        if given.only != "images":
            print_regret(given.seeds or 60, given.noise, given.slots, folder)


if __name__ == "__main__":
    main()
