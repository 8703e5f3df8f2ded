"""Confirm the best trials of a search on other patients or seeds, and choose by the mean.

A search's best score is partly luck: of many trials it is the highest on one set of validation patients. Here the top k
train again without early stopping, each on every fold (of the train and validation patients) or with several new seeds.
The trainings are a search folder of their own, `SEARCH/final/confirm-folds/` or `confirm-seeds/`, with the same ledger,
so they can be killed and gone on with, read by `ich-ray results`, and extended to more trials or folds. What is chosen
stands in confirm.json. A search with folds has trained on these patients, too; the folds here are those of the dataset,
which divide them otherwise, and the networks are new. Calibration and test patients are never opened.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, Unpack

from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.folds import HeldOut, check_folds
from ich_ray.errors import ConfigError, IchRayError, IntegrityError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.progress import say
from ich_ray.refit.retrain_record import searched_budget
from ich_ray.results import Objective, SearchRecord, SearchResult, TrialResult, open_network_search, open_search
from ich_ray.runtime import connected
from ich_ray.search.ledger import Ledger, differences, trial_seed
from ich_ray.search.request import TrialResources
from ich_ray.search.space.space import Listed
from ich_ray.search.space.yaml_file import SearchSpace, parse_space
from ich_ray.storage import Count, Location, Record, SearchFiles, Seconds, Time, read_record, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ich_ray.search.preflight import Slots
    from ich_ray.search.request import TrialKeywords
    from ich_ray.search.tune.trial import Trainer

__all__ = ["Candidate", "Confirmation", "chosen_trial", "confirm", "confirmed"]

DEFAULT_FOLDS = 5
# A number that no trial of a search has: its seed begins a confirmation's own, so no training repeats another's seed.
_SEED_OF_CONFIRMATION = 2**31

Kind = Literal["folds", "seeds"]


class Candidate(Record):
    """One of the top k.

    Attributes:
        trial: its number in the search.
        selection_value: the score it was picked by, the best of many and therefore optimistic.
        values: the best report of each fold or seed, in their order; None where the training failed.
        mean: and `spread`, the sample standard deviation, of those that are there.
    """

    trial: Count
    selection_value: float
    values: tuple[float | None, ...]
    mean: float | None
    spread: float | None


class Confirmation(Record):
    """confirm.json.

    Attributes:
        kind: what differs between the trainings of a candidate; there are `parts` of them.
        chosen: the number of the trial with the best mean, among those none of whose trainings failed.
        candidates: in the order of the search, best first.
        images: seen by all trainings, `cost_gpu_s` the accelerator seconds they took.
    """

    format: Literal[1] = 1
    kind: Kind
    parts: Count
    objective: Objective
    chosen: Count
    candidates: tuple[Candidate, ...]
    images: Count
    cost_gpu_s: Seconds
    created: Time


def confirmed(files: SearchFiles) -> Confirmation | None:
    """The confirmation of a search, if there is one.

    Raises:
        IntegrityError: confirm.json does not match its format.
    """
    if not files.confirmation.exists():
        return None
    return read_record(files.confirmation, Confirmation, "remove the file and confirm again")


def chosen_trial(found: SearchResult) -> TrialResult:
    """The trial that confirmation chose, else the best of the search.

    Raises:
        IntegrityError: confirm.json does not match its format, or this search.
    """
    confirmation = confirmed(found.files)
    if confirmation is None:
        return found.best()
    for trial in found.trials:
        if trial.number == confirmation.chosen:
            return trial
    raise IntegrityError(
        f"{found.files.confirmation}: 'chosen' must be the number of a trial of this search, got "
        f"{confirmation.chosen}; confirm again"
    )


def confirm(
    search: Location,
    *,
    top: int = 3,
    folds: int | None = None,
    seeds: int | None = None,
    address: str | None = None,
    _trainer: Trainer | None = None,
    **resources: Unpack[TrialKeywords],
) -> Confirmation:
    """Train the best trials of a search again and choose on the mean.

    Retrain and calibrate then use the chosen one. Run it again to go on after an interruption or a failure, or with a
    larger `top` or more folds: what is done is not done twice.

    Args:
        search: the search folder.
        top: how many of the completed trials; all of them if there are fewer, which is said.
        folds: hold out so many of the dataset's folds one after another; 5 if neither this nor `seeds` is given.
        seeds: train on the search's own train and validation patients, with so many new seeds.
        address: a Ray cluster; this machine if not given.
        resources: of each training, by the names of `ich_ray.search.request.TrialResources`.

    Raises:
        ConfigError: no search, a dataset without folds, both `folds` and `seeds`, or numbers that cannot be met.
        IchRayError: no completed trial, it was interrupted, or no candidate got through all its trainings.
    """
    if folds is not None and seeds is not None:
        raise ConfigError("--folds, --seeds: one of them must be given, got both; choose what shall differ")
    found = open_network_search(search)
    candidates = _top(found, top)
    dataset = PreparedDataset.of_search(found)
    kind: Kind = "seeds" if seeds is not None else "folds"
    parts = _seeds(seeds) if seeds is not None else check_folds(dataset, DEFAULT_FOLDS if folds is None else folds)
    numbers = ", ".join(str(trial.number) for trial in candidates)
    say(f"confirm: trial {numbers} of {found.record.name} again, each with {len(parts)} {kind}")
    files, space = found.files.confirming(kind), _space(found)

    from ich_ray.search.cluster_resources import ClusterResources
    from ich_ray.search.preflight import check_machines, check_objective, check_workers, plan_slots
    from ich_ray.search.run import locked

    for fold in (part for part in parts if part is not None):
        check_objective(HeldOut(dataset, fold).role("validation"), found.objective)
    drawn = [Hyperparameters.model_validate(trial.parameters) for trial in candidates]
    with locked(files), connected(address):
        slots = plan_slots(ClusterResources().machines(), TrialResources(**resources))
        check_workers(dataset, drawn, slots.workers)
        check_machines(dataset, files.root)
        _train(found, space, files, dataset, candidates, parts, slots, _trainer)
    confirmation = _confirmation(found, open_search(files.root), candidates, kind, parts)
    write_json(found.files.confirmation, confirmation.model_dump(mode="json"))
    return confirmation


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


def _train(
    found: SearchResult,
    space: SearchSpace,
    files: SearchFiles,
    dataset: PreparedDataset,
    candidates: Sequence[TrialResult],
    parts: Sequence[int | None],
    slots: Slots,
    trainer: Trainer | None,
) -> None:
    """Run those trainings that the confirmation's ledger does not have yet."""
    from ich_ray.search.run import run_listed

    asked = _record(found, space, len(candidates) * len(parts))
    if files.search.exists():
        ledger = Ledger.open(files.root)
        if changed := differences(ledger.record, asked):
            raise ConfigError(
                f"{files.root}: a confirmation goes on for the search it was begun for, got another one "
                f"({'; '.join(changed)}); remove the folder to begin anew"
            )
    else:
        ledger = Ledger.create(files.root, asked)
    listed = _missing(ledger, candidates, parts)
    if (wanted := len(ledger.trials) + len(listed)) > ledger.record.wanted:
        ledger.amend(trials=wanted)
    hint = "confirm again to go on"
    run_listed(space, dataset, ledger, slots, listed, resume_hint=hint, trainer=trainer, keep_weights=True)


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
        raise IchRayError(
            f"{trained.files.root}: one candidate at least must get through all its trainings, got none; "
            f"`ich-ray results {trained.files.root}` says why they failed; remove the cause and confirm again, or "
            "confirm more with --top"
        )
    sign = 1 if objective.mode == "max" else -1
    return max(whole, key=lambda candidate: sign * (candidate.mean or 0.0)).trial
