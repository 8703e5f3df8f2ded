"""The field on searching: the same phantom patients, space, network, training code and number of images for all.

Ours, stock Ray Tune (OptunaSearch + ASHAScheduler, as its guides write it), Optuna alone (TPE + Hyperband pruner, two
processes on a journal file), Syne Tune's ASHA (a process per trial), and random search. Every search is a process that
starts with nothing loaded, has two slots of one thread, and ends when its trials together were shown so many images.
Trials take seconds here, so that what a search costs between them weighs more than it would on GPUs: idle is also told
in seconds per trial.

best confirmed AP: what the search hands over as its best, trained again with three new seeds, on the test patients; the
mean. The search's own figure is not told: it is the luckiest of many.

Then each search again, shorter, killed with all its processes (SIGKILL, as when a container is taken away) after half
of the images, and gone on with as its documentation says. Lost are trials begun before the kill whose end the search
does not know in the end; thrown away are the images of those, and images that a trial was shown twice.

    python benchmarks/field_search.py [--seeds 1] [--trials 8] [--only ours optuna_alone] [--no-kill]

Interrupted (Ctrl-C) it confirms and tells what there is by then.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.contest import Peer, absent, machine, ratios, spread, table
from benchmarks.searchers.task import BUDGET, FIXED, SIZE, Task, losses, make_phantom, notes, tested

PATIENTS = 160
SYNE = Peer("Syne Tune: ASHA", "syne_tune", "syne-tune")
METHODS = {
    "ours": "ours",
    "ray_tune": "Ray Tune: OptunaSearch + ASHAScheduler",
    "optuna_alone": "Optuna: TPE + HyperbandPruner",
    "syne": SYNE.name,
    "random_search": "random search (Ray Tune)",
}
SLOTS = 2
CONFIRMATIONS = 3


@dataclass
class Driver:
    """A search in a process of its own."""

    method: str
    task: Task

    def __post_init__(self) -> None:
        root = str(Path(__file__).parents[1])
        threads = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": root}
        self.said = Path(self.task.folder) / "said.txt"
        with self.said.open("ab") as said:
            command = [sys.executable, "-m", "benchmarks.searchers", self.method, self.task.folder]
            surroundings = {**os.environ, **threads}
            self.process = subprocess.Popen(command, stdout=said, stderr=said, env=surroundings)

    def wait(self) -> dict[str, Any]:
        """What it found; when this is interrupted nothing goes on by itself."""
        try:
            code = self.process.wait()
        except KeyboardInterrupt:
            self.kill()
            raise
        if code:
            raise RuntimeError(f"{METHODS[self.method]} failed: {self.said.read_text()[-2000:]}")
        found: dict[str, Any] = json.loads((Path(self.task.folder) / "found.json").read_text())
        return found

    def kill(self) -> None:
        """It and all that it started, at once."""
        if self.process.poll() is None:
            driver = psutil.Process(self.process.pid)
            for process in (driver, *driver.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait()


@dataclass(frozen=True)
class Outcome:
    """One search, whole."""

    wall_s: float
    images: int
    trials: int
    idle: float
    idle_s_a_trial: float
    parameters: dict[str, Any] | None


def whole(method: str, task: Task) -> Outcome:
    task.write()
    started = time.perf_counter()
    found = Driver(method, task).wait()
    wall_s = time.perf_counter() - started
    trained = notes(task.notes)
    busy_s, trials = sum(note["busy_s"] for note in trained), len({note["trial"] for note in trained})
    idle_s = task.slots * wall_s - busy_s
    images = sum(note["images"] for note in trained)
    return Outcome(wall_s, images, trials, idle_s / task.slots / wall_s, idle_s / trials, found["parameters"])


def killed(method: str, task: Task) -> tuple[int, int, int]:
    """Trials begun before the kill, how many of them are lost, and images thrown away."""
    task.write()
    driver = Driver(method, task)
    try:
        while sum(note["images"] for note in notes(task.notes)) < task.images / 2:
            if driver.process.poll() is not None:
                driver.wait()
            time.sleep(0.05)
    finally:
        driver.kill()
    before = len(notes(task.notes))
    ended = Driver(method, task).wait()["ended"]
    return losses(notes(task.notes), before, set(ended))


def confirmed(dataset: str, outcomes: dict[str, list[Outcome]]) -> dict[str, list[float]]:
    """For each search that found something the mean over new seeds, which are the same for all."""
    seeds = [10**6 + number for number in range(CONFIRMATIONS)]
    best: dict[str, list[float]] = {}
    with ProcessPoolExecutor(SLOTS, mp_context=get_context("spawn")) as pool:
        for method, runs in outcomes.items():
            chosen = [one.parameters for one in runs if one.parameters]
            asked = [
                pool.submit(tested, dataset, FIXED | one, BUDGET["images"], seed) for one in chosen for seed in seeds
            ]
            values = [training.result() for training in asked]
            best[method] = [
                statistics.fmean(values[n : n + CONFIRMATIONS]) for n in range(0, len(values), CONFIRMATIONS)
            ]
    return best


def rows(outcomes: dict[str, list[Outcome]], best: dict[str, list[float]]) -> list[list[str]]:
    ours = [one.wall_s for one in outcomes["ours"]]
    told = []
    for method, runs in outcomes.items():
        if not runs:
            continue
        wall_s = [one.wall_s for one in runs][: len(ours)]
        told.append(
            [
                METHODS[method],
                spread(wall_s, 0),
                spread(ratios(wall_s, ours[: len(wall_s)])),
                spread([one.images for one in runs], 0),
                spread([one.trials for one in runs], 0),
                spread([100 * one.idle for one in runs], 0) + " %",
                spread([one.idle_s_a_trial for one in runs]),
                spread(best[method], 3) if best[method] else "no trial was completed",
            ]
        )
    return told


HEADER = ["search", "wall-clock s", "wall-clock / ours", "images", "trials", "slots idle", "idle s a trial"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--trials", type=int, default=8, help="the images of so many whole trainings for each search")
    parser.add_argument("--only", nargs="*", choices=list(METHODS), default=list(METHODS), help="these, and ours")
    parser.add_argument("--no-kill", action="store_true")
    options = parser.parse_args()
    methods = [name for name in METHODS if name in {"ours", *options.only} and (name != "syne" or SYNE.there)]
    images = options.trials * BUDGET["images"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dataset = str(make_phantom(folder, PATIENTS))
        lengths = BUDGET["images"], BUDGET["report_every"], BUDGET["first_rung"]
        outcomes: dict[str, list[Outcome]] = {method: [] for method in methods}
        kills: dict[str, list[tuple[int, int, int]]] = {method: [] for method in methods}
        try:
            for seed in range(options.seeds):
                first = seed % len(methods)
                for method in methods[first:] + methods[:first]:
                    own = f"{folder}/{method}{seed}"
                    one = Task(dataset, own, seed, images, *lengths, SLOTS)
                    try:
                        outcomes[method].append(whole(method, one))
                        print(f"{method}, seed {seed}: {outcomes[method][-1]}", file=sys.stderr)
                        if not options.no_kill:
                            shorter = replace(one, folder=f"{one.folder}killed", images=images // 2)
                            kills[method].append(killed(method, shorter))
                            print(f"{method}, seed {seed}, killed: {kills[method][-1]}", file=sys.stderr)
                    except RuntimeError as error:  # the others can still be compared
                        print(error, file=sys.stderr)
        except KeyboardInterrupt:
            print("interrupted: this is what there is by now", file=sys.stderr)
        best = confirmed(dataset, outcomes)
    print(f"{images} images a search, {options.seeds} seed(s), {SIZE}x{SIZE}x3, {SLOTS} slots; {machine()}")
    print(table([*HEADER, "best confirmed AP"], rows(outcomes, best)))
    if not options.no_kill:
        print(f"\n{images // 2} images a search, killed after half of them")
        told = [
            [METHODS[method], *(spread(column, 0) for column in zip(*runs, strict=True))]
            for method, runs in kills.items()
            if runs
        ]
        print(table(["search", "trials begun before", "of them lost", "images thrown away"], told))
    print(*absent([SYNE]), sep="\n")


if __name__ == "__main__":
    main()
