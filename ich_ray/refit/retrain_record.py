"""Plan and record of a retraining: patients, budget, and which of its seeds is bundled.

Knows no networks and trains nothing, so that a report reads it without PyTorch.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field, ValidationError

from ich_ray.bundle.card import SeedSpread
from ich_ray.data.folds import roles_of
from ich_ray.errors import ConfigError, IntegrityError
from ich_ray.model.hyperparameters import known_fields
from ich_ray.model.schedule import SCHEDULES
from ich_ray.search.space.space import Budget
from ich_ray.storage import Count, JsonValue, Line, Record, Seconds, Seed, Text, first_problem, sha256
from ich_ray.trial_records import ExecutionInfo, Objective, Report
from ich_ray.vocabulary import Patients, TtaView

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ich_ray.data.dataset import RoleCounts
    from ich_ray.model.fields import NetworkFields
    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.results import SearchResult
    from ich_ray.trial_records import TrialResult
    from ich_ray.vocabulary import Role

__all__ = [
    "SEED_RULE",
    "MemberRun",
    "RetrainCourse",
    "Retraining",
    "SeedRun",
    "best_runs",
    "check_views",
    "folder_names",
    "parse_views",
    "planned",
    "searched_budget",
    "spread",
]

SEED_RULE = "the seed with the best report on the validation patients; calibration and test patients took no part"

# All that version 0.1.0 knew of a network and its training, and named the folder of a retraining by.
_FIELDS_OF_0_1_0 = {
    "architecture", "blocks", "filters", "convolutions", "padding", "input_batch_norm", "dense", "dense_layers",
    "dropout_before_pool", "dropout_after_pool", "dropout_dense", "weights", "unfreeze_from", "batch_size",
    "learning_rate", "decay", "dropout", "optimizer", "momentum", "weight_decay", "loss", "training_slices", "epochs",
}  # fmt: skip


class SeedRun(Record):
    """One training of a retraining.

    Attributes:
        value: the objective of its best report; None where it failed, or where the validation patients trained.
        best_images_seen: at which its weights were kept.
        seconds: of the attempt that ended it.
        reason: why it failed, empty if it did not.
        fold: that was held out, if one of a confirmation was.
    """

    seed: Seed
    value: float | None = None
    best_images_seen: Count = 0
    images_seen: Count = 0
    seconds: Seconds = 0.0
    device: Line = ""
    setup: ExecutionInfo | None = None
    reason: Text = ""
    fold: Count | None = Field(default=None, exclude_if=lambda fold: fold is None)


class MemberRun(Record):
    """A network of an ensemble beside the first.

    Attributes:
        trial: that was trained again, with its `parameters`.
    """

    trial: Count
    parameters: dict[Line, JsonValue]
    run: SeedRun


class Retraining(Record):
    """retraining.json. What is not of all seeds is of the one that became the bundle.

    Attributes:
        seconds: of all seeds together.
        patients: who trained.
        images: the budget of a seed, and `budget`, where it comes from.
        runs: each seed, in the order in which they trained; empty in files of older versions.
        rehearsal: where the validation patients trained, the seeds of the retraining before, which could be measured.
        members: networks whose logits are averaged with those of this one, if it is an ensemble.
    """

    format: Literal[1] = 1
    trial: Count
    parameters: dict[Line, JsonValue]
    workers: Count
    reports: tuple[Report, ...]
    best_images_seen: Count
    stopped_early: bool
    seconds: Seconds
    device: Line
    setup: ExecutionInfo | None = None
    patients: Patients = "train"
    images: Count | None = None
    budget: Line = ""
    seed: Seed | None = None
    runs: tuple[SeedRun, ...] = ()
    rehearsal: tuple[SeedRun, ...] = ()
    members: tuple[MemberRun, ...] = ()

    @property
    def spread(self) -> SeedSpread | None:
        """Of the seeds whose validation patients were held out: these, or those of the rehearsal."""
        return spread(self.runs if self.patients == "train" else self.rehearsal)


@dataclass(frozen=True)
class RetrainCourse:
    """The images that a seed of a retraining is shown at most, and where that number comes from."""

    parameters: Hyperparameters
    images: int
    report_every: int
    budget: str


def planned(
    found: SearchResult,
    trial: TrialResult,
    parameters: Hyperparameters,
    roles: Mapping[Role, RoleCounts],
    patients: Patients,
    rehearsal: Sequence[SeedRun],
) -> RetrainCourse:
    """The course of a retraining that goes by the search and its trial.

    The schedule says how long it is; one that must reach its end does so whoever trains.

    Without validation patients it is fixed beforehand, in passes over the data: a network that was best after nine
    passes over the training patients takes nine over all of them.

    Args:
        found: the search.
        trial: what is trained again.
        parameters: its hyperparameters; a sample that they name is as large whoever trains.
        roles: slices of each role of its dataset.
        patients: who trains.
        rehearsal: seeds of an earlier retraining whose validation patients were held out; the median counts.
    """
    granted, schedule = searched_budget(found), SCHEDULES[parameters.schedule]
    every = granted.report_every
    whole = schedule.retraining_factor * parameters.images_within(granted.images)
    if patients == "train":
        times = f"{schedule.retraining_factor} times " if schedule.retraining_factor > 1 else ""
        at_most = "" if schedule.patience is None else " at most, ended by patience"
        return RetrainCourse(parameters, whole, every, f"{times}that of the search{at_most}")
    if schedule.patience is None:
        seen, source = whole, "a retraining on the training patients alone"
    elif rehearsal:
        seen = statistics.median_low(run.best_images_seen for run in rehearsal)
        source = f"the best report of the retraining without the validation patients (median of {len(rehearsal)})"
    else:
        # A trial that was stopped and that a race has chosen came to its end in the confirmation alone.
        best = trial.best_report if trial.state == "completed" else None
        seen = (best.fold or best).images_seen if best else parameters.images_within(granted.images)
        source = f"the best report of trial {trial.number}" if best else f"the whole budget of trial {trial.number}"
    held = sum(roles[role].slices for role in roles_of(patients))
    trained = float(roles["train"].slices)
    if not rehearsal and schedule.patience is not None and (folds := found.objective.parts):
        trained = held * (folds - 1) / folds  # of each network of the trial, on average
    share = 1.0 if parameters.training_slices else held / trained
    budget = f"as many passes over the data as {source}, which had seen {seen:,} images"
    return RetrainCourse(parameters, round(seen * share), every, budget)


def parse_views(names: Sequence[str]) -> tuple[TtaView, ...]:
    """The views of test-time augmentation by their names.

    Raises:
        ConfigError: there is no such view, or one is named twice.
    """
    views = tuple(view for view in get_args(TtaView) if view in names)
    if len(views) < len(names):
        known = ", ".join(get_args(TtaView))
        raise ConfigError(f"--tta: each must be one of {known}, named once, got {', '.join(names)}; correct it")
    return views


def check_views(views: Sequence[TtaView], trials: Iterable[NetworkFields]) -> None:
    """Refuse views that none of these trials could be shown.

    Raises:
        ConfigError: neighbors would be exchanged where there are none.
    """
    if "depth_flip" in views and not any(trial.neighbors for trial in trials):
        raise ConfigError(
            "--tta depth_flip: exchanges the neighbors below and above a slice, got neighbors: 0; leave it out"
        )


def searched_budget(found: SearchResult) -> Budget:
    """How long the trials of a search trained.

    Raises:
        IntegrityError: search.json does not say so.
    """
    try:
        return Budget.model_validate(found.record.space.get("budget"))
    except ValidationError as error:
        raise IntegrityError(
            f"{found.files.search}: the space must have a budget, got {first_problem(error)}; restore the file"
        ) from None


def folder_names(plan: Mapping[str, Any], parameters: Hyperparameters) -> list[str]:
    """The folder of a retraining, named by its identity; then as version 0.1.0 named it.

    Args:
        plan: what every worker is told; its parameters, folder, placement and precision are not read: folder and
            placement change no weight, and the precision is the search's own, which never changes.
        parameters: the draw.
    """
    identity = parameters.identity()
    told = [identity]
    if identity.keys() <= _FIELDS_OF_0_1_0:
        defaults = {name: field.default for name, field in known_fields().items()}
        told.append({name: getattr(parameters, name, defaults[name]) for name in _FIELDS_OF_0_1_0})
    named = {key: value for key, value in plan.items() if key != "precision"}
    plans = [{**named, "folder": "", "placement": "", "parameters": one} for one in told]
    return [f"retraining-{sha256(json.dumps(one, sort_keys=True).encode())[:12]}" for one in plans]


def spread(runs: Sequence[SeedRun]) -> SeedSpread | None:
    """How the seeds that were measured lie apart; None if none was."""
    values = [run.value for run in runs if run.value is not None]
    if not values:
        return None
    return SeedSpread(
        seeds=len(values),
        failed=sum(bool(run.reason) for run in runs),
        mean=statistics.fmean(values),
        std=statistics.stdev(values) if len(values) > 1 else None,
        low=min(values),
        high=max(values),
    )


def best_runs(runs: Iterable[SeedRun], objective: Objective) -> list[SeedRun]:
    """Those that were measured, by SEED_RULE best first, the earliest of equals."""
    measured = [(run.value, run) for run in runs if run.value is not None and math.isfinite(run.value)]
    return [run for _, run in sorted(measured, key=lambda found: -objective.sign * found[0])]
