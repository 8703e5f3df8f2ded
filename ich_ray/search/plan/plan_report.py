"""`ich-ray search --plan`: what a search would do and cost.

Refuses what a search would refuse. Trains no trial, writes no file of a search, and fetches no weights; of a remote
dataset it fetches what it trains a few batches on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Unpack

from ich_ray.results import open_search
from ich_ray.runtime import cluster_address, connected
from ich_ray.search.checked_folds import check_single_worker
from ich_ray.search.checked_request import validate_request
from ich_ray.search.plan.expected import plan_trials
from ich_ray.search.plan.growth import workers_at_most
from ich_ray.search.request import SearchRequest
from ich_ray.search.space.feasible_draw import check_fits
from ich_ray.search.space.space import sampled
from ich_ray.storage import is_local

if TYPE_CHECKING:
    from ich_ray.search.checked_request import CheckedRequest
    from ich_ray.search.plan.constraint_check import RefusedShare
    from ich_ray.search.plan.cost_model import Memory, Speed
    from ich_ray.search.plan.expected import WorkPlan
    from ich_ray.search.plan.share_plan import SharePlan
    from ich_ray.search.request import SearchKeywords
    from ich_ray.storage import Location

__all__ = ["SearchPlan", "plan_request", "plan_search"]


@dataclass(frozen=True)
class SearchPlan:
    """A search that has not happened, or not yet all of it.

    Attributes:
        plan: of the whole search.
        images_left: of those expected, without what the search has shown already.
        refused: what the constraints of the space refuse; None without any.
        shares: of accelerators by memory; None where each trial has as much.
    """

    plan: WorkPlan
    images_left: int
    memory: Memory
    speed: Speed
    refused: RefusedShare | None = None
    shares: SharePlan | None = None

    def __str__(self) -> str:
        time = self.speed.describe(self.images_left, self.plan.concurrent)
        limits = f"\n  constraints: {self.refused}" if self.refused else ""
        shares = f"\n{self.shares}" if self.shares else ""
        return f"{self.plan}\n  model: {self.memory}{shares}{limits}\n  time: {time}"

    def figures(self) -> dict[str, Any]:
        """Everything as plain values; None what is not known."""
        usual, most = self.memory.usual_and_most or (None, None)
        return {
            **asdict(self.plan),
            "images_left": self.images_left,
            "trial_bytes_median": usual.total if usual else None,
            "trial_bytes_most": most.total if most else None,
            "host_bytes_while_saving_most": most.saving if most else None,
            "draws_counted": len(self.memory.trials),
            "draws_that_do_not_fit": self.memory.misfits,
            "shares": self.shares.figures() if self.shares else None,
            "draws_refused": self.refused.share if self.refused else None,
            "seconds_per_image": self.speed.seconds_per_image,
            "hours": self.speed.hours(self.images_left, self.plan.concurrent),
            "speed_source": self.speed.source,
        }


def plan_search(dataset: Location, space: Location, out: Location, **keywords: Unpack[SearchKeywords]) -> SearchPlan:
    """What `run_search` would do with the same arguments, and what it would take.

    Trains a few batches of a few draws to know their speed, unless the search or the one that it learns from has
    trained before.

    Raises:
        ConfigError: it cannot be done as asked; weights that would be fetched are not looked for.
    """
    return plan_request(SearchRequest(dataset, space, out, **keywords))


def plan_request(request: SearchRequest) -> SearchPlan:
    """Do what `plan_search` is asked for."""
    checked = validate_request(request)

    from ich_ray.search.cluster_resources import ClusterResources
    from ich_ray.search.device_kinds import plan_memory
    from ich_ray.search.plan.cost_model import earlier_speed, estimate_memory, measured_speed
    from ich_ray.search.preflight import check_machines, check_trials, check_workers, plan_slots

    trials = sampled(checked.space)
    check_trials(checked.dataset, trials, fetch=False, folds=checked.space.objective.networks > 1)
    with connected(request.address):
        fleet = ClusterResources()
        machines = fleet.machines()
        slots = plan_slots(machines, request)
        checked.limits.check(slots.gpus)
        check_single_worker(checked.space, slots)
        check_workers(checked.dataset, trials, slots.workers)
        # One machine alone has just read a dataset on its disk.
        if cluster_address(request.address) or not is_local(checked.dataset.files.root):
            check_machines(checked.dataset, None)
        slots, memory = plan_memory(checked.space, checked.dataset, request, fleet, slots)
    if request.share_trunks:
        from ich_ray.search.tune.precompute_features import check_trunks

        check_trunks(checked.dataset, trials)
    plan = replace(plan_trials(checked.space, checked.dataset, checked.wanted, slots), has_shares=memory is not None)
    if request.grow and memory is None:
        largest = max(machine.fits(slots.cpus, slots.gpus) for machine in machines)
        plan = replace(plan, grown_workers=workers_at_most(checked.space, slots, largest))
    begun = open_search(checked.files.root) if checked.begun else None
    teachers = [open_search(teacher) for teacher in checked.warm]
    shown = sum(trial.images_seen for trial in begun.trials) if begun else 0
    return SearchPlan(
        plan,
        max(0, plan.images - shown),
        estimate_memory(checked.space, checked.dataset.image_shape),
        earlier_speed(found for found in (begun, *teachers) if found is not None)
        or measured_speed(checked.space, checked.dataset, plan.cpus, plan.gpus),
        _refused(checked, plan) if checked.space.constraints else None,
        memory.shares if memory else None,
    )


def _refused(checked: CheckedRequest, plan: WorkPlan) -> RefusedShare:
    """What the constraints refuse, by the times that the search has measured, or this machine's.

    Raises:
        ConfigError: everything.
    """
    from ich_ray.search.plan.constraint_check import ConstraintCheck, refused_share

    space, known = checked.space, checked.begun.ms_per_slice if checked.begun else None
    check = ConstraintCheck(space.constraints, checked.dataset.image_shape, known or {})
    check_fits(space, check, checked.record.seed)
    return refused_share(space, check, plan.gpus, max(1, int(plan.cpus)))
