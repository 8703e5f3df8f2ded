"""Several searches side by side: what they asked, reached and cost, and which differences are noise.

Whether the best of one is better than that of another is judged by the same patients, drawn again; where their logits
or the dataset are not there, that is said.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ich_ray.assess.evaluation import Evaluation
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError, IchRayError
from ich_ray.refit.confirmation import confirmed
from ich_ray.search.chances import judged_parts
from ich_ray.search.ledger import differences
from ich_ray.statistics.pooling import chances_of_best
from ich_ray.storage import exists, read_record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ich_ray.results import SearchResult
    from ich_ray.search_records import TrialResult
    from ich_ray.statistics.pooling import FoldPart

__all__ = ["ComparedPair", "ComparedSearch", "SideBySide", "side_by_side"]

# Of the draws of patients, in which the best of one search must be better: an interval of 95 % to both sides.
_BEYOND_NOISE = 0.975


@dataclass(frozen=True)
class ComparedSearch:
    """What a search reached, and what it cost.

    Attributes:
        search: its folder.
        best: the selection score of `trial`, the best completed one, which is optimistic.
        confirmed: the mean of the chosen trial in its confirmation.
        test: the objective on the test patients, of the bundle.
        images: of all trials, and `gpu_hours` of theirs.
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


@dataclass(frozen=True)
class ComparedPair:
    """A search after the first one, and that one.

    Attributes:
        same_dataset: whether their patients and images are the same.
        differences: in what was asked, a line each.
        p_better: the share of draws of patients in which the best trial of this one is better; None if unknown.
        problem: why it is unknown.
    """

    search: str
    other: str
    same_dataset: bool
    differences: tuple[str, ...]
    p_better: float | None
    problem: str = ""

    @property
    def verdict(self) -> str:
        """What can be said of the difference between their best trials."""
        if self.p_better is None:
            return f"cannot be told apart from noise: {self.problem}"
        told = f"(better in {self.p_better:.1%} of draws of the patients who judged both)"
        if max(self.p_better, 1 - self.p_better) < _BEYOND_NOISE:
            return f"within noise {told}"
        return f"{'better' if self.p_better > 0.5 else 'worse'} beyond noise {told}"


@dataclass(frozen=True)
class SideBySide:
    """All of them in the order that was given, and each after the first beside it."""

    searches: tuple[ComparedSearch, ...]
    pairs: tuple[ComparedPair, ...]

    def figures(self) -> dict[str, Any]:
        """For programs."""
        pairs = [{**asdict(pair), "verdict": pair.verdict} for pair in self.pairs]
        return {"searches": [asdict(search) for search in self.searches], "pairs": pairs}


def side_by_side(found: Sequence[SearchResult]) -> SideBySide:
    """Compare searches with the first of them.

    Raises:
        ConfigError: one is given twice.
        IntegrityError: a file of one is damaged.
    """
    folders = sorted(str(search.files.root) for search in found)
    if twice := next((one for one, other in pairwise(folders) if one == other), ""):
        raise ConfigError(f"results: each search must be given once, got {twice} twice; leave one out")
    first, *others = found
    return SideBySide(tuple(map(_reached, found)), tuple(_pair(other, first) for other in others))


def _best(found: SearchResult) -> TrialResult | None:
    best = next(iter(found.ranked()), None)
    return best if best and best.state == "completed" and best.value is not None else None


def _reached(found: SearchResult) -> ComparedSearch:
    best, again, metric = _best(found), confirmed(found.files), found.objective.metric
    chosen = next((one for one in again.candidates if one.trial == again.chosen), None) if again else None
    evaluated = exists(found.files.evaluation)
    test = read_record(found.files.evaluation, Evaluation, "remove the file and evaluate again") if evaluated else None
    figure = test.metrics.get(metric) if test else None
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
    )


def _pair(found: SearchResult, first: SearchResult) -> ComparedPair:
    same = found.record.fingerprint == first.record.fingerprint
    asked = [line for line in differences(first.record, found.record) if not line.startswith("dataset: ")]
    lines = tuple(line.replace(": there ", ": ", 1).replace(", asked ", " -> ", 1) for line in asked)
    p_better, problem = _judged(found, first) if same else (None, "they are of different datasets")
    return ComparedPair(str(found.files.root), str(first.files.root), same, lines, p_better, problem)


def _judged(found: SearchResult, first: SearchResult) -> tuple[float | None, str]:
    """How probable it is that the best trial of one is better than that of the other, or why that is unknown."""
    one, other = found.objective, first.objective
    if one != other:
        return None, "their trials were judged otherwise"
    if one.networks > 1 and found.record.seed != first.record.seed:
        return None, "their patients were divided into other folds"
    try:
        parts = [_parts(search) for search in (found, first)]
        chances = chances_of_best(parts, one.metric)
    except (IchRayError, OSError, ValueError) as error:
        return None, str(error)
    if chances is None:
        return None, f"too few positive patients, or {one.metric} is no metric that draws of patients compare"
    return chances[0], ""


def _parts(found: SearchResult) -> list[FoldPart]:
    """What the best trial said of those who judged it.

    Raises:
        ConfigError: that is not there any more, or its dataset is not.
    """
    best, where = _best(found), found.record.dataset_folder
    if best is None:
        raise ConfigError(f"{found.files.root} has no completed trial")
    if found.is_foreign(where):
        raise ConfigError(f"only search.json of {found.files.root} names its dataset, at {where}")
    dataset = PreparedDataset.open(where, fingerprint=found.record.fingerprint)
    judged = dict(judged_parts(found.files, dataset, [best], found.objective, found.record.seed))
    if best.number not in judged:
        raise ConfigError(f"the logits of trial {best.number} of {found.files.root} were not kept")
    return judged[best.number]
