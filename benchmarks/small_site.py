"""A setting like a small site: does search_spaces/small.yaml find better detectors than the space before its new parts?

82 synthetic patients of some 30 slices, 320 of them positive (benchmarks/detector_parts.py says what the phantom can
prove). Patients are divided into folds; each fold is held out once while the others are searched on, a quarter of whose
patients validate. Then the chosen draw trains again with another seed, the weights of the report that validated best
are kept, their temperature is fitted on the validation patients, and the patients held out are scored. All 82 together
give the figures; intervals (95 %) draw patients again, the same ones for both spaces. They say nothing of how searches
differ: for that, several searches are made and their figures averaged.

Old and new have the same sampler, rungs, networks, ranges, images of a trial, of a search and of a retraining. Old is
small.yaml without what is new in it: one label, no augmentation, inverse time decay, no averaging, norms that decay.
Both leave out ResNet18, one training of which takes as long as all others together. No Ray: sampler, rungs and ledger
are driven by benchmarks/efficiency, two trials at a time.

    python benchmarks/small_site.py FOLDER [--folds 3] [--searches 1] [--images 120000] [--processes 1]
                                           [--space search_spaces/small.yaml]

FOLDER keeps the dataset and a line per search: run again after a kill, it goes on.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import yaml

from benchmarks.contest import machine, table
from benchmarks.detector_parts import SIZE, Results, make_dataset, told
from benchmarks.efficiency.course import course
from benchmarks.efficiency.methods import METRIC, Ours
from ich_ray.bundle.logit_scaling import fit_scaling
from ich_ray.data.dataset import PreparedDataset, SliceSet
from ich_ray.data.roles import assign_folds
from ich_ray.errors import TrialFailure
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.search import ledger as ledgers
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.statistics.bootstrap import Interval, PatientDraws, interval
from ich_ray.statistics.metrics import average_precision, log_loss, roc_auc

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.search.space.space import SearchSpace

PHANTOM, PATIENTS, POSITIVES = 120, 82, 320
VALIDATED, SLOTS, RESAMPLES = 4, 2, 2000
SMALL = Path(__file__).parents[1] / "search_spaces" / "small.yaml"
NEW = {"labels", "any_weight", "augment", "erase", "schedule", "warmup", "ema", "decay_norms", "clip", "neighbors",
       "neighbor_windows", "crop", "scale", "resolution"}  # fmt: skip
SPACES = ("old", "new")


def space_of(name: str, file: Path) -> SearchSpace:
    """small.yaml for plain networks, and what is left of it without what is new."""
    source = yaml.safe_load(file.read_text())
    leave_out = NEW if name == "old" else set()
    source["parameters"] = {
        key: {part: said for part, said in spec.items() if part != "when" or not {"architecture", *leave_out} & {*said}}
        for key, spec in source["parameters"].items()
        if key not in leave_out
    }
    source["parameters"]["architecture"] = {"fixed": "plain_cnn"}
    source["points"] = [
        {key: value for key, value in point.items() if key not in leave_out | {"architecture"}}
        for point in source.get("points", [])
        if point.get("architecture", "plain_cnn") == "plain_cnn"
    ]
    return parse_space(source, file.name)


class Site:
    """Some patients of a dataset, and a fold of them held out."""

    def __init__(self, folder: str, fold: int, folds: int) -> None:
        self.data = PreparedDataset.open(Path(folder) / "data")
        patients, positive = self.data.column("patient"), self.data.label("any")
        names, of_slice = np.unique(patients.astype(str), return_inverse=True)
        bleeding = np.bincount(of_slice, positive)  # positive slices of each
        order = np.random.default_rng(0).permutation(len(names))
        with_blood = order[bleeding[order] > 0]
        enough = 1 + int(np.argmax(np.cumsum(bleeding[with_blood]) >= POSITIVES))
        chosen = [*with_blood[:enough], *order[bleeding[order] == 0][: PATIENTS - enough]]
        self.rows = np.flatnonzero(np.isin(of_slice, chosen))
        self.folds = self._divided(self.rows, 0, folds)
        kept = self.rows[self.folds != fold]
        inner = self._divided(kept, 1, VALIDATED)
        self.train, self.validation = (SliceSet(self.data, kept[part]) for part in (inner != 0, inner == 0))
        self.held_out = SliceSet(self.data, self.rows[self.folds == fold])

    def _divided(self, rows: NDArray[np.int64], seed: int, folds: int) -> NDArray[np.int8]:
        together = np.full(len(rows), "train", object)
        return assign_folds(self.data.column("patient")[rows], self.data.label("any")[rows], together, seed, folds)


class Trained:
    """One network in training, with the weights of its best report."""

    def __init__(self, site: Site, parameters: dict[str, Any], space: SearchSpace, seed: int) -> None:
        from ich_ray.training.loop import TrainingBudget, train

        self.parameters, self.images, self.values, self.seed = parameters, 0, [], seed
        self._site, self._drawn = site, Hyperparameters(**parameters)
        budget = TrainingBudget(space.budget.images, space.budget.report_every)
        self._steps = train(self._drawn, site.train, site.validation, budget=budget, seed=seed)

    def report(self) -> float:
        try:
            progress = next(self._steps)
        except TrialFailure:
            return math.nan
        self.images, value = progress.images_seen, progress.metrics[METRIC]
        if value > max(self.values, default=-math.inf):
            self._best = progress.state().validated_weights
        self.values.append(value)
        return value

    @property
    def value(self) -> float:
        return self.values[-1] if self.values else 0.0

    def probabilities(self) -> NDArray[np.float64]:
        """Of the slices held out, by the weights of the best report."""
        from ich_ray.model.networks import build_network
        from ich_ray.training.inference import predict_logits
        from ich_ray.training.loss import prior_shift

        network = build_network(self._drawn, self._site.data.image_shape)
        network.load_state_dict(self._best)
        of_any = [
            predict_logits(network, part, self._drawn).reshape(len(part), -1)[:, -1]
            for part in (self._site.validation, self._site.held_out)
        ]
        positives = int(self._site.train.labels.sum())
        shift = prior_shift(self._drawn.loss, positives, len(self._site.train) - positives)
        return fit_scaling("temperature", self._site.validation.labels, of_any[0], shift)(of_any[1])


class Searched:
    """A problem of benchmarks/efficiency: a space on the patients that are not held out."""

    def __init__(self, site: Site, space: SearchSpace) -> None:
        self.space, self._site = space, site

    def begin(self, parameters: dict[str, Any], seed: tuple[int, ...]) -> Trained:
        return Trained(self._site, parameters, self.space, 100_000 * (seed[0] + 1) + seed[-1])


@dataclass(frozen=True)
class Task:
    """One search, and the training of what it chose."""

    folder: str
    file: str
    space: str
    fold: int
    folds: int
    search: int
    images: int

    @property
    def key(self) -> dict[str, Any]:
        said = {"space": self.space, "fold": self.fold, "of": self.folds, "search": self.search, "images": self.images}
        return {**said, "source": space_of(self.space, Path(self.file)).source}

    @cached_property
    def site(self) -> Site:
        return Site(self.folder, self.fold, self.folds)


def searched(task: Task) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    started, site, space = time.monotonic(), task.site, space_of(task.space, Path(task.file))
    with tempfile.TemporaryDirectory() as temporary, mock.patch.object(ledgers, "write_bytes", _unwritten):
        method = Ours(space, task.search, Path(temporary) / "s", SLOTS)
        for so_far, _ in course(method, Searched(site, space), task.search):
            if so_far.images >= task.images and so_far.complete:
                break
    chosen = max(so_far.complete, key=lambda one: max(one.values))
    again = Trained(site, chosen.parameters, space, 10**7 + task.search)
    while again.images < space.budget.images and not math.isnan(again.report()):
        pass
    return {
        **task.key,
        "seconds": round(time.monotonic() - started, 1),
        "searched": so_far.images,
        "trials": len(so_far.trainings),
        "selected": max(chosen.values),
        "chosen": chosen.parameters,
        "probabilities": again.probabilities().tolist(),
    }


def _unwritten(path: Path, content: bytes) -> None:
    """A ledger that stays in memory; a Mock would remember every call."""


Found = dict[tuple[str, int, int], dict[str, Any]]  # by space, fold and search


class Figures:
    """Figures of both spaces on all patients, of the slices as they are and then of each resample."""

    def __init__(self, site: Site, asked: argparse.Namespace, found: Found) -> None:
        self._site, self._asked, self._found = site, asked, found
        self._labels, patients = site.data.label("any")[site.rows], site.data.column("patient")[site.rows]
        self._draws = PatientDraws(patients, resamples=RESAMPLES)
        self._bleeds = np.bincount(self._draws.of_slice, self._labels) > 0
        drawn = {space: np.mean([self._of(space, search) for search in range(asked.searches)], 0) for space in SPACES}
        self.rows = {
            "old": [self._interval(column) for column in drawn["old"].T],
            "new": [self._interval(column) for column in drawn["new"].T],
            "new less old": [self._interval(column) for column in (drawn["new"] - drawn["old"]).T],
        }

    @staticmethod
    def _interval(column: NDArray[np.float64]) -> Interval:
        return interval(float(column[0]), column[1:])

    def _of(self, space: str, search: int) -> NDArray[np.float64]:
        """AP of slices, AUC of patients by their most probable slice, log loss of slices, `[1 + resamples, 3]`."""
        probabilities = np.empty(len(self._labels))
        for fold in range(self._asked.folds):
            probabilities[self._site.folds == fold] = self._found[space, fold, search]["probabilities"]
        highest = np.zeros(self._draws.patients)
        np.maximum.at(highest, self._draws.of_slice, probabilities)
        times = np.vstack([np.ones(self._draws.patients), self._draws.times])
        return np.array(
            [
                [
                    average_precision(self._labels, probabilities, each[self._draws.of_slice]),
                    roc_auc(self._bleeds, highest, each),
                    log_loss(self._labels, probabilities, each[self._draws.of_slice]),
                ]
                for each in times
            ]
        )


def print_choices(found: Found) -> None:
    for (space, fold, search), one in sorted(found.items()):
        drawn = ", ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in one["chosen"].items()
            if name != "architecture"
        )
        print(f"{space}, fold {fold}, search {search}: {one['trials']} trials, {one['searched']:,} images, validated "
              f"{one['selected']:.3f}: {drawn}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--searches", type=int, default=1, help="with each space on each fold")
    parser.add_argument("--images", type=int, default=120_000, help="after which a search ends")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--space", type=Path, default=SMALL)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    make_dataset(asked.folder, PHANTOM)
    tasks = {
        (space, fold, search): Task(str(asked.folder), str(asked.space), space, fold, asked.folds, search, asked.images)
        for search in range(asked.searches)
        for fold in range(asked.folds)
        for space in SPACES
    }
    results = Results(asked.folder / "searches.jsonl")
    left = [task for task in tasks.values() if results.of(task.key) is None]
    with ProcessPoolExecutor(asked.processes, mp_context=get_context("spawn")) as processes:
        for result in processes.map(searched, left):
            results.add(result)
            print(f"{result['space']}, fold {result['fold']}: {result['seconds']:.0f} s", file=sys.stderr)
    found = {place: results.of(task.key) or {} for place, task in tasks.items()}
    site = tasks["old", 0, 0].site
    labels, patients = site.data.label("any")[site.rows], site.data.column("patient")[site.rows]
    print(
        f"{len(np.unique(patients))} patients, {len(labels):,} slices of {SIZE} pixels, {int(labels.sum())} of them "
        f"positive; {asked.folds} folds, {asked.searches} searches of each, {asked.images:,} images a search; "
        f"{machine()}\n"
    )
    figures = Figures(site, asked, found)
    rows = [[name, *(told(one, "+" if "less" in name else "") for one in row)] for name, row in figures.rows.items()]
    print(table(("space", "AP of slices", "AUC of patients", "log loss of slices"), rows) + "\n")
    print_choices(found)
    print(f"{sum(one['seconds'] for one in found.values()):.0f} s")


if __name__ == "__main__":
    main()
