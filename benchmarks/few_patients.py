"""With few patients, does a search choose better by folds than by its validation patients?

Networks train once on phantoms of few patients: each draw on every fold of the train and validation patients, and with
several seeds on the train patients alone. All are measured on hundreds of other patients, whom no search sees: that is
what a draw is worth. Then searches are replayed from these curves with the rules of the package (AshaRungs, FoldRace),
one trial after the other in random order, until as many images have been shown as the search by folds takes for a third
of the draws. Prints

- how the scores of whole trials rank the draws (Kendall's tau) and what their best one loses to the best draw, for each
  way of pooling folds, for one training and for the mean of several;
- the regret of what such searches choose, how many draws they tried, and its ratio to that of one validation role; then
  the same of searches that try all draws, whatever images that takes. `confirmed` searches with half of the images and
  trains the best, at most three, on all folds, as `ich-ray confirm` does; `race alone` has no rungs within the first
  fold; `abreast` is not what the package does: all folds of a trial come to a rung before any goes on, and rungs
  compare all of them. With 95 % intervals that draw phantoms again (of one phantom none, as its searches share their
  networks).

    python benchmarks/few_patients.py [--patients 60] [--phantoms 2] [--draws 24] [--table curves.npz]

A table that is there is read instead of trained. To decide by: `--phantoms 8 --draws 48`, for 60, 120 and 400 patients:
some two hours each on two idle cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from scipy.stats import kendalltau

from benchmarks.searchers.task import FIXED, PARAMETERS, SIZE
from ich_ray.search.space.space import Budget, RandomSuggest
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.search.stopping.asha import AshaRungs
from ich_ray.search.stopping.fold_race import FoldRace
from ich_ray.statistics.metrics import average_precision
from ich_ray.statistics.pooling import FoldPart, Pooling, chance_of_better, pooled_metrics
from ich_ray.trial_records import FoldNote, LogitsReference, Objective

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from ich_ray.data.dataset import PreparedDataset, SliceSet

FOLDS, SEEDS = 5, 3
TRUTH_PATIENTS = 120
MEASURED = 3  # times that a network is measured on the patients whom no search sees
SEARCHES = 100
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
Found: TypeAlias = "tuple[int | None, int, int]"  # the draw chosen, draws tried, images
Key: TypeAlias = "tuple[tuple[int, int, int], ...]"


@dataclass(frozen=True)
class Draw:
    """What the networks of one draw gave.

    Attributes:
        folds: of each fold, at each report, what its network said of it.
        seeds: average precision on the validation patients, `[seeds, reports]`.
        worth: average precision on patients whom no search sees.
    """

    folds: list[list[FoldPart]]
    seeds: NDArray[np.float64]
    worth: float

    def pooled(self, folds: int, report: int, how: Pooling) -> float:
        """Average precision of the first folds together."""
        parts = [self.folds[fold][report] for fold in range(folds)]
        return pooled_metrics(parts, _measured, how)["average_precision"]

    def score(self, how: Pooling) -> float:
        """Of a whole trial: its best report with all folds."""
        return max(self.pooled(len(self.folds), report, how) for report in range(len(self.folds[0])))


def _measured(targets: NDArray[np.float32], logits: NDArray[np.float32]) -> dict[str, float]:
    return {"average_precision": average_precision(targets[:, -1], logits[:, -1])}


def prepared(folder: Path, patients: int, seed: int) -> Path:
    from ich_ray.ct.phantom import write_phantom
    from ich_ray.data.prepare.run import prepare

    os.environ["ICH_RAY_KEY_FILE"] = str(folder / "key")
    made = write_phantom(folder / "dicom", patients, seed=seed, size=256)
    prepare(made.images, made.labels, folder / "data", size=SIZE, seed=seed)
    return folder / "data"


def trained(task: tuple[Path, Path, dict[str, Any], int, Budget]) -> dict[str, NDArray[Any]]:
    """All networks of one draw: arrays by name."""
    import torch

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.data.folds import SearchFolds
    from ich_ray.model.hyperparameters import Hyperparameters

    torch.set_num_threads(1)
    where, truth_at, drawn, seed, budget = task
    data, others = PreparedDataset.open(where), _everybody(PreparedDataset.open(truth_at))
    parameters, folds, found, truths = Hyperparameters(**FIXED, **drawn), SearchFolds(data, FOLDS, 1, 0), {}, []
    for fold in range(FOLDS):
        logits, truth = network(parameters, folds.view(fold), others, budget, seed * 100 + fold)
        found[f"fold{fold}"] = logits
        truths.append(truth)
    values = []
    for extra in range(SEEDS):
        logits, truth = network(parameters, data, others, budget, seed * 100 + FOLDS + extra)
        labels = data.role("validation").labels
        values.append([average_precision(labels, at) for at in logits])
        truths.append(truth)
    # Of the networks trained on the train patients alone and of those of folds: what a draw is worth does not depend on
    # who asks. At the images that are best for it, as a retraining finds them.
    return found | {"seeds": np.array(values), "worth": np.max(np.mean(truths, 0))[None]}


def network(
    parameters: Any, data: PreparedDataset, others: SliceSet, budget: Budget, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Logits of its validation slices at each report, and what it is worth at some of them; nothing if it diverges."""
    from ich_ray.errors import TrialFailure
    from ich_ray.model.networks import build_network
    from ich_ray.training.inference import predict_logits
    from ich_ray.training.loop import TrainingBudget, train

    count = budget.images // budget.report_every
    logits = np.zeros((count, len(data.role("validation"))), np.float32)
    truth, every = np.zeros(MEASURED), count // MEASURED
    steps = train(
        parameters,
        data.role("train"),
        data.role("validation"),
        budget=TrainingBudget(budget.images, budget.report_every),
        seed=seed,
    )
    try:
        for report, progress in enumerate(steps):
            assert progress.logits is not None
            logits[report] = progress.logits[:, -1]
            if (report + 1) % every == 0:
                judged = build_network(parameters, data.image_shape)
                judged.load_state_dict(progress.state().part("weights"))
                truth[report // every] = average_precision(others.labels, predict_logits(judged, others, parameters))
    except TrialFailure:
        pass
    return logits, truth


def _everybody(data: PreparedDataset) -> SliceSet:
    from ich_ray.data.dataset import SliceSet

    return SliceSet(data, np.arange(len(data)))


def train_all(
    patients: int, phantoms: Sequence[int], draws: int, budget: Budget, processes: int
) -> dict[str, NDArray[Any]]:
    """The whole table: `PHANTOM.DRAW.NAME`, and whose slices the folds of a phantom are."""
    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.data.folds import SearchFolds

    source = {"images": budget.images, "report_every": budget.report_every, "first_rung": budget.first_rung}
    space = parse_space({"name": "few", "budget": source, "parameters": PARAMETERS}, "few.yaml")
    table: dict[str, NDArray[Any]] = {}
    with tempfile.TemporaryDirectory() as temporary, _pool(processes) as pool:
        truth = prepared(Path(temporary) / "truth", TRUTH_PATIENTS, 10_000)
        for phantom in phantoms:
            data = prepared(Path(temporary) / str(phantom), patients, phantom)
            folds = SearchFolds(PreparedDataset.open(data), FOLDS, 1, 0)
            for fold in range(FOLDS):
                held_out = folds.held_out(fold)
                table[f"{phantom}.fold{fold}.labels"] = held_out.labels
                table[f"{phantom}.fold{fold}.patients"] = held_out.patients.astype(str)
            drawn = [space.draw(RandomSuggest(1000 * phantom + number)).parameters for number in range(draws)]
            tasks = [(data, truth, one, 1000 * phantom + number, budget) for number, one in enumerate(drawn)]
            for number, found in enumerate(pool.map(trained, tasks)):
                table |= {f"{phantom}.{number}.{name}": values for name, values in found.items()}
    return table


def _pool(processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))


def read_draws(table: dict[str, NDArray[Any]], phantom: int) -> list[Draw]:
    """The draws of one phantom."""
    found = []
    count = sum(key.startswith(f"{phantom}.") and key.endswith(".worth") for key in table)
    for number in range(count):
        folds = []
        for fold in range(FOLDS):
            labels, patients = (table[f"{phantom}.fold{fold}.{name}"] for name in ("labels", "patients"))
            logits = table[f"{phantom}.{number}.fold{fold}"]
            folds.append([FoldPart(labels[:, None], at[:, None], patients) for at in logits])
        own = f"{phantom}.{number}."
        found.append(Draw(folds, table[f"{own}seeds"], float(table[f"{own}worth"][0])))
    return found


class Replay:
    """Searches of one phantom, from its curves."""

    def __init__(self, draws: Sequence[Draw], budget: Budget) -> None:
        self.draws, self.budget = draws, budget
        self.best = max(draw.worth for draw in draws)
        self._pooled = lru_cache(maxsize=None)(lambda number, *rest: draws[number].pooled(*rest))
        self._chance = lru_cache(maxsize=None)(self._tested)

    def regret(self, chosen: int | None) -> float:
        """Of a search that chose nothing: that of a draw at random."""
        worth = np.mean([draw.worth for draw in self.draws]) if chosen is None else self.draws[chosen].worth
        return float(self.best - worth)

    def by_role(self, order: Sequence[int], images: float, seeds: int = 1) -> Found:
        """The draw chosen by the mean of the best reports of seeds, the draws that were tried, images.

        The first seed is stopped early as ever; the others train to their end.
        """

        def values(number: int) -> Iterator[tuple[int, float]]:
            for seed in range(seeds):
                for report, value in enumerate(self.draws[number].seeds[seed]):
                    yield seed * self.budget.images + (report + 1) * self.budget.report_every, float(value)

        def score(number: int) -> float:
            return float(np.mean(self.draws[number].seeds[:seeds].max(1)))

        return self._searched(order, images, seeds, values, score, lambda *_: None)

    def confirmed(self, order: Sequence[int], images: float, top: int = 3) -> Found:
        """By one validation role, then the best of some on all folds; they cost what they cost."""
        whole = self.budget.images * FOLDS
        chosen, tried, spent = self.by_role(order, images / 2)
        best = sorted(self.completed, key=lambda number: -float(self.draws[number].seeds[0].max()))
        best = best[: int(min(top, (images - spent) // whole))]
        if len(best) < 2:
            return chosen, tried, spent
        return max(best, key=lambda number: self.draws[number].score("mean")), tried, spent + len(best) * whole

    def abreast(self, order: Sequence[int], images: float) -> Found:
        """By folds that are trained side by side."""

        def values(number: int) -> Iterator[tuple[int, float]]:
            for report in range(len(self.draws[number].folds[0])):
                yield (report + 1) * self.budget.report_every, self._pooled(number, FOLDS, report, "pooled")

        def score(number: int) -> float:
            return max(value for _, value in values(number))

        chosen, tried, spent = self._searched(order, images / FOLDS, 1, values, score, lambda *_: None)
        return chosen, tried, spent * FOLDS

    def by_folds(self, order: Sequence[int], images: float, how: Pooling, rungs: bool = True) -> Found:
        """The same by folds; without `rungs` nobody is stopped within the first one."""

        def chance(one: Sequence[LogitsReference], other: Sequence[LogitsReference]) -> float | None:
            return self._chance(_key(one), _key(other), how)

        race = FoldRace(self.budget, Objective(folds=FOLDS), chance)

        def values(number: int) -> Iterator[tuple[int, float]]:
            for fold in range(FOLDS):
                for report in range(len(self.draws[number].folds[fold])):
                    seen = fold * self.budget.images + (report + 1) * self.budget.report_every
                    yield seen, self._pooled(number, fold + 1, report, how)

        def raced(number: int, seen: int, value: float) -> str | None:
            fold, within = (seen - 1) // self.budget.images, (seen - 1) % self.budget.images + 1
            file = f"{number}/{fold}/{within // self.budget.report_every - 1}"
            logits = LogitsReference(file=file, sha256="0" * 64)
            whole = within == self.budget.images
            note = FoldNote(number=fold, images_seen=within, whole=whole, value=None, logits=logits)
            return race.offer(number, seen, value, note)

        def score(number: int) -> float:
            reports = range(len(self.draws[number].folds[0]))
            return max(self._pooled(number, FOLDS, report, how) for report in reports)

        return self._searched(order, images, FOLDS, values, score, raced, rungs)

    def _searched(
        self,
        order: Sequence[int],
        images: float,
        networks: int,
        values: Callable[[int], Iterator[tuple[int, float]]],
        score: Callable[[int], float],
        raced: Callable[[int, int, float], str | None],
        stops: bool = True,
    ) -> Found:
        rungs, spent, chosen, tried = AshaRungs(self.budget, Objective()), 0, None, 0
        self.completed: list[int] = []
        for number in order:
            tried, stopped = tried + 1, False
            for seen, value in values(number):
                spent += self.budget.report_every
                first = seen <= self.budget.images
                reason = rungs.offer(number, seen, value) if first and stops else None
                reason = raced(number, seen, value) or (reason if seen < self.budget.images * networks else None)
                if spent >= images or reason:
                    stopped = seen < self.budget.images * networks
                    break
            if not stopped:
                self.completed.append(number)
                chosen = number if chosen is None or score(number) > score(chosen) else chosen
            if spent >= images:
                break
        return chosen, tried, spent

    def _tested(self, one: Key, other: Key, how: Pooling) -> float | None:
        ours, theirs = ([self.draws[a].folds[fold][report] for a, fold, report in key] for key in (one, other))
        return chance_of_better(ours, theirs, "average_precision", how=how)


def _key(references: Sequence[LogitsReference]) -> Key:
    """Draw, fold and report of each."""
    named = (reference.file.split("/") for reference in references)
    return tuple((int(number), int(fold), int(report)) for number, fold, report in named)


def ranked(draws: Sequence[Draw]) -> dict[str, tuple[float, float]]:
    """Of each way to score whole trials: Kendall's tau with what they are worth, and the regret of the best one."""
    worth = np.array([draw.worth for draw in draws])
    ways: dict[str, Callable[[Draw], float]] = {
        "one validation role": lambda draw: float(draw.seeds[0].max()),
        f"mean of {SEEDS} seeds": lambda draw: float(draw.seeds.max(1).mean()),
        "one fold": lambda draw: max(draw.pooled(1, report, "pooled") for report in range(len(draw.folds[0]))),
    }
    for how in POOLINGS:
        ways[f"{FOLDS} folds, {how}"] = lambda draw, how=how: draw.score(how)  # type: ignore[misc]
    found = {}
    for name, way in ways.items():
        scores = np.array([way(draw) for draw in draws])
        found[name] = (float(kendalltau(scores, worth).statistic), float(worth.max() - worth[scores.argmax()]))
    return found


def searched(replay: Replay, seed: int, equal: bool) -> dict[str, tuple[float, float, float]]:
    """Means over searches of one phantom: regret, draws tried, images, by the way of choosing.

    With equal images, as many as the dearest way takes for a third of the draws; or of all draws.
    """
    random = np.random.default_rng(seed)
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(SEARCHES):
        order = random.permutation(len(replay.draws)).tolist()
        images = float(replay.by_folds(order[: len(order) // 3], np.inf, "pooled")[2]) if equal else np.inf
        ways = {
            "one validation role": replay.by_role(order, images),
            f"mean of {SEEDS} seeds": replay.by_role(order, images, SEEDS),
            "one role, 3 confirmed": replay.confirmed(order, images),
        }
        ways |= {f"{FOLDS} folds, {how}": replay.by_folds(order, images, how) for how in POOLINGS}
        ways |= {f"{FOLDS} folds, race alone": replay.by_folds(order, images, "pooled", rungs=False)}
        ways[f"{FOLDS} folds abreast"] = replay.abreast(order, images)
        for name, (chosen, tried, spent) in ways.items():
            rows.setdefault(name, []).append((replay.regret(chosen), tried, spent))
    return {name: tuple(np.mean(values, 0).tolist()) for name, values in rows.items()}  # type: ignore[misc]


def interval(values: NDArray[np.float64], of: Callable[[NDArray[np.float64]], float]) -> str:
    """The figure of all phantoms and its 95 % interval, phantoms drawn again."""
    whole = f"{of(values):.3f}"
    if len(values) < 2:
        return f"{whole} (one phantom: no interval)"
    random = np.random.default_rng(0)
    again = [of(values[random.integers(0, len(values), len(values))]) for _ in range(2000)]
    low, high = np.quantile(again, [0.025, 0.975])
    return f"{whole} ({low:.3f} to {high:.3f})"


def print_all(table: dict[str, NDArray[Any]], budget: Budget) -> None:
    phantoms = sorted({int(key.split(".")[0]) for key in table})
    draws = [read_draws(table, phantom) for phantom in phantoms]
    print(f"{'whole trials':24} {'tau':24} regret of the best")
    ranks = [ranked(one) for one in draws]
    for name in ranks[0]:
        taus, regrets = (np.array([found[name][column] for found in ranks]) for column in (0, 1))
        print(f"{name:24} {interval(taus, np.mean):24} {interval(regrets, np.mean)}")
    replays = [Replay(one, budget) for one in draws]
    for equal, title in ((True, "at equal images"), (False, "of all draws")):
        print_searches(title, [searched(replay, number, equal) for number, replay in enumerate(replays)])


def print_searches(title: str, found: Sequence[dict[str, tuple[float, float, float]]]) -> None:
    """A line for each way of choosing; `found` has an entry for each phantom."""
    print(f"\n{title:24} {'regret':24} {'ratio to one role':24} draws tried, images")
    role = np.array([one["one validation role"][0] for one in found])
    for name in found[0]:
        regrets, tried, images = (np.array([one[name][column] for one in found]) for column in range(3))
        pairs = np.stack([regrets, role], 1)
        ratio = interval(pairs, lambda pair: float(pair[:, 0].sum() / max(pair[:, 1].sum(), 1e-12)))
        print(f"{name:24} {interval(regrets, np.mean):24} {ratio:24} {tried.mean():.1f}, {images.mean():,.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=60)
    parser.add_argument("--phantoms", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="seed of the first phantom; others follow")
    parser.add_argument("--draws", type=int, default=24)
    parser.add_argument("--images", type=int, default=5400)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--table", type=Path)
    asked = parser.parse_args()
    every = asked.images // 9
    budget = Budget(images=9 * every, report_every=every, first_rung=every)
    started = time.monotonic()
    if asked.table and asked.table.exists():
        with np.load(asked.table, allow_pickle=False) as stored:
            table = dict(stored)
    else:
        phantoms = range(asked.first, asked.first + asked.phantoms)
        table = train_all(asked.patients, phantoms, asked.draws, budget, asked.processes)
        if asked.table:
            np.savez_compressed(asked.table, **table)
    print(
        f"{asked.patients} patients, {asked.draws} draws, {budget.images:,} images a network, {SEARCHES} searches each"
    )
    print_all(table, budget)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
