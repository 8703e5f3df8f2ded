"""Several searches side by side: what they asked, reached and cost, and which differences are noise.

Whether the best of one is better than that of another is judged by the same patients, drawn again, and so are their
bundles by the test patients; where what they said of these or the dataset is not there, that is said.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ich_ray.assess.paired_changes import FIGURES, paired_changes
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError, IchRayError
from ich_ray.html_report.inputs import read_evaluation, read_predictions
from ich_ray.refit.confirmation import confirmed
from ich_ray.search.chances import judged_parts
from ich_ray.search.ledger import asked_otherwise
from ich_ray.statistics.pooling import chances_of_best
from ich_ray.storage import is_local

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ich_ray.assess.evaluation import Evaluation
    from ich_ray.results import SearchResult
    from ich_ray.statistics.pooling import FoldPart
    from ich_ray.storage import Location
    from ich_ray.trial_records import TrialResult

__all__ = ["BundleChange", "ComparedPair", "ComparedSearch", "Outcome", "SideBySide", "side_by_side"]

# Of the draws of patients, in which the best of one search must be better: an interval of 95 % to both sides.
_BEYOND_NOISE = 0.975
_UNKNOWN: Literal["cannot be told apart from noise"] = "cannot be told apart from noise"
Outcome = Literal["better beyond noise", "worse beyond noise", "within noise", "cannot be told apart from noise"]
_OTHER_DATASET = "they are of different datasets"


@dataclass(frozen=True)
class ComparedSearch:
    """What a search reached, and what it cost.

    Attributes:
        search: its folder.
        best: the selection score of `trial`, the best completed one, which is optimistic.
        confirmed: the mean of the chosen trial in its confirmation, over so many `trainings`, and their standard
            deviation `spread`.
        test: the objective on the test patients, of the bundle, from `test_low` to `test_high` with 95 %.
        images: of all trials, and `gpu_hours` of theirs.
        ended: whether all its trials have.
    """

    search: str
    name: str
    metric: str
    trials: int
    completed: int
    trial: int | None
    best: float | None
    confirmed: float | None
    test: float | None
    images: int
    gpu_hours: float
    ended: bool = True
    trainings: int = 0
    spread: float | None = None
    test_low: float | None = None
    test_high: float | None = None


@dataclass(frozen=True)
class BundleChange:
    """What the bundle of one search changes on the test patients against that of another.

    Attributes:
        difference: of the objective, from `low` to `high` with 95 %; None if unknown.
        sign: times which a difference is higher for better.
        problem: why it is unknown.
    """

    difference: float | None
    low: float | None = None
    high: float | None = None
    sign: int = 1
    problem: str = ""

    @property
    def verdict(self) -> str:
        """What can be said of the difference between the bundles."""
        if self.difference is None or self.low is None or self.high is None:
            return f"{_UNKNOWN}: {self.problem}"
        told = f"(difference {self.difference:+.4f}, 95 % from {self.low:+.4f} to {self.high:+.4f})"
        return f"{_outcome(self.low <= 0 <= self.high, self.sign * self.difference > 0)} {told}"


def _outcome(is_noise: bool, is_better: bool) -> Outcome:
    return "within noise" if is_noise else "better beyond noise" if is_better else "worse beyond noise"


@dataclass(frozen=True)
class ComparedPair:
    """A search after the first one, and that one.

    Attributes:
        same_dataset: whether their patients and images are the same.
        asked: what was asked otherwise, by key: the value of the first one, and of this one.
        p_better: the share of draws of patients in which the best trial of this one is better; None if unknown.
        problem: why it is unknown.
        test: of their bundles; None where one of them has opened no test patients.
    """

    search: str
    other: str
    same_dataset: bool
    asked: dict[str, tuple[str, str]]
    p_better: float | None
    problem: str = ""
    test: BundleChange | None = None

    @property
    def differences(self) -> tuple[str, ...]:
        """What was asked otherwise, a line each."""
        return tuple(f"{key}: {one} -> {other}" for key, (one, other) in self.asked.items())

    @property
    def verdict(self) -> str:
        """What can be said of the difference between their best trials."""
        if self.p_better is None:
            return f"{self.outcome}: {self.problem}"
        return f"{self.outcome} (better in {self.p_better:.1%} of draws of the patients who judged both)"

    @property
    def outcome(self) -> Outcome:
        """The same in two words or three."""
        if self.p_better is None:
            return _UNKNOWN
        return _outcome(max(self.p_better, 1 - self.p_better) < _BEYOND_NOISE, self.p_better > 0.5)


@dataclass(frozen=True)
class SideBySide:
    """All of them in the order that was given, and each after the first beside it."""

    searches: tuple[ComparedSearch, ...]
    pairs: tuple[ComparedPair, ...]

    def figures(self) -> dict[str, Any]:
        """For programs."""
        pairs = [
            {
                **{name: value for name, value in asdict(pair).items() if name != "asked"},
                "differences": pair.differences,
                "verdict": pair.verdict,
                "test": {**asdict(pair.test), "verdict": pair.test.verdict} if pair.test else None,
            }
            for pair in self.pairs
        ]
        return {"searches": [asdict(search) for search in self.searches], "pairs": pairs}


def side_by_side(found: Sequence[SearchResult], dataset: Location | None = None) -> SideBySide:
    """Compare searches with the first of them.

    Args:
        found: at least one.
        dataset: where that of the first one lies; if not given where each search.json says, but at no address that
            only it names.

    Raises:
        ConfigError: one is given twice, or there is no dataset at `dataset`.
        IntegrityError: a file of one is damaged.
    """
    folders = sorted(_place(search) for search in found)
    if twice := next((one for one, other in pairwise(folders) if one == other), ""):
        raise ConfigError(f"each search must be given once, got {twice} twice; leave one out")
    first, *others = found
    if dataset is not None:
        PreparedDataset.of_search(first, dataset)
    tested = [read_evaluation(search.files) for search in found]
    pairs = [_pair(other, first, dataset, after, tested[0]) for other, after in zip(others, tested[1:], strict=True)]
    reached = [_reached(search, evaluation) for search, evaluation in zip(found, tested, strict=True)]
    return SideBySide(tuple(reached), tuple(pairs))


def _place(found: SearchResult) -> str:
    """Where a search lies, whatever links lead there."""
    root = found.files.root
    return str(root.resolve() if is_local(root) else root)


def _best(found: SearchResult) -> TrialResult | None:
    best = next(iter(found.ranked()), None)
    return best if best and best.state == "completed" and best.value is not None else None


def _reached(found: SearchResult, evaluation: Evaluation | None) -> ComparedSearch:
    best, again, metric = _best(found), confirmed(found.files), found.objective.metric
    chosen = next((one for one in again.candidates if one.trial == again.chosen), None) if again else None
    figure = evaluation.metrics.get(metric) if evaluation else None
    return ComparedSearch(
        search=str(found.files.root),
        name=found.record.name,
        metric=metric,
        trials=len(found.trials),
        completed=found.count("completed"),
        trial=best.number if best else None,
        best=best.value if best else None,
        confirmed=chosen.mean if chosen else None,
        test=figure.value if figure else None,
        images=sum(trial.images_seen for trial in found.trials),
        gpu_hours=sum(trial.cost_gpu_s for trial in found.trials) / 3600,
        ended=found.record.has_ended(found.trials),
        trainings=sum(value is not None for value in chosen.values) if chosen else 0,
        spread=chosen.spread if chosen else None,
        test_low=figure.low if figure else None,
        test_high=figure.high if figure else None,
    )


def _pair(
    found: SearchResult,
    first: SearchResult,
    dataset: Location | None,
    after: Evaluation | None,
    before: Evaluation | None,
) -> ComparedPair:
    asked = asked_otherwise(first.record, found.record)
    same = asked.pop("dataset", None) is None
    p_better, problem = _judged(found, first, dataset) if same else (None, _OTHER_DATASET)
    test = _tested(found, first, same, after.slices, before.slices) if after and before else None
    return ComparedPair(str(found.files.root), str(first.files.root), same, asked, p_better, problem, test)


def _tested(
    found: SearchResult, first: SearchResult, same_dataset: bool, after_slices: int, before_slices: int
) -> BundleChange:
    """What its bundle changes on the test patients, by the predictions that `evaluate` wrote of each."""
    metric, told = found.objective.metric, ""
    if not same_dataset:
        told = _OTHER_DATASET
    elif found.objective.metric != first.objective.metric or metric not in FIGURES:
        told = f"they must have the same objective, one of {', '.join(FIGURES)}"
    return BundleChange(None, problem=told) if told else _test_change(found, first, after_slices, before_slices)


def _test_change(found: SearchResult, first: SearchResult, after_slices: int, before_slices: int) -> BundleChange:
    after = read_predictions(found.files.predictions, after_slices)
    before = read_predictions(first.files.predictions, before_slices)
    if after is None or before is None:
        return BundleChange(None, problem="the predictions of one of them were not kept")
    if not (np.array_equal(after.slice_ids, before.slice_ids) and np.array_equal(after.labels, before.labels)):
        return BundleChange(None, problem="they have other test slices")
    if np.array_equal(after.probabilities, before.probabilities):
        return BundleChange(0.0, problem="they say the same of every test slice")
    labels = before.labels.astype(np.float64)
    changes = paired_changes(labels, before.probabilities, after.probabilities, before.patients.astype(str))
    change, sign = changes[found.objective.metric], found.objective.sign
    problem = "the test patients are too few for an interval" if change.low is None else ""
    return BundleChange(change.difference, change.low, change.high, sign, problem)


def _judged(found: SearchResult, first: SearchResult, dataset: Location | None) -> tuple[float | None, str]:
    """How probable it is that the best trial of one is better than that of the other, or why that is unknown."""
    one, other = found.objective, first.objective
    if one != other:
        return None, "their trials were judged otherwise"
    if one.networks > 1 and found.record.seed != first.record.seed:
        return None, "their patients were divided into other folds"
    try:
        parts = [_parts(search, dataset) for search in (found, first)]
        chances = chances_of_best(parts, one.metric)
    except (IchRayError, OSError, ValueError) as error:
        return None, str(error)
    if chances is None:
        return None, f"too few positive patients, or {one.metric} is no metric that draws of patients compare"
    return chances[0], ""


def _parts(found: SearchResult, dataset: Location | None) -> list[FoldPart]:
    """What the best trial said of those who judged it.

    Raises:
        ConfigError: that is not there any more, or its dataset is not.
    """
    best, where = _best(found), found.record.dataset_folder
    if best is None:
        raise ConfigError(f"{found.files.root} has no completed trial")
    if dataset is None and found.is_foreign(where):
        raise ConfigError(f"only search.json of {found.files.root} names its dataset, at {where}")
    held = PreparedDataset.of_search(found, dataset)
    judged = dict(judged_parts(found.files, held, [best], found.objective, found.record.seed))
    if best.number not in judged:
        raise ConfigError(f"the logits of trial {best.number} of {found.files.root} were not kept")
    return judged[best.number]
