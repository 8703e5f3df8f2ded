"""Trains networks and sequence models on synthetic patients, for sequence_gain.py: logits of the patients held out.

Roles, trainings, blends and smoothing are the package's; nothing here measures how good the logits are.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from benchmarks.detector_parts import BASE, opened
from ich_ray.data.dataset import SliceSet
from ich_ray.data.roles import assign_folds
from ich_ray.data.sequence_features import as_stored
from ich_ray.data.series_order import ordered_series
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.sequence_parameters import SequenceParameters
from ich_ray.refit.sequence_figures import ReadSlices, fit_blends, fit_weights
from ich_ray.statistics.smoothing import fit_sigmas, smoothed
from ich_ray.vocabulary import SUBTYPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.model.sequence_networks import SequenceNetwork
    from ich_ray.training.sequence_set import SequenceSet

LABELS = (*SUBTYPES, "any")
NETWORK = {**BASE, "augment": 1.0, "labels": "all", "schedule": "flat_cosine", "warmup": 0.05}
SPACE = Path(__file__).parents[1] / "search_spaces" / "sequence_small.yaml"
TRANSFORMER = {"model": "transformer", "hidden": 64, "projection": 64, "any_weight": 1.0, "batch_size": 16,
               "learning_rate": 1e-3}  # fmt: skip
PARTS, REPORTS = 5, 6
RANDOM, OTHERS = ", random order", ", labels of other studies"
SLICE_WAYS = ("no model", "smoothing", "sequence model", f"smoothing{RANDOM}", f"sequence model{RANDOM}")
HEAD = "study head"
STUDY_WAYS = (*(f"{way}, maximum" for way in SLICE_WAYS[:3]), HEAD, f"{HEAD}{RANDOM}", f"{HEAD}{OTHERS}")


def draws() -> list[SequenceParameters]:
    points = yaml.safe_load(SPACE.read_text())["points"]
    return [SequenceParameters(**point) for point in (*points, TRANSFORMER)]


@dataclass(frozen=True)
class Task:
    """A network, sequence models on its features, and what they say of the fold that is held out."""

    folder: str
    neighbors: int
    fold: int
    folds: int
    seed: int
    images: int
    series: int

    @property
    def key(self) -> dict[str, Any]:
        asked = dataclasses.asdict(self)
        del asked["folder"]
        return asked

    @property
    def parameters(self) -> Hyperparameters:
        return Hyperparameters(**NETWORK, neighbors=self.neighbors)


class Patients:
    """Who learns, who validates, who calibrates and who is held out."""

    def __init__(self, task: Task) -> None:
        self.data, folds = opened(task.folder, task.folds)
        rest, self.held_out = (np.flatnonzero(part) for part in (folds != task.fold, folds == task.fold))
        together = np.full(len(rest), "train", object)
        names, positive = self.data.column("patient")[rest], self.data.label("any")[rest]
        inner = assign_folds(names, positive, together, 1 + task.seed, PARTS)
        self.train, self.validation, self.calibration = rest[inner > 1], rest[inner == 0], rest[inner == 1]


class Measured:
    """One task under way."""

    def __init__(self, task: Task) -> None:
        self._task, self._patients = task, Patients(task)
        self.own: dict[str, NDArray[np.float32]] = {}
        self.sets: dict[str, SequenceSet] = {}

    def see(self) -> None:
        """Train the network; keep features and logits of everybody."""
        from ich_ray.model.input_shape import input_shape
        from ich_ray.model.networks import build_network
        from ich_ray.model.pooled_features import FeatureNetwork
        from ich_ray.training.feature_pass import predict_features
        from ich_ray.training.loop import TrainingBudget, train
        from ich_ray.training.sequence_set import SequenceSet

        task, data = self._task, self._patients.data
        ours, budget = SliceSet(data, self._patients.train), TrainingBudget(task.images, task.images)
        (end,) = train(task.parameters, ours, None, budget=budget, seed=task.seed)
        network = build_network(task.parameters, data.image_shape)
        network.load_state_dict(end.state().validated_weights)
        seeing = FeatureNetwork(network, input_shape(task.parameters, data.image_shape))
        for role in ("train", "validation", "calibration", "held_out"):
            rows = getattr(self._patients, role)
            logits, features = predict_features(seeing, SliceSet(data, rows), task.parameters)
            self.own[role] = logits
            self.sets[role] = SequenceSet.of(data, rows, as_stored(features), LABELS)

    @cached_property
    def in_random_order(self) -> dict[str, SequenceSet]:
        """The slices of each series have exchanged their places."""
        found, random = {}, np.random.default_rng(self._task.seed)
        for role, given in self.sets.items():
            places = given.order.places_mm[given.order.place].astype(np.float64)
            for series in range(len(given)):
                rows = np.flatnonzero(given.order.series == series)
                places[rows] = places[random.permutation(rows)]
            found[role] = dataclasses.replace(given, order=ordered_series(given.order.series, places))
        return found

    @property
    def of_others(self) -> SequenceSet:
        """Training series whose slices and studies have the labels of other series, at the same height."""
        given = self.sets["train"]
        rows = [np.flatnonzero(given.order.series == series) for series in range(len(given))]
        rows = [of[np.argsort(given.order.place[of])] for of in rows]
        order = np.random.default_rng(self._task.seed).permutation(len(given))
        targets, studies = given.targets.copy(), given.study_targets.copy()
        for own, other in zip(order, np.roll(order, 1), strict=True):
            at = np.linspace(0, len(rows[other]) - 1, len(rows[own])).round().astype(int)
            targets[rows[own]] = given.targets[rows[other][at]]
            studies[own] = given.study_targets[other]
        return dataclasses.replace(given, targets=targets, study_targets=studies)

    def learned(
        self, train: SequenceSet, validation: SequenceSet | None, drawn: list[SequenceParameters]
    ) -> tuple[int, SequenceNetwork]:
        """Which of some draws validated best, and its network at its best report, or at its end."""
        from ich_ray.model.sequence_networks import build_sequence_network
        from ich_ray.training.parts import TrainingBudget
        from ich_ray.training.sequence_loop import train_sequence

        budget = TrainingBudget(self._task.series, self._task.series // (1 if validation is None else REPORTS))
        best, number, weights = -1.0, 0, {}
        for trial, parameters in enumerate(drawn):
            seed = 100 * self._task.seed + trial
            for report in train_sequence(parameters, train, validation, budget=budget, seed=seed):
                value = 0.0 if validation is None else report.metrics["average_precision"]
                if value > best:
                    best, number, weights = value, trial, report.state().validated_weights
        network = build_sequence_network(drawn[number], train.features.shape[1], len(LABELS))
        network.load_state_dict(weights)
        return number, network.eval()

    def read(self, given: SequenceSet, role: str, network: SequenceNetwork) -> ReadSlices:
        from ich_ray.training.sequence_batches import sequence_logits

        said, order = sequence_logits(network, given.features, given.order), given.order
        return ReadSlices(
            targets=given.targets,
            own=self.own[role],
            sequence=said.slices,
            head=said.study[order.series],
            series=order.series,
            studies=given.studies[order.series],
            places_mm=order.places_mm[order.place].astype(np.float64),
            patients=given.patients,
        )


def by_slice(fit: ReadSlices, held: ReadSlices) -> dict[str, list[NDArray[np.float64]]]:
    """Logits `[n, labels]` of both by each way, fitted on the first."""
    labels = range(len(LABELS))
    own = [fit_weights(fit.targets[:, one], fit.own[:, [one]]) for one in labels]
    plain = [np.stack([own[one](read.own[:, [one]]) for one in labels], 1) for read in (fit, held)]
    orders = [ordered_series(read.series, read.places_mm) for read in (fit, held)]
    sigmas = fit_sigmas(plain[0], fit.targets, orders[0].place, orders[0].starts)
    smooth = [smoothed(each, order.place, order.starts, sigmas) for each, order in zip(plain, orders, strict=True)]
    again = [fit_weights(fit.targets[:, one], smooth[0][:, [one]]) for one in labels]
    blends = fit_blends(fit)
    both = [np.stack([read.own, read.sequence], 2) for read in (fit, held)]
    return {
        "no model": plain,
        "smoothing": [np.stack([again[one](each[:, [one]]) for one in labels], 1) for each in smooth],
        "sequence model": [np.stack([blends[one](each[:, one]) for one in labels], 1) for each in both],
    }


def highest(values: NDArray[Any], studies: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of each study, `[studies]`."""
    found = np.full(studies.max() + 1, -np.inf)
    np.maximum.at(found, studies, values)
    return found


def by_study(fit: ReadSlices, fitted: NDArray[Any], held: ReadSlices, values: NDArray[Any]) -> NDArray[np.float64]:
    """The logit of `any` of each study held out, of the highest of its slices, fitted on other studies."""
    weights = fit_weights(highest(fit.targets[:, -1], fit.studies), highest(fitted, fit.studies)[:, None])
    return weights(of_patients(held, values)[:, None])


def of_patients(read: ReadSlices, values: NDArray[Any]) -> NDArray[np.float64]:
    """The highest value of each patient, who has one study here, by name."""
    _, first = np.unique(read.patients.astype(str), return_index=True)
    return highest(values, read.studies)[read.studies[first]]


def measured(task: Task) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    one, started = Measured(task), time.monotonic()
    one.see()
    seen_s = time.monotonic() - started
    slices, studies = {}, {}
    sets = one.sets
    number, network = one.learned(sets["train"], sets["validation"], draws())
    chosen = draws()[number]
    fit, held = (one.read(sets[role], role, network) for role in ("calibration", "held_out"))
    for way, (fitted, values) in by_slice(fit, held).items():
        slices[way] = values
        studies[f"{way}, maximum"] = by_study(fit, fitted[:, -1], held, values[:, -1])
    studies[HEAD] = by_study(fit, fit.head[:, -1], held, held.head[:, -1])

    mixed = one.in_random_order
    _, network = one.learned(mixed["train"], mixed["validation"], draws())
    fit, held = (one.read(mixed[role], role, network) for role in ("calibration", "held_out"))
    found = by_slice(fit, held)
    slices |= {f"{way}{RANDOM}": found[way][1] for way in ("smoothing", "sequence model")}
    studies[f"{HEAD}{RANDOM}"] = by_study(fit, fit.head[:, -1], held, held.head[:, -1])

    # As it is: true labels must neither choose a report nor turn it the right way round.
    _, network = one.learned(one.of_others, None, [chosen])
    held = one.read(sets["held_out"], "held_out", network)
    studies[f"{HEAD}{OTHERS}"] = of_patients(held, held.head[:, -1])
    return {
        **task.key,
        "seconds": round(time.monotonic() - started, 1),
        "network_seconds": round(seen_s, 1),
        "chosen": chosen.model,
        "slices": {way: values.round(4).tolist() for way, values in slices.items()},
        "studies": {way: values.round(4).tolist() for way, values in studies.items()},
    }
