"""Check the request of a search before it starts: its space, its dataset, its folder.

Decides whether a search is begun or goes on, and what it may learn from. Starts nothing and writes nothing; what the
machines say is in preflight.py.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.metadata import version
from os import PathLike
from typing import TYPE_CHECKING

from upath import UPath

from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.folds import ranking_roles, ranking_slices
from ich_ray.errors import ConfigError, IchRayError
from ich_ray.progress import say
from ich_ray.results import open_search
from ich_ray.search.checked_folds import check_folds_of_search, decided
from ich_ray.search.early_end import EarlyEnd, parse_patience
from ich_ray.search.export.trackers import parse_target
from ich_ray.search.ledger import Ledger, differences
from ich_ray.search.plan.cost_table import networks_to_time
from ich_ray.search.space.yaml_file import SearchSpace, load_space, parse_space
from ich_ray.search.time_budget import Limits
from ich_ray.search_records import MOST_TRIALS, SearchRecord
from ich_ray.storage import Location, SearchFiles, exists, is_foreign, locate
from ich_ray.trial_records import Objective, TrialResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ich_ray.search.request import SearchRequest
    from ich_ray.search.space.parameter_sets import Searched

__all__ = ["CheckedRequest", "validate_request"]

DEFAULT_TRIALS = 20
_PACKAGES = ("ich_ray", "ray", "optuna", "torch", "torchvision", "timm", "numpy")


@dataclass(frozen=True)
class CheckedRequest:
    """A search that may be run.

    Attributes:
        limits: the time it may take, from now on.
        record: as it would be begun now.
        begun: as it was begun before, None for a new one.
        wanted: trials in all.
        teachers: the searches to learn from.
        warm: of each that can be read, its trials that fit the space.
        early: when it ends before its last trial.
    """

    limits: Limits
    space: SearchSpace
    dataset: PreparedDataset
    files: SearchFiles
    record: SearchRecord
    begun: SearchRecord | None
    wanted: int
    teachers: tuple[str, ...]
    warm: dict[str, list[TrialResult]]
    early: EarlyEnd


def validate_request(request: SearchRequest, searches: Searched = "network") -> CheckedRequest:
    """Read what a request names and check that it can be done.

    Args:
        request: unchecked.
        searches: what its space must search.

    Raises:
        ConfigError: it cannot be done as asked.
    """
    trials, seed, asked = request.trials, request.seed, _several(request.warm_start)
    limits = Limits(request.hours, request.gpu_hours)
    early = EarlyEnd(request.target, parse_patience(request.patience))
    if trials is not None and trials < 1:
        raise ConfigError(f"--trials: must be at least 1, got {trials}; ask for one or more")
    if trials is not None and trials > MOST_TRIALS:
        raise ConfigError(f"--trials: must be at most {MOST_TRIALS:,}, got {trials:,}; ask for fewer")
    if seed is not None and seed < 0:
        raise ConfigError(f"--seed: must be at least 0, got {seed}; any other number will do")
    for target in request.export or ():
        parse_target(target, "--export")
    files = SearchFiles(locate(request.out))
    there = open_search(files.root).record if exists(files.search) else None
    checked = _space(request, files, there, searches)
    early.check(checked.objective)
    data = PreparedDataset.open(request.dataset)
    data.check_table()  # or every trial would fail at it
    _check_listed(checked, trials, asked)
    if data.manifest.leak:
        say(data.manifest.leak)
    if seed is None:
        seed = there.seed if there else 0
    checked = decided(checked, data, there)
    record = _record(checked, data, trials or len(checked.listed or ()) or DEFAULT_TRIALS, seed)
    if there and trials == there.commanded:  # the same command again: what was asked of the driver since then stays
        trials = None
    begun = _begun(files, there, record, trials, request.resume)
    teachers = asked or (begun.warm_starts if begun else ())
    for teacher in () if asked else teachers:
        if is_foreign(teacher, str(files.root)):
            say(f"warm start: reading {teacher}, which search.json names")
    read = _warm if asked else _warm_again
    warm = {teacher: kept for teacher in teachers if (kept := read(checked, teacher, record, files))}
    from ich_ray.search.preflight import check_objective, check_roles  # with Ray, which no mistake above need wait for

    check_roles(data)
    check_objective(ranking_slices(data, checked.objective.networks > 1), checked.objective)
    check_folds_of_search(checked, data, seed)
    wanted = trials or (begun or record).wanted
    return CheckedRequest(limits, checked, data, files, record, begun, wanted, teachers, warm, early)


def _space(request: SearchRequest, files: SearchFiles, there: SearchRecord | None, searches: Searched) -> SearchSpace:
    """The space of a file, or that with which the search that is there was begun."""
    if request.space is not None:
        space = load_space(request.space, searches)
    elif there is not None:
        space = parse_space(there.space, str(files.search), searches)
    else:
        raise ConfigError(f"{files.root}: a search to go on with must be there, got none; give a search space")
    if space.budget.unit == "cost":
        networks_to_time(space)  # which refuses those of one speed
    return space


def _several(warm_start: Location | Sequence[Location] | None) -> tuple[str, ...]:
    """The searches that are named, each once."""
    if warm_start is None:
        return ()
    named = [warm_start] if isinstance(warm_start, str | PathLike | UPath) else warm_start
    return tuple(dict.fromkeys(str(locate(one)) for one in named))


def _check_listed(space: SearchSpace, trials: int | None, teachers: tuple[str, ...]) -> None:
    if space.listed is None:
        return
    if trials is not None and trials > len(space.listed):
        raise ConfigError(
            f"--trials: the space {space.name} lists {len(space.listed)} trials and no more, got {trials}; "
            "leave it out to run all"
        )
    if teachers:
        raise ConfigError(
            f"--warm-start {teachers[0]}: the trials of the space {space.name} are listed, so that nothing can be "
            "learned for them; leave it out"
        )


def _record(space: SearchSpace, dataset: PreparedDataset, trials: int, seed: int) -> SearchRecord:
    counts = [dataset.manifest.roles[role] for role in ranking_roles(space.objective.networks > 1)]
    slices = sum(one.slices for one in counts)
    auto = Objective.model_validate(space.source.get("objective", {})).folds == "auto"
    return SearchRecord(
        name=space.name,
        space=space.source,
        dataset=str(dataset.files.root),
        fingerprint=dataset.manifest.fingerprint,
        prevalence=sum(one.positives for one in counts) / slices if slices else 0.0,
        split=dataset.manifest.split,
        seed=seed,
        trials=trials,
        folds=space.objective.folds if auto and isinstance(space.objective.folds, int) else None,
        versions={name: version(name) for name in _PACKAGES},
        created=time.time(),
    )


def _begun(
    files: SearchFiles, there: SearchRecord | None, asked: SearchRecord, trials: int | None, resume: bool
) -> SearchRecord | None:
    """The search to go on with, None for a new one."""
    if there is None:
        if resume:
            say(f"{files.root}: no search to resume, starting it")
        Ledger.check_unused(files)
        return None
    if not resume:
        raise ConfigError(Ledger.occupied(files, asked))
    if changed := differences(there, asked):
        raise ConfigError(
            f"{files.root}: --resume goes on with the same search, got another one ({'; '.join(changed)}); "
            "give what it was begun with, or choose another --out"
        )
    if trials is not None and trials < there.wanted:
        raise ConfigError(
            f"--trials: may only be raised for a search that was begun, got {trials} where it has {there.wanted}; "
            "leave it out to finish those"
        )
    return there


def _warm(space: SearchSpace, where: str, asked: SearchRecord, own: SearchFiles) -> list[TrialResult]:
    from ich_ray.search.optuna_adapter import fitting

    other = open_search(where)
    if other.files.root.resolve() == own.root.resolve():
        raise ConfigError(
            f"--warm-start {where}: must be another search, got that of --out, which it knows; leave it out"
        )
    judged = [(one.metric, one.mode, one.folds, one.repeats) for one in (other.objective, space.objective)]
    if judged[0][:2] == judged[1][:2] and judged[0] != judged[1]:
        raise ConfigError(
            f"--warm-start {where}: must be judged as this search is, by {space.objective.folds} folds, got "
            f"{other.objective.folds}; leave it out"
        )
    if other.objective != space.objective:
        raise ConfigError(
            f"--warm-start {where}: must have the objective {space.objective.metric}, got {other.objective.metric}; "
            "warm-start from a search with the same one"
        )
    kept = fitting(space, other.trials)
    unlike = [change for change in differences(other.record, asked) if change.startswith(("dataset:", "budget"))]
    but = f", though the searches differ ({'; '.join(unlike)})" if unlike else ""
    say(
        f"warm start: {len(kept)} of {len(other.trials)} trials of {other.record.name} fit this space and are kept{but}"
    )
    return kept


def _warm_again(space: SearchSpace, where: str, asked: SearchRecord, own: SearchFiles) -> list[TrialResult]:
    """What a search that goes on was begun with, as far as it is still there."""
    try:
        return _warm(space, where, asked, own)
    except IchRayError as error:
        say(f"warm start: {where} cannot be read any more, going on with this search's own trials ({error})")
        return []
