"""A search from its space to its last trial: preflight, run, resume, extend.

Checks everything before anything starts. Drives nothing: driver.py does; trains nothing: trial.py does.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError, IchRayError
from ich_ray.progress import say
from ich_ray.results import SearchRecord, SearchResult, TrialResult, open_search
from ich_ray.runtime import connected
from ich_ray.search.draw import Listed, sampled
from ich_ray.search.ledger import Ledger, differences
from ich_ray.search.limits import Limits
from ich_ray.search.plan import plan_search
from ich_ray.search.space import SearchSpace, load_space
from ich_ray.storage import Location, SearchFiles, exclusive, locate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ich_ray.data.placement import Placement
    from ich_ray.search.preflight import Slots
    from ich_ray.search.trial import Trainer

__all__ = ["locked", "run_listed", "run_search"]

DEFAULT_TRIALS = 20
_PACKAGES = ("ich_ray", "ray", "optuna", "torch", "torchvision", "numpy")


def run_search(
    dataset: Location,
    space: Location,
    out: Location,
    *,
    trials: int | None = None,
    gpus_per_trial: float | None = None,
    cpus_per_trial: float | None = None,
    workers_per_trial: int | None = None,
    hours: float | None = None,
    gpu_hours: float | None = None,
    concurrent: int | None = None,
    resume: bool = False,
    plan: bool = False,
    seed: int | None = None,
    warm_start: Location | None = None,
    placement: Placement = "auto",
    share_trunks: bool = False,
    address: str | None = None,
    _trainer: Trainer | None = None,
) -> SearchResult:
    """Search the space for the best detector; every trial stands in `out`, whatever happens.

    Args:
        dataset: a prepared dataset.
        space: the YAML file of the search space.
        out: the search folder, new or (with `resume`) begun before.
        trials: in all, counting those already there; if not given what the search was begun with, all of a grid or of
            a list of candidates, else 20.
        gpus_per_trial: 1 if there are GPUs, else 0; a fraction shares one; of 2 or more each has a worker of its own.
        cpus_per_trial: CPUs, and so threads, of all workers of a trial; 1 each if not given.
        workers_per_trial: processes that train one network together; as many as GPUs if not given.
        hours: after which no trial is started and running ones are stopped at their next report.
        gpu_hours: the same, of accelerators times hours, over all trials since the search began.
        concurrent: trials at a time; if not given as many as fit, also on machines that come or go meanwhile.
        resume: go on with the search in `out`; unfinished trials continue from their checkpoints.
        plan: print what would be done and what it takes, write nothing, and return the search without trials.
        seed: of the draws and of every trial; that of the search in `out` if not given, else 0.
        warm_start: another search whose trials the sampler may learn from.
        placement: `device` keeps the images of each trial in accelerator memory, `host` never; `auto` does where they
            fit into half of the trial's part of it.
        share_trunks: compute what frozen layers with given weights make of each slice once, into the dataset's folder,
            for all trials that freeze the same.
        address: a Ray cluster; this machine if not given.

    Raises:
        ConfigError: it cannot be done as asked; nothing has been started and nothing overwritten.
        IchRayError: it was interrupted; the message says how to go on.
    """
    if trials is not None and trials < 1:
        raise ConfigError(f"--trials: must be at least 1, got {trials}; ask for one or more")
    if seed is not None and seed < 0:
        raise ConfigError(f"--seed: must be at least 0, got {seed}; any other number will do")
    limits = Limits(hours, gpu_hours)
    checked, data = load_space(space), PreparedDataset.open(dataset)
    _check_listed(checked, trials, warm_start)
    if data.manifest.leak:
        say(data.manifest.leak)
    files = SearchFiles(locate(out))
    there = open_search(files.root).record if files.search.exists() else None
    if seed is None:
        seed = there.seed if there else 0
    asked = _record(checked, data, trials or len(checked.listed or ()) or DEFAULT_TRIALS, seed)
    begun = _begun(files, there, asked, trials, resume)
    wanted = trials or (begun or asked).wanted
    teacher = str(locate(warm_start)) if warm_start is not None else begun.warm_start if begun else None
    warm = (_warm_again if warm_start is None else _warm)(checked, teacher, asked, files)

    from ich_ray.search.driver import Driver
    from ich_ray.search.machines import Fleet
    from ich_ray.search.preflight import check_machines, check_roles, check_trials, plan_slots, room

    check_roles(data)
    if plan:
        from ich_ray.search.estimate import costs

        with connected(address):
            slots = plan_slots(Fleet().machines(), gpus_per_trial, cpus_per_trial, concurrent, workers_per_trial)
        planned = plan_search(checked, data, wanted, slots)
        searches = [
            open_search(where) if where else None
            for where in (files.root if begun else None, teacher if warm else None)
        ]
        print(f"{planned}\n{costs(checked, data, planned, *searches)}")
        return SearchResult(files, asked, ())
    if _trainer is None:
        check_trials(data, sampled(checked))
    with locked(files), connected(address):
        fleet = Fleet()
        slots = plan_slots(fleet.machines(), gpus_per_trial, cpus_per_trial, concurrent, workers_per_trial)
        limits.check(slots.gpus)
        check_machines(data, files.root)
        if share_trunks:
            from ich_ray.search.trunks import share_trunks as share

            share(data, sampled(checked), gpus=slots.gpus > 0)
        ledger = Ledger.open(out) if begun else Ledger.create(out, asked)
        wanted = max(trials or 0, ledger.record.wanted)  # another driver may have raised it before the lock was ours
        _amend(ledger, wanted, teacher, asked.dataset)
        listed = _listed(checked, ledger, wanted)
        keys: dict[str, Any] = {"warm": warm, "listed": listed, "placement": placement, "trainer": _trainer}
        keys["room"] = room(fleet, slots, concurrent)
        Driver(checked, data, ledger, slots, wanted=wanted, limits=limits, **keys).go()
    return open_search(out)


def run_listed(
    space: SearchSpace,
    dataset: PreparedDataset,
    ledger: Ledger,
    slots: Slots,
    listed: Sequence[Listed],
    *,
    go_on: str,
    trainer: Trainer | None = None,
) -> None:
    """Run what a ledger left unfinished and then `listed`, with every trial in the ledger; hold `locked` meanwhile.

    Raises:
        IchRayError: it was interrupted; `go_on` is what its reader is told to do.
    """
    wanted = len(ledger.trials) + len(listed)
    keys: dict[str, Any] = {"warm": [], "listed": listed, "trainer": trainer}
    from ich_ray.search.driver import Driver

    run = Driver(space, dataset, ledger, slots, wanted=wanted, limits=Limits(), **keys)
    run.go_on = go_on
    run.go()


def _check_listed(space: SearchSpace, trials: int | None, warm_start: Location | None) -> None:
    if space.listed is None:
        return
    if trials is not None and trials > len(space.listed):
        raise ConfigError(
            f"--trials: the space {space.name} lists {len(space.listed)} trials and no more, got {trials}; "
            "leave it out to run all"
        )
    if warm_start is not None:
        raise ConfigError(
            f"--warm-start {warm_start}: the trials of the space {space.name} are listed, so that nothing can be "
            "learned for them; leave it out"
        )


def _record(space: SearchSpace, dataset: PreparedDataset, trials: int, seed: int) -> SearchRecord:
    validation = dataset.manifest.roles.get("validation")
    return SearchRecord(
        name=space.name,
        space=space.source,
        dataset=str(dataset.files.root),
        fingerprint=dataset.manifest.fingerprint,
        prevalence=validation.positives / validation.slices if validation and validation.slices else 0.0,
        split=dataset.manifest.split,
        seed=seed,
        trials=trials,
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


def _amend(ledger: Ledger, wanted: int, teacher: str | None, dataset: str) -> None:
    """Note what is asked otherwise than before: more trials, what to learn from, where the dataset was moved to."""
    there = ledger.record
    before = {"trials": there.wanted, "warm_start": there.warm_start, "dataset": there.dataset_folder}
    for key, now in (("trials", wanted), ("warm_start", teacher), ("dataset", dataset)):
        if now != before[key]:
            ledger.amend(**{key: now})


def _listed(space: SearchSpace, ledger: Ledger, wanted: int) -> list[Listed] | None:
    """What a ledger lacks of a space's listed trials; None where trials are drawn."""
    if space.listed is None:
        return None
    return [
        Listed(parameters) for number, parameters in enumerate(space.listed[:wanted]) if number not in ledger.trials
    ]


def _warm(space: SearchSpace, where: str | None, asked: SearchRecord, own: SearchFiles) -> list[TrialResult]:
    if where is None:
        return []
    from ich_ray.search.study import fitting

    other = open_search(where)
    if other.files.root.resolve() == own.root.resolve():
        raise ConfigError(
            f"--warm-start {where}: must be another search, got that of --out, which it knows; leave it out"
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


def _warm_again(space: SearchSpace, where: str | None, asked: SearchRecord, own: SearchFiles) -> list[TrialResult]:
    """What a search that goes on was begun with, as far as it is still there."""
    try:
        return _warm(space, where, asked, own)
    except IchRayError as error:
        say(f"warm start: {where} cannot be read any more, going on with this search's own trials ({error})")
        return []


@contextmanager
def locked(files: SearchFiles) -> Iterator[None]:
    """Hold the search; a folder that was made only for the lock goes away with it, while nobody else can hold it."""
    with exclusive(files.lock, "a search"):
        try:
            yield
        finally:
            if not files.search.exists() and files.root.exists():
                files.lock.unlink(missing_ok=True)
                if not any(files.root.iterdir()):
                    files.root.rmdir()
