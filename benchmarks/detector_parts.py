"""Does each part of the detector do what it is for? On synthetic patients: with it against without it.

The phantom with what the parts need to show themselves: bleedings that go on in the slices beside, bone that only these
tell from blood, subtypes of their own look, heads of various sizes and places. So it proves that a part works, not what
the part is worth on patients.

One small network at one learning rate, the base, and the same with one part. Each trains on the patients of all folds
but one, with the same seeds, and is measured on that fold. The figure is the average precision, the mean over folds and
seeds; a difference pairs trainings of one fold and seed. Intervals (95 %, percentile) draw patients again, the same for
all trainings, and the seeds of each fold, of which there are few: what seeds do is then told too low by the factor
(seeds - 1) / seeds in variance (Owen, "The pigeonhole bootstrap", 2007, on drawing both).

Controls: the base with other seeds must show nothing, and its interval says what this run can see at all; strength 0 of
augmentation must be the base bit for bit; neighbors of another patient's series at the same height, and subtypes
exchanged among positive slices, must not be worth anything.

    python benchmarks/detector_parts.py FOLDER [--patients 360] [--folds 2] [--seeds 3] [--images 24000]
                                               [--processes 1]

FOLDER keeps the dataset and a line per training: run again after a kill, it goes on; with other patients it needs
another folder.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.contest import machine, table
from ich_ray.data.dataset import PreparedDataset, SliceSet
from ich_ray.data.neighbors import MOST_NEIGHBORS
from ich_ray.data.roles import assign_folds
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.statistics.bootstrap import Interval, PatientDraws, interval
from ich_ray.statistics.metrics import POSITIVE_PATIENTS_OF_A_LABEL, Ranking
from ich_ray.vocabulary import SUBTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

SIZE, FILE_SIZE = 64, 256  # pixels of a side, as prepared and in the DICOM files
RESAMPLES = 1000
BASE = {
    "blocks": 3, "filters": 16, "dropout": 0.2, "batch_size": 32, "optimizer": "adamw", "learning_rate": 1e-3,
    "loss": "unweighted",
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """The base with a change.

    Attributes:
        changes: of its parameters.
        other_seeds: whether its seeds are others than those of the base.
        neighbors, subtypes: whether they are those that the dataset holds.
        must: what a control must show.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    other_seeds: bool = False
    neighbors: bool = True
    subtypes: bool = True
    must: str = ""

    @property
    def parameters(self) -> Hyperparameters:
        return Hyperparameters(**BASE, **self.changes)


TOGETHER = {"augment": 1.0, "neighbors": 1, "labels": "all", "schedule": "cosine", "warmup": 0.05, "ema": 0.99}
STRENGTH_0 = "augment 0, erase 0"
VARIANTS = {
    "base": Variant(),
    "base, other seeds": Variant(other_seeds=True, must="nothing"),
    STRENGTH_0: Variant({"augment": 0.0, "erase": 0.0}, must="the same bits"),
    "augment 1": Variant({"augment": 1.0}),
    "neighbors 1": Variant({"neighbors": 1}),
    "neighbors of another series": Variant({"neighbors": 1}, neighbors=False, must="no gain"),
    "labels all": Variant({"labels": "all"}),
    "labels all, subtypes exchanged": Variant({"labels": "all"}, subtypes=False, must="no gain"),
    "schedule cosine": Variant({"schedule": "cosine", "warmup": 0.05}),
    "schedule flat_cosine": Variant({"schedule": "flat_cosine", "warmup": 0.05}),
    "ema 0.99": Variant({"ema": 0.99}),
    "all of these parts": Variant(TOGETHER),
}


@dataclass(frozen=True)
class Task:
    """One training; `fold` is held out."""

    folder: str
    variant: str
    fold: int
    folds: int
    seed: int
    images: int

    @property
    def key(self) -> dict[str, Any]:
        return {"variant": self.variant, "fold": self.fold, "of": self.folds, "seed": self.seed, "images": self.images}


class OfOthers(PreparedDataset):
    """A dataset whose neighbors, or subtypes, are in fact those of other slices of the same fold."""

    def __init__(self, whole: PreparedDataset, folds: NDArray[np.int8], variant: Variant) -> None:
        super().__init__(whole.files, whole.manifest)
        self._whole, self._folds, self._variant = whole, folds, variant

    @cached_property
    def neighbors(self) -> NDArray[np.int64]:
        """Those of a slice at the same height of the next series, but the slice itself in the middle."""
        found = self._whole.neighbors
        if self._variant.neighbors:
            return found
        series, places, random = self.column("series"), self.column("position_mm"), np.random.default_rng(0)
        donors = np.empty(len(self), np.int64)
        for fold in np.unique(self._folds):
            names = random.permutation(np.unique(series[self._folds == fold].astype(str)))
            rows = [np.flatnonzero(series == name) for name in names]
            rows = [of[np.argsort(places[of].astype(float))] for of in rows]
            for own, other in zip(rows, rows[1:] + rows[:1], strict=True):
                donors[own] = other[np.linspace(0, len(other) - 1, len(own)).round().astype(int)]
        found = found[donors]
        found[:, MOST_NEIGHBORS] = np.arange(len(self))
        return found

    def label(self, name: str) -> NDArray[np.float32]:
        found = self._whole.label(name)
        if self._variant.subtypes or name == "any":
            return found
        found, positive = found.copy(), self._whole.label("any") == 1
        for fold in np.unique(self._folds):
            rows = np.flatnonzero(positive & (self._folds == fold))
            found[rows] = found[np.random.default_rng(0).permutation(rows)]  # the same for all subtypes
        return found


def make_dataset(folder: Path, patients: int) -> Path:
    from ich_ray.ct.continuous_phantom import write_continuous_phantom
    from ich_ray.data.prepare.run import prepare

    os.environ["ICH_RAY_KEY_FILE"] = str(folder / "key")
    if not (folder / "data" / "dataset.json").exists():
        made = write_continuous_phantom(folder / "dicom", patients, seed=0, size=FILE_SIZE)
        prepare(made.images, made.labels, folder / "data", size=SIZE)
    return folder / "data"


@cache
def opened(folder: str, folds: int) -> tuple[PreparedDataset, NDArray[np.int8]]:
    """The dataset, and the fold of each slice: roles play no part."""
    data = PreparedDataset.open(Path(folder) / "data")
    together = np.full(len(data), "train", object)
    return data, assign_folds(data.column("patient"), data.label("any"), together, 0, folds)


def trained(task: Task) -> dict[str, Any]:
    """The logits of the fold that was held out, in the order of its rows."""
    import torch

    from ich_ray.model.networks import build_network
    from ich_ray.training.inference import predict_logits
    from ich_ray.training.loop import TrainingBudget, train

    torch.set_num_threads(1)
    variant, (whole, folds), started = VARIANTS[task.variant], opened(task.folder, task.folds), time.monotonic()
    data = OfOthers(whole, folds, variant)
    ours, held_out = (SliceSet(data, np.flatnonzero(kept)) for kept in (folds != task.fold, folds == task.fold))
    seed = task.seed + (10_000 if variant.other_seeds else 0)
    budget = TrainingBudget(task.images, task.images)
    (end,) = train(variant.parameters, ours, None, budget=budget, seed=seed)
    network = build_network(variant.parameters, data.image_shape)
    network.load_state_dict(end.state().validated_weights)
    logits = predict_logits(network, held_out, variant.parameters)
    return {**task.key, "seconds": round(time.monotonic() - started, 1), "logits": logits.astype(float).tolist()}


class Results:
    """One JSON line per training in a file; a line that was being written at a kill is left out."""

    def __init__(self, file: Path) -> None:
        self._file = file
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        self.found = [json.loads(line) for line in lines if line.endswith("\n")]
        file.write_text("".join(line for line in lines if line.endswith("\n")))

    def add(self, result: dict[str, Any]) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(result) + "\n")
        self.found.append(result)

    def of(self, key: dict[str, Any]) -> dict[str, Any] | None:
        return next((one for one in self.found if {name: one[name] for name in key} == key), None)


def tasks(asked: argparse.Namespace) -> Iterator[Task]:
    """Seed by seed, so that what is there after a kill is whole for some seeds."""
    for seed in range(asked.seeds):
        for fold in range(asked.folds):
            for name in VARIANTS:
                if name != STRENGTH_0 or seed == 0:
                    yield Task(str(asked.folder), name, fold, asked.folds, seed, asked.images)


class Figures:
    """The figure of each variant, of the slices as they are and of each resample."""

    def __init__(self, asked: argparse.Namespace, results: Results) -> None:
        self._asked, self._results = asked, results
        self._data, self._folds = opened(str(asked.folder), asked.folds)
        self._draws = PatientDraws(self._data.column("patient"), resamples=RESAMPLES)
        self._known: dict[tuple[str, str], NDArray[np.float64]] = {}
        random = np.random.default_rng(1)
        self._seeds = random.integers(0, asked.seeds, (asked.folds, RESAMPLES, asked.seeds))

    def logits(self, variant: str, fold: int, seed: int) -> NDArray[np.float32]:
        asked = self._asked
        found = self._results.of(Task(str(asked.folder), variant, fold, asked.folds, seed, asked.images).key)
        assert found is not None, (variant, fold, seed)
        return np.asarray(found["logits"], np.float32)

    def scores(self, variant: str, label: str = "any") -> NDArray[np.float64]:
        """AP of each fold and seed, as it is and then of each resample, `[folds, seeds, 1 + resamples]`."""
        if (variant, label) not in self._known:
            self._known[variant, label] = self._scores(variant, label)
        return self._known[variant, label]

    def _scores(self, variant: str, label: str) -> NDArray[np.float64]:
        found = np.empty((self._asked.folds, self._asked.seeds, 1 + RESAMPLES))
        for fold, seed in np.ndindex(*found.shape[:2]):
            rows, logits = np.flatnonzero(self._folds == fold), self.logits(variant, fold, seed)
            columns = (*SUBTYPES, "any") if logits.ndim == 2 else ("any",)
            scores = logits.reshape(len(logits), -1)[:, columns.index(label)]
            ranking = Ranking(self._data.label(label)[rows], scores)
            drawn = [ranking.statistics(weights)[0] for weights in self._draws.weights(rows)]
            found[fold, seed] = [ranking.statistics()[0], *drawn]
        return found

    def mean(self, scores: NDArray[np.float64]) -> Interval:
        """Over folds and seeds."""
        drawn = [
            np.take_along_axis(of_fold[:, 1:].T, seeds, 1).mean(1)
            for of_fold, seeds in zip(scores, self._seeds, strict=True)
        ]
        return interval(float(scores[..., 0].mean()), np.mean(drawn, 0))

    def difference(self, variant: str, base: str = "base") -> Interval:
        return self.mean(self.scores(variant) - self.scores(base))

    @property
    def measured(self) -> list[str]:
        """Subtypes that enough patients of each fold have."""
        sets = [SliceSet(self._data, np.flatnonzero(self._folds == fold)) for fold in range(self._asked.folds)]
        least = {name: min(one.positive_patients(name) for one in sets) for name in SUBTYPES}
        return [name for name in SUBTYPES if least[name] >= POSITIVE_PATIENTS_OF_A_LABEL]

    def subtypes(self, variant: str) -> Interval:
        return self.mean(np.mean([self.scores(variant, name) for name in self.measured], 0))

    def same(self, variant: str, base: str = "base") -> bool:
        """Whether the first seed of all folds gives the same bits."""
        folds = range(self._asked.folds)
        return all(np.array_equal(self.logits(variant, fold, 0), self.logits(base, fold, 0)) for fold in folds)


def told(figure: Interval, sign: str = "") -> str:
    return f"{figure.value:{sign}.3f} ({figure.low:{sign}.3f} to {figure.high:{sign}.3f})"


def rows_of(figures: Figures) -> Iterator[tuple[str, str, str, str, str]]:
    for name, variant in VARIANTS.items():
        if name == STRENGTH_0:
            yield name, "", "the same bits" if figures.same(name) else "other bits", "", variant.must
            continue
        subtypes = told(figures.subtypes(name)) if variant.parameters.labels == "all" else ""
        ap = figures.mean(figures.scores(name)).value
        yield name, f"{ap:.3f}", "" if name == "base" else told(figures.difference(name), "+"), subtypes, variant.must


def failed(figures: Figures) -> Iterator[str]:
    """Controls that do not show what they must; of good parts one run in ten has one, by chance."""
    for name, variant in VARIANTS.items():
        if name == STRENGTH_0:
            shows = not figures.same(name)
        else:
            low, high = figures.difference(name)[1:]
            shows = (variant.must and not low <= 0) or (variant.must == "nothing" and not high >= 0)
        if shows:
            yield name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--patients", type=int, default=360)
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=24_000)
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    data = PreparedDataset.open(make_dataset(asked.folder, asked.patients))
    results = Results(asked.folder / "trainings.jsonl")
    left = [task for task in tasks(asked) if results.of(task.key) is None]
    with ProcessPoolExecutor(asked.processes, mp_context=get_context("spawn")) as processes:
        for number, result in enumerate(processes.map(trained, left), 1):
            results.add(result)
            print(f"{number} of {len(left)}: {result['variant']}, {result['seconds']:.0f} s", file=sys.stderr)
    figures = Figures(asked, results)
    seen = figures.difference("base, other seeds")
    print(
        f"{len(np.unique(data.column('patient')))} patients, {len(data):,} slices of {SIZE} pixels, "
        f"{int(data.label('any').sum()):,} of them positive; {asked.folds} folds, {asked.seeds} seeds, "
        f"{asked.images:,} images a training; {machine()}"
    )
    print(f"a difference that this run can see: {(seen.high - seen.low) / 2:.3f} of AP, half the interval of the base "
          f"against itself with other seeds\n")  # fmt: skip
    subtypes = f"mean AP of {', '.join(figures.measured)}"
    print(table(("variant", "AP of any", "difference from the base", subtypes, "must show"), rows_of(figures)))
    all_labels = figures.difference("labels all", "labels all, subtypes exchanged")
    print(f"\nlabels all, true subtypes less exchanged ones: {told(all_labels, '+')}")
    print(f"{sum(one['seconds'] for one in results.found):.0f} s of training")
    if shown := list(failed(figures)):
        sys.exit(f"controls that do not show what they must: {', '.join(shown)}")


if __name__ == "__main__":
    main()
