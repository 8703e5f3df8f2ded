"""A search from its space to its last trial: preflight, run, resume, extend.

Has everything checked before anything starts: by request.py what was typed and what lies there, by preflight.py the
machines. Drives nothing: driver.py does; trains nothing: trial.py does.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ich_ray.results import SearchRecord, SearchResult, open_search
from ich_ray.runtime import connected
from ich_ray.search.ledger import Ledger
from ich_ray.search.request import ask
from ich_ray.search.space.space import Listed, sampled
from ich_ray.search.time_budget import Limits
from ich_ray.storage import Location, SearchFiles, file_lock

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.search.preflight import Slots
    from ich_ray.search.space.space import SearchSpace
    from ich_ray.search.tune.trial import Trainer
    from ich_ray.vocabulary import Placement

__all__ = ["locked", "run_listed", "run_search"]


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
        seed: of the draws and of every trial; that of the search in `out` if not given, else 0.
        warm_start: another search whose trials the sampler may learn from.
        placement: `device` keeps the images of each trial in accelerator memory, `host` never; `auto` does where they
            fit into half of the trial's part of it.
        share_trunks: compute what frozen layers with given weights make of each slice once, into the dataset's folder,
            for all trials that freeze the same.
        address: a Ray cluster; this machine if not given.

    Raises:
        ConfigError: it cannot be done as asked; nothing has been started and nothing overwritten.
        Interrupted: it was stopped before its end; the message says how to go on.
    """
    limits = Limits(hours, gpu_hours)
    asked = ask(dataset, space, out, trials=trials, resume=resume, seed=seed, warm_start=warm_start)
    files, data = asked.files, asked.dataset

    from ich_ray.search.cluster_resources import ClusterResources
    from ich_ray.search.preflight import check_machines, check_trials, plan_slots, room
    from ich_ray.search.tune.driver import Driver

    if _trainer is None:
        check_trials(data, sampled(asked.space))
    with locked(files), connected(address):
        fleet = ClusterResources()
        slots = plan_slots(fleet.machines(), gpus_per_trial, cpus_per_trial, concurrent, workers_per_trial)
        limits.check(slots.gpus)
        check_machines(data, files.root)
        if share_trunks:
            from ich_ray.search.tune.precompute_features import share_trunks as share

            share(data, sampled(asked.space), gpus=slots.gpus > 0)
        ledger = Ledger.open(out) if asked.begun else Ledger.create(out, _with_precision(asked.record, slots, _trainer))
        wanted = max(trials or 0, ledger.record.wanted)  # another driver may have raised it before the lock was ours
        _amend(ledger, wanted, asked.teacher, asked.record.dataset)
        listed = _listed(asked.space, ledger, wanted)
        keys: dict[str, Any] = {"warm": asked.warm, "listed": listed, "placement": placement, "trainer": _trainer}
        keys["room"] = room(fleet, slots, concurrent)
        Driver(asked.space, data, ledger, slots, wanted=wanted, limits=limits, **keys).go()
    return open_search(out)


def run_listed(
    space: SearchSpace,
    dataset: PreparedDataset,
    ledger: Ledger,
    slots: Slots,
    listed: Sequence[Listed],
    *,
    resume_hint: str,
    trainer: Trainer | None = None,
) -> None:
    """Run what a ledger left unfinished and then `listed`, with every trial in the ledger; hold `locked` meanwhile.

    Raises:
        Interrupted: it was stopped before its end; `resume_hint` is what its reader is told to do.
    """
    wanted = len(ledger.trials) + len(listed)
    keys: dict[str, Any] = {"warm": [], "listed": listed, "trainer": trainer}
    from ich_ray.search.tune.driver import Driver

    run = Driver(space, dataset, ledger, slots, wanted=wanted, limits=Limits(), **keys)
    run.resume_hint = resume_hint
    run.go()


def _with_precision(record: SearchRecord, slots: Slots, trainer: Trainer | None) -> SearchRecord:
    """The record with the precision of the trials' devices, unless a trainer of its own decides that."""
    if trainer is not None:
        return record
    from ich_ray.search.accelerators import common_precision

    return record.model_copy(update={"precision": common_precision(slots.gpus)})


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


@contextmanager
def locked(files: SearchFiles) -> Iterator[None]:
    """Hold the search; a folder that was made only for the lock goes away with it, while nobody else can hold it."""
    with file_lock(files.lock, "a search"):
        try:
            yield
        finally:
            if not files.search.exists() and files.root.exists():
                files.lock.unlink(missing_ok=True)
                if not any(files.root.iterdir()):
                    files.root.rmdir()
