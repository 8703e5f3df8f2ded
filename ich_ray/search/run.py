"""A search from its space to its last trial: preflight, run, resume, extend.

Has everything checked before anything starts: by checked_request.py what was typed and what lies there, by preflight.py
the machines. Drives nothing: driver.py does; trains nothing: trial.py does.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from ich_ray.notify.notifier import notifying
from ich_ray.progress import say
from ich_ray.results import SearchResult, open_search
from ich_ray.runtime import connected
from ich_ray.search.checked_folds import check_single_worker
from ich_ray.search.checked_request import validate_request
from ich_ray.search.export.search_streams import streaming
from ich_ray.search.ledger import Ledger
from ich_ray.search.plan.cost_table import CostTable
from ich_ray.search.request import SearchRequest
from ich_ray.search.space.feasible_draw import check_fits
from ich_ray.search.space.space import Listed, sampled
from ich_ray.search.time_budget import Limits
from ich_ray.storage import Location, SearchFiles, file_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.search.checked_request import CheckedRequest
    from ich_ray.search.device_kinds import MemoryPlan
    from ich_ray.search.plan.constraint_check import ConstraintCheck
    from ich_ray.search.preflight import Slots
    from ich_ray.search.request import SearchKeywords
    from ich_ray.search.space.parameter_sets import Searched
    from ich_ray.search.space.space import SearchSpace
    from ich_ray.search.tune.trial import Trainer
    from ich_ray.search.tune.trial_shares import TrialShares
    from ich_ray.search_records import SearchRecord

__all__ = ["locked", "run_listed", "run_request", "run_search"]


def run_search(
    dataset: Location,
    space: Location,
    out: Location,
    *,
    _trainer: Trainer | None = None,
    **keywords: Unpack[SearchKeywords],
) -> SearchResult:
    """Search the space for the best detector; every trial stands in `out`, whatever happens.

    Args:
        dataset: a prepared dataset.
        space: the YAML file of the search space.
        out: the search folder, new or (with `resume`) begun before.
        keywords: what else may be asked, by the names of `ich_ray.search.request.SearchRequest`.

    Raises:
        ConfigError: it cannot be done as asked; nothing has been started and nothing overwritten.
        Interrupted: it was stopped before its end; the message says how to go on.
    """
    return run_request(SearchRequest(dataset, space, out, **keywords), _trainer)


def run_request(
    request: SearchRequest,
    trainer: Trainer | None = None,
    searches: Searched = "network",
    *,
    keep_weights: bool = False,
) -> SearchResult:
    """Do what `run_search` is asked for.

    Args:
        request: unchecked.
        trainer: what trains in place of ours.
        searches: what its space must search; anything but networks needs a trainer.
        keep_weights: whether the state of each trial's best report stays, see `search.best_states`.
    """
    checked = validate_request(request, searches)
    files, data = checked.files, checked.dataset

    from ich_ray.search.cluster_resources import ClusterResources
    from ich_ray.search.device_kinds import plan_memory
    from ich_ray.search.preflight import check_machines, check_trials, check_workers, plan_slots, room

    trials = sampled(checked.space) if searches == "network" else []
    if trainer is None:
        check_trials(data, trials, folds=checked.space.objective.networks > 1)
    with locked(files), notifying(request.notify) as notifier, connected(request.address):
        from ich_ray.search.tune.announced import announced
        from ich_ray.search.tune.driver import Driver  # Ray Tune needs a home, of which `connected` has seen to it

        fleet = ClusterResources()
        slots = plan_slots(fleet.machines(), request)
        checked.limits.check(slots.gpus)
        checked.early.check_devices(slots.gpus)
        check_single_worker(checked.space, slots)
        if trainer is None:
            check_workers(data, trials, slots.workers)
        check_machines(data, files.root)
        slots, memory = plan_memory(checked.space, data, request, fleet, slots)
        if request.share_trunks:
            from ich_ray.search.tune.precompute_features import share_trunks

            share_trunks(data, trials, gpus=slots.gpus > 0)
        check = _constraints(checked, slots)
        costs = _costs(checked, slots)
        ledger = _ledger(checked, slots, trainer, check, costs)
        # Another driver may have raised it before the lock was ours.
        wanted = max(checked.wanted, ledger.record.wanted)
        _amend(ledger, wanted, checked.teachers, checked.record.dataset)
        driver = Driver(
            checked.space,
            data,
            ledger,
            slots,
            wanted=wanted,
            limits=checked.limits,
            warm=[*checked.warm.values()],
            trainer=trainer,
            listed=_listed(checked.space, ledger, wanted),
            placement=request.placement,
            keep_weights=keep_weights,
            room=None if memory else room(fleet, slots, request.concurrent),
            refuses=check,
            grow=request.grow,
            shares=_shares(memory, slots) if memory else None,
            concurrent=request.concurrent,
            takes_requests=True,
            early=checked.early,
            costs=costs,
        )
        # How it ends is told before streams have their last minute: who ends this process may not wait so long.
        with streaming(str(files.root), request.export or ()), announced(driver, notifier):
            driver.run()
    return open_search(files.root)


def _shares(memory: MemoryPlan, slots: Slots) -> Callable[[Ledger], TrialShares]:
    """What gives trials their shares by memory."""
    from ich_ray.search.tune.trial_shares import memory_shares

    say(str(memory.shares).strip())
    least = memory.shares.needs[0]
    return partial(memory_shares, cpus=slots.cpus, kinds=memory.kinds, need=memory.needs, least=least)


def run_listed(
    space: SearchSpace,
    dataset: PreparedDataset,
    ledger: Ledger,
    slots: Slots,
    listed: Sequence[Listed],
    *,
    resume_hint: str,
    trainer: Trainer | None = None,
    keep_weights: bool = False,
    grow: bool = False,
) -> None:
    """Run what a ledger left unfinished and then `listed`, with every trial in the ledger.

    Hold `locked` meanwhile. With `keep_weights` the state of each trial's best report stays in its `weights` folder.
    With `grow` running trials take slots that stand free once nothing is left to start.

    Raises:
        Interrupted: it was stopped before its end; `resume_hint` is what its reader is told to do.
    """
    from ich_ray.search.tune.driver import Driver

    wanted = len(ledger.trials) + len(listed)
    keys: dict[str, Any] = {
        "warm": [],
        "listed": listed,
        "trainer": trainer,
        "keep_weights": keep_weights,
        "grow": grow,
    }
    driver = Driver(space, dataset, ledger, slots, wanted=wanted, limits=Limits(), **keys)
    driver.resume_hint = resume_hint
    driver.run()


def _constraints(checked: CheckedRequest, slots: Slots) -> ConstraintCheck | None:
    """What refuses draws, with the times that the search was begun with; None without constraints.

    Raises:
        ConfigError: they refuse everything.
    """
    space = checked.space
    if not space.constraints:
        return None
    from ich_ray.search.plan.constraint_check import ConstraintCheck
    from ich_ray.search.tune.measure_speed import measure_speeds

    check = ConstraintCheck(space.constraints, checked.dataset.image_shape, {})
    known = checked.begun.ms_per_slice if checked.begun else None
    check = replace(check, milliseconds=measure_speeds(space, check, slots) if known is None else known)
    check_fits(space, check, checked.record.seed)
    return check


def _costs(checked: CheckedRequest, slots: Slots) -> CostTable | None:
    """Seconds an image, as the search was begun with; None where they decide nothing."""
    if checked.space.budget.unit != "cost":
        return None
    from ich_ray.search.tune.measure_speed import measure_costs

    known = (checked.begun.seconds_per_image if checked.begun else None) or {}
    costs = CostTable.of(checked.space, known)
    if not costs.rows:  # a file may say anything
        costs = CostTable.of(checked.space, measure_costs(checked.space, checked.dataset, slots))
    say(f"cost: {costs}; every second draw is weighed by it")
    return costs


def _ledger(
    checked: CheckedRequest,
    slots: Slots,
    trainer: Trainer | None,
    check: ConstraintCheck | None,
    costs: CostTable | None,
) -> Ledger:
    if checked.begun:
        return Ledger.open(checked.files.root)
    record = _with_precision(checked.record, slots, trainer)
    if check and check.milliseconds:
        record = record.model_copy(update={"ms_per_slice": dict(check.milliseconds)})
    if costs:
        record = record.model_copy(update={"seconds_per_image": dict(costs.seconds)})
    return Ledger.create(checked.files.root, record)


def _with_precision(record: SearchRecord, slots: Slots, trainer: Trainer | None) -> SearchRecord:
    """The record with the precision of the trials' devices, unless a trainer of its own decides that."""
    if trainer is not None:
        return record
    from ich_ray.search.accelerators import common_precision

    return record.model_copy(update={"precision": common_precision(slots.gpus)})


def _amend(ledger: Ledger, wanted: int, teachers: tuple[str, ...], dataset: str) -> None:
    """Note what is asked otherwise than before: more trials, what to learn from, where the dataset was moved to."""
    there = ledger.record
    before = {"trials": there.wanted, "warm_start": there.warm_starts, "dataset": there.dataset_folder}
    for key, now in (("trials", wanted), ("warm_start", teachers), ("dataset", dataset)):
        if now != before[key]:
            ledger.amend(**{key: now[0] if isinstance(now, tuple) and len(now) == 1 else now})


def _listed(space: SearchSpace, ledger: Ledger, wanted: int) -> list[Listed] | None:
    """What a ledger lacks of a space's listed trials; None where trials are drawn."""
    if space.listed is None:
        return None
    return [
        Listed(parameters) for number, parameters in enumerate(space.listed[:wanted]) if number not in ledger.trials
    ]


@contextmanager
def locked(files: SearchFiles) -> Iterator[None]:
    """Hold the search; a folder that was made only for the lock goes away with it.

    It is removed while nobody else can hold it.
    """
    with file_lock(files.lock, "a search"):
        try:
            yield
        finally:
            if not files.search.exists() and files.root.exists():
                files.lock.unlink(missing_ok=True)
                if not any(files.root.iterdir()):
                    files.root.rmdir()
