"""Do rungs keep the right trials under a schedule that ends low, and do averaged weights help them to?

The same trials, with the same seeds, train under each schedule with nobody stopped. At each rung they are ranked by
their weights and by the average of their weights, as a search would rank them, and compared with where they end.
Prints Kendall's tau of the ranks at each rung and at the end, with the deviation of a bootstrap over trials; the regret
of going on with the best third at that rung alone; and the mean, over many searches of 27 of the trials, of what is
left after all rungs, against the best of the 27.

`phantom`: small networks on synthetic patients; rungs rank by average precision on the validation patients, and the
end is measured on the test patients. `computed`: losses of a noisy quadratic (efficiency/noisy_quadratic.py), exact.

    python benchmarks/rung_ranks.py [phantom] [--trials 30] [--seed 0] [--patients 240] [--processes 2]
    python benchmarks/rung_ranks.py computed [--trials 64] [--seed 0]

To decide by: `phantom --trials 64 --patients 640` for several seeds, about 20 minutes each on two idle cores. Of 30
trials all searches of 27 are nearly one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from scipy.stats import kendalltau

from benchmarks.efficiency.noisy_quadratic import IMAGES, losses
from benchmarks.searchers.task import BUDGET, FIXED, METRIC, PARAMETERS, make_phantom
from ich_ray.errors import TrialFailure
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.search.space.space import RandomSuggest
from ich_ray.search.space.yaml_file import parse_space

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

# (of each trial, of each rung and then the end: high is good, of the weights and of their average)
Scores = list[tuple[list[float], list[float]]]

EMA, WARMUP = 0.999, 0.05
SCHEDULES: dict[str, dict[str, Any]] = {
    "inverse_time": {},
    "cosine": {"schedule": "cosine", "warmup": WARMUP},
    "flat_cosine": {"schedule": "flat_cosine", "warmup": WARMUP},
}
SHARES = (27, 9, 3)  # rungs are at 1/27, 1/9 and 1/3 of the budget
SEARCHED, SEARCHES, RESAMPLED = 27, 2000, 300


def rungs_of(images: int) -> list[int]:
    return [images // share for share in SHARES]


def draws(trials: int, seed: int, ranges: dict[str, Any]) -> list[dict[str, Any]]:
    budget = {key: BUDGET[key] for key in ("images", "report_every", "first_rung")}
    space = parse_space({"name": "ranks", "budget": budget, "parameters": ranges}, "ranks.yaml")
    return [space.draw(RandomSuggest(10_000 * seed + number)).parameters for number in range(trials)]


def trained(dataset: Path, schedule: str, task: tuple[dict[str, Any], int]) -> tuple[list[float], list[float]]:
    """Scores of one network and its average; one that diverges is worth nothing from there on."""
    import torch

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.model.networks import build_network
    from ich_ray.statistics.metrics import average_precision
    from ich_ray.training.inference import predict_logits
    from ich_ray.training.loop import TrainingBudget, train

    torch.set_num_threads(1)
    (drawn, seed), data = task, PreparedDataset.open(dataset)
    parameters = Hyperparameters(**FIXED, **drawn, **SCHEDULES[schedule], ema=EMA)
    images, rungs = BUDGET["images"], rungs_of(BUDGET["images"])
    own, averaged = [], []

    def score(weights: dict[str, Any], role: Any) -> float:
        network = build_network(parameters, data.image_shape)
        network.load_state_dict(weights)
        return average_precision(role.labels, predict_logits(network, role, parameters))

    try:
        for progress in train(
            parameters, data.role("train"), data.role("validation"), budget=TrainingBudget(images, rungs[0]), seed=seed
        ):
            if progress.images_seen in rungs:
                averaged.append(progress.metrics[METRIC])
                own.append(score(progress.state().part("weights"), data.role("validation")))
            elif progress.images_seen == images:
                averaged.append(score(progress.state().part("average"), data.role("test")))
                own.append(score(progress.state().part("weights"), data.role("test")))
    except TrialFailure:
        rest = [0.0] * (len(rungs) + 1 - len(own))
        return own + rest, averaged + rest
    return own, averaged


def computed(schedule: str, task: tuple[dict[str, Any], int]) -> tuple[list[float], list[float]]:
    drawn, seed = task
    parameters = Hyperparameters(**drawn, **SCHEDULES[schedule], ema=EMA)
    own, averaged = losses(parameters, seed, [*rungs_of(IMAGES), IMAGES])
    return [-value for value in own], [-value for value in averaged]


def tau(scores: NDArray[np.float64], rung: int) -> str:
    random = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = kendalltau(scores[:, rung], scores[:, -1]).statistic
        again = [scores[random.integers(0, len(scores), len(scores))] for _ in range(RESAMPLED)]
        apart = np.nanstd([kendalltau(one[:, rung], one[:, -1]).statistic for one in again])
    return f"{value:5.2f} ± {apart:.2f}"


def best_third(scores: NDArray[np.float64], rung: int) -> NDArray[np.float64]:
    kept = np.argsort(-scores[:, rung], kind="stable")[: max(1, len(scores) // 3)]
    return scores[kept]


def survivor(scores: NDArray[np.float64]) -> float:
    """The end of the best of those that all rungs, one after another, let go on."""
    for rung in range(len(SHARES)):
        scores = best_third(scores, rung)
    return float(scores[:, -1].max())


def searched(scores: NDArray[np.float64]) -> tuple[float, float, float]:
    """Over many searches of some of these trials: the mean end of the survivor, its regret, the regret's deviation."""
    random = np.random.default_rng(0)
    some = [scores[random.permutation(len(scores))[:SEARCHED]] for _ in range(SEARCHES)]
    ends = np.array([survivor(one) for one in some])
    regrets = np.array([one[:, -1].max() for one in some]) - ends
    return float(ends.mean()), float(regrets.mean()), float(regrets.std())


def print_ranks(title: str, found: dict[str, Scores]) -> None:
    print(title)
    print(f"{'schedule':13} {'ranked by':9} {'tau at 1/27':>12} {'at 1/9':>12} {'at 1/3':>12}   "
          f"{'regret of a third at 1/27, 1/9, 1/3':36} {'left of 27':>10} {'regret':>16}")  # fmt: skip
    for schedule, scores in found.items():
        for column, kind in enumerate(("weights", "average")):
            table = np.array([one[column] for one in scores])
            taus = " ".join(f"{tau(table, rung):>12}" for rung in range(len(SHARES)))
            thirds = ", ".join(
                f"{table[:, -1].max() - best_third(table, rung)[:, -1].max():.4f}" for rung in range(len(SHARES))
            )
            end, regret, apart = searched(table)
            print(f"{schedule:13} {kind:9} {taus}   {thirds:36} {end:10.4f} {regret:8.4f} ± {apart:.4f}")


def run(
    work: Callable[..., tuple[list[float], list[float]]],
    tasks: list[tuple[dict[str, Any], int]],
    mapped: Callable[..., Iterable[Any]],
) -> dict[str, Scores]:
    return {schedule: list(mapped(partial(work, schedule), tasks)) for schedule in SCHEDULES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", nargs="?", default="phantom", choices=("phantom", "computed"))
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patients", type=int, default=240)
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    ranges = dict(PARAMETERS)
    if asked.problem == "computed":
        ranges = {"batch_size": {"choice": [32, 64, 128]}, "learning_rate": {"loguniform": [0.01, 1.8]}}
        ranges["decay"] = PARAMETERS["decay"]
    drawn = draws(asked.trials, asked.seed, ranges)
    tasks = [(parameters, 10_000 * asked.seed + number) for number, parameters in enumerate(drawn)]
    started, pool = time.monotonic(), partial(ProcessPoolExecutor, asked.processes, mp_context=get_context("spawn"))
    title = f"{asked.problem}, {asked.trials} trials, seed {asked.seed}, warm-up {WARMUP}, ema {EMA}"
    with tempfile.TemporaryDirectory() as temporary:
        if asked.problem == "phantom":
            dataset = make_phantom(Path(temporary), asked.patients)
            with pool() as processes:
                found = run(partial(trained, dataset), tasks, processes.map)
            title += f", {asked.patients} patients, {BUDGET['images']:,} images; average precision"
        else:
            with pool() as processes:
                found = run(computed, tasks, processes.map)
            title += f", {IMAGES:,} images; loss below zero"
    print_ranks(title, found)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
