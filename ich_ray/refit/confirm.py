"""Confirm the best trials of a search on other patients or seeds, and choose among them.

A search's best score is partly luck: of many trials it is the highest on one set of validation patients. Here the best
train again without early stopping, on folds (of the train and validation patients) or with new seeds: in a race within
a share of the search's images (racing.py), or so many of them on every fold or with every seed, to choose by the mean.
The trainings are a search folder of their own, `SEARCH/final/confirm-folds/` or `confirm-seeds/`, with the same ledger,
so they can be killed and gone on with, read by `ich-ray results`, and extended to more trials or folds. What is chosen
stands in confirm.json. A search with folds has trained on these patients, too; the folds here are those of the dataset,
which divide them otherwise, and the networks are new. Calibration and test patients are never opened.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Unpack

from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.folds import HeldOut, check_folds
from ich_ray.errors import ConfigError, IchRayError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.progress import say
from ich_ray.refit.confirm_race import (
    SHARE,
    Runner,
    dropped,
    standing_trainings,
    trainings_allowed,
    unusable,
)
from ich_ray.refit.confirmation import Candidate, Confirmation, Kind
from ich_ray.refit.race_record import LEVEL, RaceNote
from ich_ray.refit.racing import Race
from ich_ray.refit.retrain_record import searched_budget
from ich_ray.results import SearchResult, open_network_search, open_search
from ich_ray.runtime import connected
from ich_ray.search.best_states import keep_only
from ich_ray.search.ledger import Ledger, differences, trial_seed
from ich_ray.search.request import TrialResources
from ich_ray.search.space.space import Listed
from ich_ray.search.space.yaml_file import SearchSpace, parse_space
from ich_ray.search.value_model import ValueModel
from ich_ray.storage import Location, SearchFiles, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ich_ray.search.request import TrialKeywords
    from ich_ray.search.tune.trial import Trainer
    from ich_ray.search_records import SearchRecord
    from ich_ray.trial_records import Objective, TrialResult

__all__ = ["DEFAULT_FOLDS", "confirm"]

DEFAULT_FOLDS = 5
# A number that no trial of a search has: its seed begins a confirmation's own, so no training repeats another's seed.
_SEED_OF_CONFIRMATION = 2**31


def confirm(
    search: Location,
    *,
    top: int | None = None,
    folds: int | None = None,
    seeds: int | None = None,
    budget: float | None = None,
    address: str | None = None,
    _trainer: Trainer | None = None,
    **resources: Unpack[TrialKeywords],
) -> Confirmation:
    """Train the best trials of a search again and choose among them.

    Retrain and calibrate then use the chosen one. Run it again to go on after an interruption or a failure, or with
    more to spend: what is done is not done twice. Weights are kept of the chosen trial's trainings alone.

    Args:
        search: the search folder.
        top: so many of the completed trials, each on every fold or with every seed, and the best mean; all of them if
            there are fewer, which is said. If not given, a race decides who trains how often.
        folds: hold out so many of the dataset's folds one after another; 5 if neither this nor `seeds` is given.
        seeds: train on the search's own train and validation patients, with so many new seeds.
        budget: what a race may spend, as a share of the search's images; 0.15 if not given.
        address: a Ray cluster; this machine if not given.
        resources: of each training, by the names of `ich_ray.search.request.TrialResources`.

    Raises:
        ConfigError: no search, a dataset without folds, both `folds` and `seeds`, both `top` and `budget`, or numbers
            that cannot be met.
        IchRayError: no completed trial, it was interrupted, or no candidate got through all its trainings.
    """
    if folds is not None and seeds is not None:
        raise ConfigError("--folds, --seeds: one of them must be given, got both; choose what shall differ")
    if top is not None and budget is not None:
        raise ConfigError("--top, --budget: one of them must be given, got both; with --top all train equally often")
    held = _held(resources)
    found = open_network_search(search)
    completed = _top(found, 1 if top is None else top)
    space = _space(found)
    share = SHARE if budget is None else budget
    images = sum(trial.images_seen for trial in found.trials)
    allowed = trainings_allowed(share, images, space.budget.images) if top is None else 0
    dataset = PreparedDataset.of_search(found)
    kind: Kind = "seeds" if seeds is not None else "folds"
    parts = _seeds(seeds) if seeds is not None else check_folds(dataset, DEFAULT_FOLDS if folds is None else folds)
    race = _race(found, kind) if top is None else None
    candidates = race.trials if race else completed
    if race:
        say(f"confirm: a race of {found.record.name}, at most {allowed} trainings, {share:.0%} of the search's images")
    else:
        numbers = ", ".join(str(trial.number) for trial in candidates)
        say(f"confirm: trial {numbers} of {found.record.name} again, each with {len(parts)} {kind}")
    files = found.files.confirming(kind)

    from ich_ray.search.cluster_resources import ClusterResources
    from ich_ray.search.preflight import check_machines, check_objective, check_workers, plan_slots

    for fold in (part for part in parts if part is not None):
        check_objective(HeldOut(dataset, fold).role("validation"), found.objective)
    drawn = [Hyperparameters.model_validate(trial.parameters) for trial in candidates]

    from ich_ray.search.run import locked, run_listed

    with locked(files), connected(address):
        slots = plan_slots(ClusterResources().machines(), held)
        check_workers(dataset, drawn, slots.workers)
        check_machines(dataset, files.root)
        ledger = _ledger(found, space, files, 0 if race else len(candidates) * len(parts))

        def train(listed: list[Listed]) -> None:
            if (wanted := len(ledger.trials) + len(listed)) > ledger.record.wanted:
                ledger.amend(trials=wanted)
            hint = "confirm again to go on"
            keys: dict[str, Any] = {"resume_hint": hint, "trainer": _trainer, "keep_weights": True, "grow": held.grow}
            run_listed(space, dataset, ledger, slots, listed, **keys)

        if race:
            Runner(race, ledger, parts, allowed=allowed, at_a_time=slots.concurrent).run(train)
        else:
            train(_missing(ledger, candidates, parts))
        trained = open_search(files.root)
        if race:
            confirmation = _raced(found, trained, race, kind, share=share, allowed=allowed)
        else:
            confirmation = _confirmation(found, trained, candidates, kind, parts)
        write_json(found.files.confirmation, confirmation.model_dump(mode="json"))
        keep_only(files.weights, (one.seed for one in trained.trials if one.repeats == confirmation.chosen))
    return confirmation


def _held(resources: TrialKeywords) -> TrialResources:
    """What each training holds."""
    held = TrialResources(**resources)
    if held.gpus_per_trial == "auto":
        raise ConfigError(
            "--gpus-per-trial auto: shares are planned for the trials of a search, got it for confirm; give a number, "
            "or leave it out for 1 where there are GPUs"
        )
    return held


def _top(found: SearchResult, top: int) -> list[TrialResult]:
    """The best completed trials, best first; at least one."""
    if top < 1:
        raise ConfigError(f"--top: must be at least 1, got {top}; 3 is usual")
    found.best()  # says so if there is none
    completed = [trial for trial in found.ranked() if trial.state == "completed" and trial.value is not None]
    if len(completed) < top:
        say(f"confirm: only {len(completed)} of the {top} trials asked for have completed, those are confirmed")
    if unfinished := found.count("running"):
        say(f"confirm: {unfinished} trials of the search have not ended and are left out")
    return completed[:top]


def _seeds(seeds: int) -> list[int | None]:
    if seeds < 2:
        raise ConfigError(f"--seeds: must be at least 2, so that there is a spread, got {seeds}; 3 is usual")
    return [None] * seeds


def _race(found: SearchResult, kind: Kind) -> Race:
    """Among the trials that have ended, those that were stopped early too."""
    space = parse_space(found.record.space, str(found.files.search)).with_objective(found.objective)
    model = ValueModel(space, [trial for trial in found.trials if trial.state != "running"])
    return Race(model, model.trials, by_fold=kind == "folds")


def _ledger(found: SearchResult, space: SearchSpace, files: SearchFiles, trials: int) -> Ledger:
    """Of the confirmation, begun or gone on with."""
    asked = _record(found, space, trials)
    if not files.search.exists():
        return Ledger.create(files.root, asked)
    ledger = Ledger.open(files.root)
    if changed := differences(ledger.record, asked):
        raise ConfigError(
            f"{files.root}: a confirmation goes on for the search it was begun for, got another one "
            f"({'; '.join(changed)}); remove the folder to begin anew"
        )
    return ledger


def _space(found: SearchResult) -> SearchSpace:
    """The search's space without early stopping and folds: every training is one network, compared at its end."""
    source, images = found.record.space, searched_budget(found).images
    budget = {**source["budget"], "first_rung": images}
    budget.pop("rule", None)  # the usual one, which without rungs stops nobody
    if "objective" in source:
        one = {key: value for key, value in source["objective"].items() if key in {"metric", "mode"}}
        source = {**source, "objective": one}
    name = f"{str(source.get('name', found.record.name))[:72]}-confirm"  # a name has at most 80 characters
    return parse_space({**source, "name": name, "budget": budget}, str(found.files.search))


def _record(found: SearchResult, space: SearchSpace, trials: int) -> SearchRecord:
    seed = trial_seed(found.record.seed, _SEED_OF_CONFIRMATION)
    changes: dict[str, Any] = {"name": space.name, "space": space.source, "seed": seed, "trials": trials}
    changes |= {"dataset": found.record.dataset_folder, "folds": None}
    return found.record.model_copy(update={**changes, "created": time.time(), "amendments": ()})


def _missing(ledger: Ledger, candidates: Sequence[TrialResult], parts: Sequence[int | None]) -> list[Listed]:
    """What the ledger lacks, part after part, so that all candidates come equally far.

    A training that failed is lacking, too, unless it diverged: that it would do again.
    """
    ended = (trial for trial in ledger.trials.values() if trial.state != "failed" or trial.reason == "diverged")
    there = Counter((trial.repeats, trial.fold) for trial in ended)
    missing = []
    for part in parts:
        for candidate in candidates:
            if there[candidate.number, part]:
                there[candidate.number, part] -= 1
            else:
                missing.append(Listed(candidate.parameters, candidate.number, part))
    return missing


def _confirmation(
    found: SearchResult,
    trained: SearchResult,
    candidates: Sequence[TrialResult],
    kind: Kind,
    parts: Sequence[int | None],
) -> Confirmation:
    trainings = [_trainings(trained, candidate, parts) for candidate in candidates]
    judged = [_judged(candidate, ended) for candidate, ended in zip(candidates, trainings, strict=True)]
    used = [training for ended in trainings for training in ended]
    return Confirmation(
        kind=kind,
        parts=len(parts),
        objective=found.objective,
        chosen=_chosen(judged, found.objective, trained),
        candidates=tuple(judged),
        images=sum(training.images_seen for training in used),
        cost_gpu_s=sum(training.cost_gpu_s for training in used),
        created=time.time(),
    )


def _raced(
    found: SearchResult, trained: SearchResult, race: Race, kind: Kind, *, share: float, allowed: int
) -> Confirmation:
    """What a race has shown.

    Its candidates are the search's favorite, those that had a chance when it began, and whoever was trained.
    """
    spent = [one for one in trained.trials if one.state in {"completed", "failed"} and one.repeats is not None]
    ended = standing_trainings(spent)
    standings, out = dropped(race, ended)
    chosen = race.chosen(ended, unusable(ended), standing=standings[-1])
    if chosen is None or all(training.state == "failed" for training in ended):
        raise _nobody_through(trained)
    sign = found.objective.sign
    judged, named = [], {found.best().number, chosen.number, *(one.repeats for one in ended)}
    for trial in found.ranked():
        place = race.place_of(trial.number)
        own = [one for one in ended if one.repeats == trial.number]
        if place is None or not (trial.number in named or standings[0].chance[place] >= LEVEL):
            continue
        changes = {"estimate": sign * float(standings[-1].mean[place]), "p_best": float(standings[-1].best[place])}
        left = {"dropped": out.get(trial.number)} if trial.number != chosen.number else {}
        judged.append(_judged(trial, own).model_copy(update=changes | left))
    return Confirmation(
        kind=kind,
        parts=max(len(candidate.values) for candidate in judged),
        objective=found.objective,
        chosen=chosen.number,
        candidates=tuple(judged),
        images=sum(training.images_seen for training in spent),
        cost_gpu_s=sum(training.cost_gpu_s for training in spent),
        created=time.time(),
        race=RaceNote(share=share, allowed=allowed, trainings=len(ended)),
    )


def _trainings(trained: SearchResult, candidate: TrialResult, parts: Sequence[int | None]) -> list[TrialResult]:
    """The trainings of one candidate in the order of the parts; those that failed if there are no others."""
    own = sorted(
        (trial for trial in trained.trials if trial.repeats == candidate.number), key=lambda one: one.state == "failed"
    )
    return [own.pop(next(at for at, trial in enumerate(own) if trial.fold == part)) for part in parts]


def _judged(candidate: TrialResult, trainings: Sequence[TrialResult]) -> Candidate:
    values = tuple(training.value if training.state == "completed" else None for training in trainings)
    there = [value for value in values if value is not None]
    assert candidate.value is not None  # noqa: S101  (only such trials are candidates)
    return Candidate(
        trial=candidate.number,
        selection_value=candidate.value,
        values=values,
        mean=statistics.fmean(there) if there else None,
        spread=statistics.stdev(there) if len(there) > 1 else None,
    )


def _chosen(judged: Sequence[Candidate], objective: Objective, trained: SearchResult) -> int:
    """The best mean among the candidates that got through all their trainings; of equals, the search's favorite."""
    whole = [candidate for candidate in judged if None not in candidate.values]
    if not whole:
        raise _nobody_through(trained)
    return max(whole, key=lambda candidate: objective.sign * (candidate.mean or 0.0)).trial


def _nobody_through(trained: SearchResult) -> IchRayError:
    return IchRayError(
        f"{trained.files.root}: one candidate at least must get through all its trainings, got none; "
        f"`ich-ray results {trained.files.root}` says why they failed; remove the cause and confirm again, or "
        "confirm more with --top"
    )
