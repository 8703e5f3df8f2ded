"""The networks that a confirmation has trained of the chosen trial, as one bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ich_ray.bundle.members import MOST_MEMBERS
from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.folds import folds_of
from ich_ray.errors import ConfigError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.progress import say
from ich_ray.refit.bundle_builder import make_bundle
from ich_ray.refit.confirm import DEFAULT_FOLDS
from ich_ray.refit.confirmation import chosen_trial, confirmed
from ich_ray.refit.retrain_record import MemberRun, Retraining, SeedRun, check_views, parse_views, searched_budget
from ich_ray.results import open_search
from ich_ray.search.best_states import best_state
from ich_ray.storage import Location, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ich_ray.bundle.bundle import Bundle
    from ich_ray.refit.confirmation import Kind
    from ich_ray.results import SearchResult
    from ich_ray.trial_records import TrialResult
    from ich_ray.vocabulary import Patients

__all__ = ["bundle_confirmed"]


def bundle_confirmed(search: Location, *, tta: Sequence[str] = ()) -> Bundle:
    """Make an ensemble of the networks that confirmation has trained of its choice, not calibrated yet.

    Each has the weights of its best report. Those of folds have seen all train and validation patients between them,
    each all but those of its fold; those of seeds the training patients. Writes retraining.json.

    Args:
        search: the search folder.
        tta: see `retrain`.

    Raises:
        ConfigError: nothing was confirmed, or the weights of fewer than two trainings of its choice are there, as where
            a race trained it once, another was the choice before, or a version before weights were kept.
    """
    views, found = parse_views(tta), open_search(search)
    again = confirmed(found.files)
    if again is None:
        raise ConfigError(
            f"{found.files.root}: --from-confirmation takes the networks of a confirmation, got none; run `ich-ray "
            "confirm` first, or leave it out"
        )
    trial, dataset = chosen_trial(found), PreparedDataset.of_search(found)
    trained = open_search(found.files.confirming(again.kind).root)
    runs = _trainings(trained, trial.number)
    if len(runs) < 2:
        raise _too_few(found, trained, trial.number, again.kind, len(runs))
    parameters = Hyperparameters.model_validate(trial.parameters)
    check_views(views, [parameters])
    patients: Patients = "train+validation" if again.kind == "folds" else "train"
    first, *others = [_run(one) for one in runs]
    budget = searched_budget(trained)
    retraining = Retraining(
        trial=trial.number,
        parameters=parameters.model_dump(),
        workers=1,
        reports=runs[0].reports,
        best_images_seen=first.best_images_seen,
        stopped_early=False,
        seconds=sum(one.seconds for one in (first, *others)),
        device=first.device,
        setup=first.setup,
        patients=patients,
        images=parameters.images_within(budget.images),
        budget=f"that of the search, for each of {len(runs)} {again.kind} of its confirmation",
        seed=first.seed,
        runs=(first,),
        members=tuple(MemberRun(trial=trial.number, parameters=parameters.model_dump(), run=one) for one in others),
    )
    say(f"  ensemble: {len(runs)} networks of trial {trial.number}, as confirmation has trained them")
    states = [best_state(trained.files.weights_of(one.seed), one) for one in runs]
    bundle = make_bundle(found, trial, parameters, dataset, states[0], retraining, views, member_states=states[1:])
    write_json(found.files.retraining, retraining.model_dump(mode="json"))
    return bundle


def _trainings(trained: SearchResult, number: int) -> list[TrialResult]:
    """Trainings of the chosen trial whose weights are there, in the order of folds or seeds."""
    ended = [one for one in trained.trials if one.repeats == number and one.state == "completed"]
    there = [one for one in ended if trained.files.weights_of(one.seed).exists()]
    if 2 <= len(there) < len(ended):
        say(f"  ensemble: {len(ended) - len(there)} of {len(ended)} networks are left out, their weights are gone")
    return sorted(there, key=lambda one: (-1 if one.fold is None else one.fold, one.number))[:MOST_MEMBERS]


def _too_few(found: SearchResult, trained: SearchResult, number: int, kind: Kind, there: int) -> ConfigError:
    ended = sum(one.repeats == number and one.state == "completed" for one in trained.trials)
    said = f"{trained.files.root}: --from-confirmation takes two trainings of trial {number} at least, got"
    if ended > there:
        return ConfigError(
            f"{said} the weights of {there} of {ended}: others than those of the chosen trial go, and are there again "
            "when it has trained again; remove the folder and confirm again, or use --ensemble, which trains"
        )
    parts = min(DEFAULT_FOLDS, len(folds_of(PreparedDataset.of_search(found)))) if kind == "folds" else 3
    return ConfigError(
        f"{said} {ended} that completed; `ich-ray confirm {found.files.root} --top 3 --{kind} {parts}` goes on in this "
        "folder until all have as many, or use --ensemble, which trains"
    )


def _run(training: TrialResult) -> SeedRun:
    best = training.best_report
    return SeedRun(
        seed=training.seed,
        value=training.value,
        best_images_seen=best.images_seen if best else training.images_seen,
        images_seen=training.images_seen,
        seconds=training.reports[-1].elapsed_s if training.reports else 0.0,
        device=training.setup.device if training.setup else "",
        setup=training.setup,
        fold=training.fold,
    )
