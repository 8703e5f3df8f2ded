"""What is a model over whole series worth? On synthetic patients: no model, Gaussian smoothing, sequence model.

The phantom with bleedings that go on in the slices beside, and bone that only these tell from blood. So it proves that
the stage works, not what it is worth on patients.

Every patient is held out once. The other patients are divided by another seed each time: on three fifths a small
network learns, and then a sequence model on its features; a fifth validates, which selects among a few draws and among
the reports of each; a fifth fits widths, weights of logits and biases, as `ich-ray sequence` does on calibration
patients. Figures are of the patients held out, means over folds and seeds; a difference pairs what was measured of one
fold and seed. Intervals (95 %, percentile) draw patients again, and the seeds of each fold. Draws: the points of
search_spaces/sequence_small.yaml and a transformer, no search.

Controls: smoothing and sequence models where the slices of each series are in random order, in all roles, which must be
worth no more than in order; and the draw that was chosen trained on the labels of other series at the same height,
whose study head must be at chance over trainings (AUC 0.5; its logits as they are, at the end, as true labels would
choose its reports and its sign).

    python benchmarks/sequence_gain.py FOLDER [--patients 360] [--folds 3] [--seeds 3] [--images 24000]
                                              [--series 4500] [--neighbors 0 1] [--processes 1]

FOLDER keeps the dataset and a line for each fold and seed: run again after a kill, it goes on; with other patients it
needs another folder.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from scipy.special import expit
from scipy.stats import t

from benchmarks.contest import machine, table
from benchmarks.detector_parts import SIZE, Results, make_dataset, opened, told
from benchmarks.sequence_ways import (
    HEAD,
    LABELS,
    OTHERS,
    RANDOM,
    SLICE_WAYS,
    STUDY_WAYS,
    Patients,
    Task,
    highest,
    measured,
)
from ich_ray.data.dataset import SliceSet
from ich_ray.statistics.bootstrap import Interval, PatientDraws, interval
from ich_ray.statistics.metrics import POSITIVE_PATIENTS_OF_A_LABEL, Ranking, log_loss
from ich_ray.vocabulary import SUBTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

RESAMPLES, CHANCE = 1000, 0.5
FIGURES = ("AP", "AUC", "log loss")
# (level, a way, another, what their difference must not show), AP of slices and AUC of studies.
DIFFERENCES = (
    ("slice", "smoothing", "no model", ""),
    ("slice", "sequence model", "no model", ""),
    ("slice", "sequence model", "smoothing", ""),
    ("slice", f"smoothing{RANDOM}", "smoothing", "gain"),
    ("slice", f"sequence model{RANDOM}", "no model", ""),
    ("slice", f"sequence model{RANDOM}", "sequence model", "gain"),
    ("study", "smoothing, maximum", "no model, maximum", ""),
    ("study", "sequence model, maximum", "no model, maximum", ""),
    ("study", HEAD, "no model, maximum", ""),
    ("study", HEAD, "smoothing, maximum", ""),
    ("study", f"{HEAD}{RANDOM}", HEAD, "gain"),
)


def tasks(asked: argparse.Namespace) -> Iterator[Task]:
    """Seed by seed, so that what is there after a kill is whole for some seeds."""
    for seed, neighbors, fold in product(range(asked.seeds), asked.neighbors, range(asked.folds)):
        yield Task(str(asked.folder), neighbors, fold, asked.folds, seed, asked.images, asked.series)


class Figures:
    """What each way reached with one network, of the patients as they are and of each resample."""

    def __init__(self, asked: argparse.Namespace, results: Results, neighbors: int) -> None:
        self._asked, self._data = asked, opened(str(asked.folder), asked.folds)[0]
        self._found = {
            (task.fold, task.seed): (Patients(task).held_out, results.of(task.key) or {})
            for task in tasks(asked)
            if task.neighbors == neighbors
        }
        self._draws = PatientDraws(self._data.column("patient"), resamples=RESAMPLES)
        self._seeds = np.random.default_rng(1).integers(0, asked.seeds, (asked.folds, RESAMPLES, asked.seeds))
        self._known: dict[tuple[str, str, str], NDArray[np.float64]] = {}

    def scores(self, level: str, way: str, label: str = "any") -> NDArray[np.float64]:
        """`FIGURES` of each fold and seed, as it is and then of each resample, `[folds, seeds, 1 + resamples, 3]`."""
        if (level, way, label) not in self._known:
            found = np.empty((self._asked.folds, self._asked.seeds, 1 + RESAMPLES, len(FIGURES)))
            for place, (rows, result) in self._found.items():
                found[place] = self._of(level, way, label, rows, result)
            self._known[level, way, label] = found
        return self._known[level, way, label]

    def _of(
        self, level: str, way: str, label: str, rows: NDArray[np.int64], result: dict[str, Any]
    ) -> list[tuple[float, float, float]]:
        truth = self._data.label(label)[rows]
        if level == "slice":
            logits = np.asarray(result["slices"][way])[:, LABELS.index(label)]
        else:
            patients = self._data.column("patient")[rows].astype(str)
            _, first, which = np.unique(patients, return_index=True, return_inverse=True)
            truth, logits, rows = highest(truth, which), np.asarray(result["studies"][way]), rows[first]
        ranking, probabilities = Ranking(truth, logits), expit(logits)
        weights = [np.ones(len(rows)), *self._draws.weights(rows)]
        return [(*ranking.statistics(each), log_loss(truth, probabilities, each)) for each in weights]

    def mean(self, scores: NDArray[np.float64]) -> list[Interval]:
        """Over folds and seeds, of each figure."""
        drawn = [
            np.take_along_axis(of_fold[:, 1:].transpose(1, 0, 2), seeds[:, :, None], 1).mean(1)
            for of_fold, seeds in zip(scores, self._seeds, strict=True)
        ]
        value, resampled = scores[:, :, 0].mean((0, 1)), np.mean(drawn, 0)
        return [interval(float(value[which]), resampled[:, which]) for which in range(len(FIGURES))]

    def difference(self, level: str, way: str, other: str, label: str = "any") -> list[Interval]:
        return self.mean(self.scores(level, way, label) - self.scores(level, other, label))

    @property
    def measured(self) -> list[str]:
        """Subtypes that enough patients of each fold have."""
        sets = [SliceSet(self._data, rows) for rows, _ in self._found.values()]
        return [name for name in SUBTYPES
                if min(one.positive_patients(name) for one in sets) >= POSITIVE_PATIENTS_OF_A_LABEL]  # fmt: skip

    def failed(self) -> list[str]:
        """Controls that show what they must not; each does by chance in one run of forty."""
        found = [f"{level}: {way} against {other}" for level, way, other, must_not in DIFFERENCES
                 if must_not and self.difference(level, way, other)[level == "study"].low > 0]  # fmt: skip
        return found if self.of_others().low <= CHANCE else [*found, f"study: {HEAD}{OTHERS}"]

    def of_others(self) -> Interval:
        """The AUC of study heads that learned from the labels of others, by how it differs between trainings.

        Not by patients: blood is what features tell most of, so that such a head may rank all by it, the right or the
        wrong way round as it happens.
        """
        found = self.scores("study", f"{HEAD}{OTHERS}")[:, :, 0, FIGURES.index("AUC")].ravel()
        half = t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found))
        return Interval(float(found.mean()), float(found.mean() - half), float(found.mean() + half))


def print_tables(figures: Figures) -> None:
    for level, ways in (("slice", SLICE_WAYS), ("study", STUDY_WAYS[:-1])):
        rows = [[way, *map(told, figures.mean(figures.scores(level, way)))] for way in ways]
        print(table((f"`any` by {level}", *FIGURES), rows) + "\n")
    rows = [
        [f"{level}: {way} less {other}", *(told(one, "+") for one in figures.difference(level, way, other)),
         f"no {must_not}" if must_not else ""] for level, way, other, must_not in DIFFERENCES
    ]  # fmt: skip
    print(table(("difference", *FIGURES, "must show"), rows) + "\n")
    print(f"{HEAD}{OTHERS}: AUC {told(figures.of_others())} over trainings; must show no gain over {CHANCE}\n")
    three = SLICE_WAYS[:3]
    rows = [
        [label, *(told(figures.mean(figures.scores("slice", way, label))[0]) for way in three),
         *(told(figures.difference("slice", three[2], way, label)[0], "+") for way in three[:2])]
        for label in figures.measured
    ]  # fmt: skip
    print(table(("AP by slice", *three, "less no model", "less smoothing"), rows) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--patients", type=int, default=360)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=24_000, help="shown to each network")
    parser.add_argument("--series", type=int, default=4500, help="shown to each sequence model")
    parser.add_argument("--neighbors", type=int, nargs="+", default=[0, 1], help="that networks see on either side")
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    make_dataset(asked.folder, asked.patients)
    results = Results(asked.folder / "sequences.jsonl")
    left = [task for task in tasks(asked) if results.of(task.key) is None]
    with ProcessPoolExecutor(asked.processes, mp_context=get_context("spawn")) as processes:
        for number, result in enumerate(processes.map(measured, left), 1):
            results.add(result)
            print(f"{number} of {len(left)}: {result['seconds']:.0f} s, {result['chosen']}", file=sys.stderr)
    data = opened(str(asked.folder), asked.folds)[0]
    print(
        f"{len(np.unique(data.column('patient')))} patients, {len(data):,} slices of {SIZE} pixels, "
        f"{int(data.label('any').sum()):,} of them positive; {asked.folds} folds, seeds 0 to {asked.seeds - 1}, "
        f"{asked.images:,} images a network, {asked.series:,} series a sequence model; {machine()}"
    )
    shown = []
    for neighbors in asked.neighbors:
        figures = Figures(asked, results, neighbors)
        print(f"\nA network that sees {neighbors or 'no'} neighbors on either side\n")
        print_tables(figures)
        shown += [f"{neighbors} neighbors, {one}" for one in figures.failed()]
    found = [one for task in tasks(asked) if (one := results.of(task.key))]
    chosen, seconds = [one["chosen"] for one in found], sum(one["seconds"] for one in found)
    print("chosen: " + ", ".join(f"{name} {chosen.count(name)}" for name in sorted(set(chosen))))
    print(f"{seconds:.0f} s, {sum(one['network_seconds'] for one in found):.0f} of them of networks")
    if shown:
        sys.exit("controls that show what they must not: " + "; ".join(shown))


if __name__ == "__main__":
    main()
