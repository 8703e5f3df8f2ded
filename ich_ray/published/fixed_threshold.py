"""Report B's quick evaluation: what trials decide by themselves at an output of one half.

Its columns are rightly named. Knows the last reports of a search and the share of positive slices they were measured
on. What it calls sensitivity, specificity and PPV are those of the decisions that a network makes where its own,
class-weighted output exceeds one half; nothing is tuned and nothing chosen. Every report of every
training has sensitivity and specificity of these.
"""

from __future__ import annotations

import math
import shlex
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.folds import HeldOut
from ich_ray.errors import ConfigError
from ich_ray.statistics.metrics import Confusion, confusion

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from ich_ray.results import SearchResult
    from ich_ray.storage import Location
    from ich_ray.trial_records import TrialResult

__all__ = ["FoldSpread", "QuickRow", "quick_evaluation", "sensitivity_at_half", "specificity_at_half", "spread_of"]


@dataclass(frozen=True)
class QuickRow:
    """One trial: shares of the validation slices, and their order.

    Attributes:
        decisions: None where the last report has none.
    """

    trial: int
    parameters: dict[str, Any]
    images: int
    state: str
    at_chance: bool
    average_precision: float | None
    decisions: Confusion | None

    def figures(self) -> dict[str, Any]:
        """All of it by name; None for what is undefined."""
        names = ("accuracy", "sensitivity", "specificity", "ppv")
        found = {name: getattr(self.decisions, name) if self.decisions else None for name in names}
        found["f2"] = self.decisions.f_beta() if self.decisions else None
        return {
            "trial": self.trial,
            "state": self.state,
            "images": self.images,
            **{name: None if value is None or math.isnan(value) else value for name, value in found.items()},
            "average_precision": self.average_precision,
            "at_chance": self.at_chance,
            "parameters": self.parameters,
        }


@dataclass(frozen=True)
class FoldSpread:
    """Mean and sample standard deviation of one figure over folds, and the values."""

    mean: float
    deviation: float
    values: tuple[float, ...]


def sensitivity_at_half(labels: NDArray[Any], logits: NDArray[Any]) -> float:
    """A metric of every report: not corrected for class weights, as report B judged its candidates."""
    return confusion(labels, logits, 0.0).sensitivity


def specificity_at_half(labels: NDArray[Any], logits: NDArray[Any]) -> float:
    """The same of slices without haemorrhage."""
    return confusion(labels, logits, 0.0).specificity


def quick_evaluation(found: SearchResult, dataset: Location | None = None) -> list[QuickRow]:
    """A row for each trial of a search or of a confirmation on folds, in their order.

    Args:
        found: the search.
        dataset: where its dataset lies; if not given where search.json says. Only folds need it.

    Raises:
        ConfigError: there is no dataset, or at an address that nobody but search.json has named; or trials were judged
            by folds, whose reports pool networks and hold no decisions.
    """
    if any(report.fold for trial in found.trials for report in trial.reports):
        raise ConfigError(
            f"{found.files.root}: --at-half tells what one network decides, got a search by {found.objective.folds} "
            "folds, whose reports are of several; confirm its trials, and ask for those of the confirmation"
        )
    prevalences: dict[int | None, float] = {None: found.record.prevalence}
    if folds := {trial.fold for trial in found.trials if trial.fold is not None}:
        if dataset is None and found.is_foreign(where := found.record.dataset_folder):
            raise ConfigError(
                f"{found.files.root}: the dataset at {where}, which only search.json names, is not contacted unasked; "
                f"add --dataset {shlex.quote(where)} if you trust it, or where a copy lies"
            )
        whole = PreparedDataset.of_search(found, dataset)
        prevalences |= {fold: HeldOut(whole, fold).role("validation").prevalence for fold in folds}
    return [_row(trial, prevalences[trial.fold]) for trial in found.trials]


def _row(trial: TrialResult, prevalence: float) -> QuickRow:
    last = trial.reports[-1].metrics if trial.reports else {}
    found, spared = last.get("sensitivity_at_half"), last.get("specificity_at_half")
    decisions = None
    if found is not None and spared is not None:
        tp, tn = prevalence * found, (1 - prevalence) * spared
        decisions = Confusion(tp=tp, fp=1 - prevalence - tn, fn=prevalence - tp, tn=tn)
    return QuickRow(
        trial=trial.number,
        parameters=trial.parameters,
        images=trial.images_seen,
        state=trial.state,
        at_chance=trial.at_chance,
        average_precision=last.get("average_precision"),
        decisions=decisions,
    )


def spread_of(figures: Sequence[Mapping[str, Any]], name: str) -> FoldSpread | None:
    """Mean and deviation of one of `figures`; None where fewer than two have it."""
    values = tuple(float(value) for row in figures if (value := row[name]) is not None)
    if len(values) < 2:
        return None
    return FoldSpread(statistics.fmean(values), statistics.stdev(values), values)
