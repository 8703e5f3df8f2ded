"""Which networks an ensemble is made of: those of other trials, or of other seeds of the chosen one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ich_ray.bundle.members import MOST_MEMBERS, differing_inputs
from ich_ray.data.folds import HeldOut, trained_and_validated
from ich_ray.data.sampling import stratified
from ich_ray.errors import ConfigError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.progress import say
from ich_ray.refit.confirmation import confirmed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.refit.confirmation import Candidate
    from ich_ray.results import SearchResult
    from ich_ray.trial_records import TrialResult
    from ich_ray.vocabulary import Patients

__all__ = ["check_ensemble", "class_weight_shifts", "other_trials"]


def check_ensemble(ensemble: int, seeds: int) -> None:
    """Refuse a number of networks that cannot be had.

    Raises:
        ConfigError: it cannot be.
    """
    if not 1 <= ensemble <= MOST_MEMBERS:
        raise ConfigError(f"--ensemble: must be from 1 to {MOST_MEMBERS}, got {ensemble}; 3 is usual")
    if 1 < seeds < ensemble:
        raise ConfigError(
            f"--ensemble {ensemble}: must be at most --seeds, whose best networks it is then made of, got {seeds}; "
            "raise --seeds, or leave it out to take the best trials"
        )


def other_trials(found: SearchResult, chosen: TrialResult, count: int) -> list[TrialResult]:
    """The best trials that may stand beside the chosen one.

    Those that were confirmed come first, by their mean, or after a race by their estimate, which unlike the mean of
    other folds can be compared; not those whose training failed there. Says which are left out for their input, and if
    there are fewer than `count`.
    """
    first = Hyperparameters.model_validate(chosen.parameters)
    taken: list[TrialResult] = []
    for trial in _by_rank(found):
        if len(taken) == count:
            break
        parameters = Hyperparameters.model_validate(trial.parameters)
        if trial.number == chosen.number or any(parameters.is_same(one.parameters) for one in (chosen, *taken)):
            continue
        if field := differing_inputs(first, parameters):
            say(
                f"  ensemble: trial {trial.number} is left out, its {field} is {getattr(parameters, field)} and that "
                f"of trial {chosen.number} {getattr(first, field)}"
            )
            continue
        taken.append(trial)
    if len(taken) < count:
        say(f"  ensemble: only {1 + len(taken)} of {1 + count} networks, no other trial may stand beside them")
    return taken


def _by_rank(found: SearchResult) -> Iterator[TrialResult]:
    again, sign = confirmed(found.files), found.objective.sign
    by_number = {trial.number: trial for trial in found.trials}
    candidates = [one for one in again.candidates if one.trial in by_number] if again else []
    failed = {one.trial for one in candidates if _failed(one)}
    judged = [one for one in candidates if one.mean is not None and one.trial not in failed]
    ranked = sorted(judged, key=lambda one: -sign * (one.estimate if one.estimate is not None else one.mean or 0.0))
    yield from (by_number[one.trial] for one in ranked)
    told = failed | {one.trial for one in ranked}
    yield from (
        trial
        for trial in found.ranked()
        if trial.number not in told and trial.state == "completed" and trial.value is not None
    )


def _failed(candidate: Candidate) -> bool:
    """In its confirmation, and not made good."""
    if candidate.estimate is None:
        return None in candidate.values
    return candidate.dropped is not None and bool(candidate.dropped.reason)


def class_weight_shifts(
    parameters: Hyperparameters, dataset: PreparedDataset, patients: Patients, seed: int, fold: int | None = None
) -> tuple[float, ...]:
    """What takes the class weights of a training out of its logits, for each label, `any` last.

    A training that held a fold out weighed the slices of the others.
    """
    import torch

    from ich_ray.training.loss import CrossEntropy
    from ich_ray.training.targets import known_targets

    slices = trained_and_validated(dataset, patients)[0] if fold is None else HeldOut(dataset, fold).role("train")
    if parameters.training_slices:
        slices = stratified(slices, parameters.training_slices, seed)
    return CrossEntropy(parameters, torch.from_numpy(known_targets(parameters, slices))).shifts
