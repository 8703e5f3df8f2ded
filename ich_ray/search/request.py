"""Records of what may be asked of a search: verbs fill them, as do keywords of Python callers.

A field that is added here, and to the keywords, reaches `run_search` and `plan_search` without another line. Checks
nothing: checked_request.py and preflight.py do.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ich_ray.storage import Location
    from ich_ray.vocabulary import Placement

__all__ = ["SearchKeywords", "SearchRequest", "TrialKeywords", "TrialResources"]


class TrialKeywords(TypedDict, total=False):
    """The fields of `TrialResources`, for whoever types them as keywords."""

    gpus_per_trial: float | Literal["auto"] | None
    cpus_per_trial: float | None
    workers_per_trial: int | None
    concurrent: int | None
    grow: bool


class SearchKeywords(TrialKeywords, total=False):
    """The fields of `SearchRequest` that may be left out, for whoever types them as keywords."""

    trials: int | None
    hours: float | None
    gpu_hours: float | None
    resume: bool
    seed: int | None
    warm_start: Location | Sequence[Location] | None
    placement: Placement
    share_trunks: bool
    address: str | None
    notify: str | None
    export: Sequence[str] | None
    target: float | None
    patience: str | float | None


@dataclass(frozen=True, kw_only=True)
class TrialResources:
    """What each trial holds and how many run at a time; None for what the machines suggest.

    Attributes:
        gpus_per_trial: 1 if there are GPUs, else 0; a fraction shares one; of 2 or more each has a worker of its own;
            `auto` for the share that each trial's planned memory needs, one size for all in what is no search.
        cpus_per_trial: CPUs, and so threads, of all workers of a trial; 1 each if not given.
        workers_per_trial: processes that train one network together; as many as GPUs if not given.
        concurrent: trials at a time; if not given as many as fit, also on machines that come or go meanwhile.
        grow: let running trials take slots that stand free once nothing is left to start. The numbers of such a trial
            differ by rounding, with dropout by other random numbers of the same kind.
    """

    gpus_per_trial: float | Literal["auto"] | None = None
    cpus_per_trial: float | None = None
    workers_per_trial: int | None = None
    concurrent: int | None = None
    grow: bool = True


@dataclass(frozen=True)
class SearchRequest(TrialResources):
    """A search as it is asked for, with the resources of its trials.

    Attributes:
        dataset: a prepared dataset.
        space: the YAML file of the search space; None for that of the search in `out`, as it was begun.
        out: the search folder, new or (with `resume`) begun before.
        trials: in all, counting those already there; if not given what the search was begun with, all of a grid or of
            a list of candidates, else 20.
        hours: after which no trial is started and running ones are stopped at their next report.
        gpu_hours: the same, of accelerators times hours, over all trials since the search began.
        resume: go on with the search in `out`; unfinished trials continue from their checkpoints.
        seed: of the draws and of every trial; that of the search in `out` if not given, else 0.
        warm_start: other searches whose trials the sampler may learn from, each as far as it is alike.
        placement: `device` keeps the images of each trial in accelerator memory, `host` never; `auto` does where they
            fit into half of the trial's part of it.
        share_trunks: compute what frozen layers with given weights make of each slice once, into the dataset's folder,
            for all trials that freeze the same.
        address: a Ray cluster; this machine if not given.
        notify: where to tell how it goes, see docs/notify.md; a secret, so that no record shows it.
        export: trackers that are written while it runs, `NAME=PLACE` each, as of `ich-ray export --to`.
        target: ends it once a completed trial is worth so much with 95 %, by the reports of all trials.
        patience: ends it once so much has brought less than the noise of a training: `20` trials, `500000 images`,
            `6 hours` or `10 gpu-hours`.
    """

    dataset: Location
    space: Location | None
    out: Location
    _: KW_ONLY
    trials: int | None = None
    hours: float | None = None
    gpu_hours: float | None = None
    resume: bool = False
    seed: int | None = None
    warm_start: Location | Sequence[Location] | None = None
    placement: Placement = "auto"
    share_trunks: bool = False
    address: str | None = None
    notify: str | None = field(default=None, repr=False)
    export: Sequence[str] | None = None
    target: float | None = None
    patience: str | float | None = None
