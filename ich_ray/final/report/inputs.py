"""Everything the report is made from, read once; a file that is not there yet is None.

The formats are those that the other stages write. Keys that this page does not show are ignored, so that a stage may
say more than the page knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import IchRayError, IntegrityError
from ich_ray.results import Report, SearchResult, TrialResult, open_search
from ich_ray.storage import Location, read_json

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from upath import UPath

__all__ = ["Calibration", "Evaluation", "Inputs", "Interval", "OperatingPoint", "Predictions", "Retraining", "gather"]


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Interval(_Read):
    """A figure with its interval; None where it is not defined, such as the PPV of no positives."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


class Confusion(_Read):
    """Slices by truth and decision."""

    tp: int
    fp: int
    fn: int
    tn: int


class OperatingPoint(_Read):
    """A threshold with what it gave on the test patients."""

    threshold: float
    confusion: Confusion
    sensitivity: Interval = Interval()
    specificity: Interval = Interval()
    ppv: Interval = Interval()
    npv: Interval = Interval()
    f2: Interval = Interval()
    accuracy: Interval = Interval()


class Evaluation(_Read):
    """evaluation.json: the test patients."""

    slices: int
    patients: int
    positives: int
    prevalence: float
    opened: int
    time: float
    metrics: dict[str, Interval]
    operating_points: dict[str, OperatingPoint]
    floors: dict[str, float | None]
    at_chance: bool
    confidence: float
    resamples: int
    notes: tuple[str, ...] = ()

    @property
    def point(self) -> tuple[str, OperatingPoint] | None:
        """The operating point that decides: `f2`, or the first one if there is none of that name."""
        name = "f2" if "f2" in self.operating_points else next(iter(self.operating_points), None)
        return (name, self.operating_points[name]) if name else None


class Calibration(_Read):
    """calibration.json: the calibration patients."""

    slices: int
    patients: int
    positives: int
    prevalence: float
    temperature: float
    prior_shift: float
    log_loss_before: float
    log_loss_after: float


class Retraining(_Read):
    """retraining.json: the winner, trained again."""

    trial: int
    parameters: dict[str, Any]
    workers: int
    reports: tuple[Report, ...]
    best_images_seen: int
    stopped_early: bool
    seconds: float
    device: str


@dataclass(frozen=True)
class Predictions:
    """predictions.parquet, in its order.

    Attributes:
        labels: 1 where `any` is positive, int64 `[n]`.
        probabilities: calibrated, float64 `[n]`.
    """

    slice_ids: NDArray[np.object_]
    patients: NDArray[np.object_]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]


@dataclass(frozen=True)
class Inputs:
    """A search and all that later stages wrote about it.

    Attributes:
        best: None while no trial has completed.
        dataset_problem: why `dataset` is None.
    """

    search: SearchResult
    best: TrialResult | None
    retraining: Retraining | None
    calibration: Calibration | None
    evaluation: Evaluation | None
    predictions: Predictions | None
    card: dict[str, Any] | None
    dataset: PreparedDataset | None
    dataset_problem: str


_Kind = TypeVar("_Kind", bound=_Read)


def gather(where: Location) -> Inputs:
    """Read a search directory and its `final/`.

    Raises:
        ConfigError: there is no search.
        IntegrityError: a file that is there cannot be read; it is named.
    """
    search = open_search(where)
    files = search.files
    dataset, problem = _dataset(search)
    card = files.bundle / "card.json"
    return Inputs(
        search=search,
        best=_best(search),
        retraining=_read(files.retraining, Retraining),
        calibration=_read(files.calibration, Calibration),
        evaluation=_read(files.evaluation, Evaluation),
        predictions=_predictions(files.predictions),
        card=read_json(card) if card.exists() else None,
        dataset=dataset,
        dataset_problem=problem,
    )


def _best(search: SearchResult) -> TrialResult | None:
    try:
        return search.best()
    except IchRayError:
        return None


def _read(path: UPath, kind: type[_Kind]) -> _Kind | None:
    if not path.exists():
        return None
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise IntegrityError(
            f"{path}: must match its format, got {first['msg']} at {'.'.join(map(str, first['loc']))}; "
            "remove the file and run its stage again"
        ) from None


def _predictions(path: UPath) -> Predictions | None:
    if not path.exists():
        return None
    with path.open("rb") as file:
        table = pq.read_table(file)
    return Predictions(
        slice_ids=table["slice_id"].to_numpy(zero_copy_only=False),
        patients=table["patient"].to_numpy(zero_copy_only=False),
        labels=np.asarray(table["label"].to_numpy(zero_copy_only=False), np.int64),
        probabilities=np.asarray(table["probability"].to_numpy(zero_copy_only=False), np.float64),
    )


def _dataset(search: SearchResult) -> tuple[PreparedDataset | None, str]:
    """The dataset that the search used, or why its slices cannot be shown: the page needs them only for examples."""
    try:
        dataset = PreparedDataset.open(search.record.dataset)
    except IchRayError as error:
        return None, f"The prepared dataset cannot be read: {error}"
    if dataset.manifest.fingerprint != search.record.fingerprint:
        return None, (
            f"Another dataset lies at the place of the one that was searched: fingerprint {search.record.fingerprint} "
            f"was searched, {dataset.manifest.fingerprint} is there now."
        )
    return dataset, ""
