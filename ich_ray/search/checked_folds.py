"""Check the folds of a search before it starts: decide `auto`, and see that patients suffice.

The rule of `auto`: below 15 positive validation patients five folds, else none. On phantoms three times the images left
two fifths of the regret of one validation role with 7 of them, and all of it with 24 (docs/benchmarks.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ich_ray.data.folds import SearchFolds, pool_of
from ich_ray.errors import ConfigError
from ich_ray.progress import say
from ich_ray.search.space.space import sampled
from ich_ray.statistics.metrics import METRICS
from ich_ray.vocabulary import SUBTYPES

if TYPE_CHECKING:
    from ich_ray.data.dataset import PreparedDataset, SliceSet
    from ich_ray.search.preflight import Slots
    from ich_ray.search.space.space import SearchSpace
    from ich_ray.search_records import SearchRecord
    from ich_ray.trial_records import Objective

__all__ = ["check_folds_of_search", "check_single_worker", "decided"]

ENOUGH_POSITIVE_PATIENTS = 15
FOLDS = 5


def decided(space: SearchSpace, dataset: PreparedDataset, begun: SearchRecord | None) -> SearchSpace:
    """The space with `folds: auto` decided: as the search was begun, or by the dataset."""
    if space.objective.folds != "auto":
        return space
    if begun is not None and begun.folds is not None:
        return space.with_objective(space.objective.model_copy(update={"folds": begun.folds}))
    found = dataset.role("validation").positive_patients("any")
    most = _most_folds(dataset)
    folds = min(FOLDS, most) if found < ENOUGH_POSITIVE_PATIENTS and most > 1 and not dataset.manifest.leak else 0
    against = "fewer than" if found < ENOUGH_POSITIVE_PATIENTS else "not fewer than"
    why = f"{found} validation patients have a haemorrhage, {against} {ENOUGH_POSITIVE_PATIENTS}"
    what = f"trials are judged by {folds} folds" if folds else "trials are judged by the validation patients alone"
    say(f"folds: auto: {why}: {what}")
    return space.with_objective(space.objective.model_copy(update={"folds": folds}))


def check_folds_of_search(space: SearchSpace, dataset: PreparedDataset, seed: int) -> None:
    """Check that train and validation patients can be divided into the folds of a search.

    Raises:
        ConfigError: they cannot; why.
    """
    objective = space.objective
    if not objective.parts:
        return
    where = dataset.files.root
    if dataset.manifest.leak:
        raise ConfigError(
            f"objective.folds: folds part patients, got a dataset divided by slice in {where}; prepare it by patient"
        )
    if objective.parts > (most := _most_folds(dataset)):
        raise ConfigError(
            f"objective.folds: each fold needs a patient with and one without a haemorrhage, got {objective.parts} "
            f"folds where {where} has {most} such train and validation patients; ask for at most {most}"
        )
    folds = SearchFolds(dataset, objective.parts, objective.repeats, seed)
    views = [folds.view(number) for number in range(len(folds))]
    for number, view in enumerate(views):
        for role in ("train", "validation"):
            labels = view.role(role).labels
            if not 0 < labels.sum() < len(labels):
                raise ConfigError(
                    f"objective.folds: slices with and without haemorrhage must be in and outside each fold, got "
                    f"{int(labels.sum())} positive of {len(labels)} for fold {number} of {where}; ask for fewer folds"
                )
    for view in views[:: objective.parts]:
        _check_label(view.role("validation"), objective)
    smallest = min(len(view.role("train")) for view in views)
    if (asked := max((trial.training_slices for trial in sampled(space)), default=0)) > smallest:
        raise ConfigError(
            f"training_slices: at most the {smallest:,} slices outside a fold of {where} can be drawn, got {asked:,}; "
            "lower it, or ask for more folds"
        )


def _check_label(held_out: SliceSet, objective: Objective) -> None:
    """The first fold must measure what trials are ranked by, or each of them would fail at its first report."""
    label = METRICS[objective.metric].label
    if not label:
        return
    targets = held_out.targets(SUBTYPES if label == "all" else (label,))
    if not ((targets == 1).any(0) & (targets == 0).any(0)).any():
        positive, known = int((targets == 1).any(1).sum()), int((targets >= 0).any(1).sum())
        raise ConfigError(
            f"objective.folds: {objective.metric} needs slices with and without "
            f"{'a subtype' if label == 'all' else label} in the first fold, got {positive} positive of {known} in "
            f"{held_out.dataset.files.root}; ask for fewer folds, or give another --seed"
        )


def check_single_worker(space: SearchSpace, slots: Slots) -> None:
    """Refuse folds for trials of several workers, which send no logits to the process of their trial.

    Raises:
        ConfigError: both are asked for.
    """
    if space.objective.networks > 1 and slots.workers > 1:
        raise ConfigError(
            f"objective.folds: a trial with folds trains in one process, got {slots.workers} workers a trial; give "
            "--gpus-per-trial 1 or --workers-per-trial 1, or leave out folds"
        )


def _most_folds(dataset: PreparedDataset) -> int:
    """Patients of the rarer kind, of those who may train or validate."""
    pool = pool_of(dataset)
    positive = pool.positive_patients("any")
    return min(positive, len(set(pool.patients)) - positive)
