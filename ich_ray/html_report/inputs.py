"""Everything the report is made from, read once; a file that is not there yet is None.

The records are those of the stages that wrote them.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import BaseModel

from ich_ray.assess.calibration import Calibration
from ich_ray.assess.evaluation import Evaluation
from ich_ray.bundle.card_file import has_card, read_card
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import IchRayError, IntegrityError
from ich_ray.refit.confirmation import Confirmation, chosen_trial
from ich_ray.refit.retrain_record import Retraining
from ich_ray.results import SearchResult, open_network_search
from ich_ray.storage import Location, read_record, read_table

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from upath import UPath

    from ich_ray.assess.study_figures import StudyFigures
    from ich_ray.bundle.card import Card
    from ich_ray.storage import SearchFiles
    from ich_ray.trial_records import TrialResult

__all__ = ["Inputs", "Predictions", "StudyTable", "gather", "read_evaluation", "read_predictions"]


@dataclass(frozen=True)
class Predictions:
    """predictions.parquet, in its order.

    Attributes:
        labels: 1 where `any` is positive, int64 `[n]`.
        probabilities: calibrated, float64 `[n]`.
        without_sequence: what the network alone would say, calibrated by itself; None where nothing can be said.
    """

    slice_ids: NDArray[np.object_]
    patients: NDArray[np.object_]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    without_sequence: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class StudyTable:
    """studies.parquet, in its order.

    Attributes:
        labels: 1 where a study shows haemorrhage, 0 where it does not, NaN where it is unknown, float64 `[n]`.
        probabilities: float64 `[n]`.
    """

    studies: NDArray[np.object_]
    patients: NDArray[np.object_]
    labels: NDArray[np.float64]
    probabilities: NDArray[np.float64]

    def labeled(self) -> StudyTable:
        """Those whose label is known."""
        known = ~np.isnan(self.labels)
        return StudyTable(self.studies[known], self.patients[known], self.labels[known], self.probabilities[known])


@dataclass(frozen=True)
class Inputs:
    """A search and all that later stages wrote about it.

    Attributes:
        best: None while no trial has completed.
        chosen: what is retrained: the trial that the confirmation chose, else the best one.
        dataset_problem: why `dataset` is None.
    """

    search: SearchResult
    best: TrialResult | None
    chosen: TrialResult | None
    confirmation: Confirmation | None
    retraining: Retraining | None
    calibration: Calibration | None
    evaluation: Evaluation | None
    predictions: Predictions | None
    studies: StudyTable | None
    card: dict[str, Any] | None
    dataset: PreparedDataset | None
    dataset_problem: str


_Kind = TypeVar("_Kind", bound=BaseModel)


def gather(where: Location, dataset: Location | None = None) -> Inputs:
    """Read a search directory and its `final/`.

    Where a bundle was made or calibrated again, its card has lost what came after: those files are of the one before.

    Args:
        where: the search.
        dataset: where its dataset lies; if not given where search.json says, but at no address that only it names.

    Raises:
        ConfigError: there is no search, or no dataset at `dataset`.
        IntegrityError: a file that is there cannot be read; it is named.
    """
    search = open_network_search(where)
    files = search.files
    held, problem = (PreparedDataset.of_search(search, dataset), "") if dataset is not None else _dataset(search)
    bundle = _card(files)
    card = bundle.model_dump(mode="json") if bundle else None
    calibrated = card is None or bool(card.get("operating_points"))
    best = _best(search)
    evaluation = _evaluation_of(bundle, files)
    return Inputs(
        search=search,
        best=best,
        chosen=chosen_trial(search) if best else None,
        confirmation=_read(files.confirmation, Confirmation),
        retraining=_read(files.retraining, Retraining),
        calibration=_read(files.calibration, Calibration) if calibrated else None,
        evaluation=evaluation,
        predictions=_predictions(files.predictions, evaluation.slices, card) if evaluation else None,
        studies=_read_studies(files.studies, evaluation.studies) if evaluation and evaluation.studies else None,
        card=card,
        dataset=held,
        dataset_problem=problem,
    )


def read_evaluation(files: SearchFiles) -> Evaluation | None:
    """What the test patients said of the bundle that is there.

    None also where they only judged the one before it.

    Raises:
        IntegrityError: a file that is there cannot be read; it is named.
    """
    return _evaluation_of(_card(files), files)


def _card(files: SearchFiles) -> Card | None:
    return read_card(files.bundle) if has_card(files.bundle) else None


def _evaluation_of(bundle: Card | None, files: SearchFiles) -> Evaluation | None:
    return _read(files.evaluation, Evaluation) if bundle is None or bundle.test else None


def _best(search: SearchResult) -> TrialResult | None:
    try:
        return search.best()
    except IchRayError:
        return None


def _read(path: UPath, kind: type[_Kind]) -> _Kind | None:
    if not path.exists():
        return None
    return read_record(path, kind, "remove the file and run its stage again")


def _predictions(path: UPath, slices: int, card: dict[str, Any] | None) -> Predictions | None:
    """What `evaluate` saw, without what older versions made of the network alone by the calibration of the blend."""
    found = read_predictions(path, slices)
    fitted = card is not None and ((card.get("sequence") or {}).get("own_scaling")) is not None
    return found if found is None or fitted else replace(found, without_sequence=None)


def read_predictions(path: UPath, slices: int) -> Predictions | None:
    """What `evaluate` saw of so many slices; None if there is no file.

    Raises:
        IntegrityError: the file is damaged, or a number in it is not what it must be.
    """
    if not path.exists():
        return None
    remedy, names = "remove the file and evaluate again", ("slice_id", "patient", "label", "probability")
    table = read_table(path, slices)
    try:
        columns = {name: table[name].to_numpy(zero_copy_only=False) for name in names}
        labels, probabilities = (np.asarray(columns[name], np.float64) for name in names[2:])
    except (KeyError, ValueError, TypeError) as error:
        raise IntegrityError(f"{path}: must hold {', '.join(names)}, got {error}; {remedy}") from None
    extra = "probability_without_sequence"
    without = np.asarray(table[extra].to_numpy(), np.float64) if extra in table.column_names else None
    if not (np.isin(labels, (0, 1)).all() and ((probabilities >= 0) & (probabilities <= 1)).all()):
        raise IntegrityError(f"{path}: labels of 0 and 1 and probabilities must be there, got others; {remedy}")
    return Predictions(columns["slice_id"], columns["patient"], labels.astype(np.int64), probabilities, without)


def _read_studies(path: UPath, figures: StudyFigures) -> StudyTable | None:
    """What `evaluate` saw of studies; None if there is no file.

    Raises:
        IntegrityError: the file is damaged, or a number in it is not what it must be.
    """
    if not path.exists():
        return None
    remedy, names = "remove the file and evaluate again", ("study", "patient", "label", "probability")
    table = read_table(path, figures.cases + figures.unknown)
    try:
        columns = {name: table[name].to_numpy(zero_copy_only=False) for name in names}
        named = [np.asarray(table[name].cast("string").to_pylist(), object) for name in names[:2]]
        labels, probabilities = (np.asarray(columns[name], np.float64) for name in names[2:])
    except (KeyError, ValueError, TypeError, NotImplementedError) as error:  # of Arrow, for what no text can be made of
        raise IntegrityError(f"{path}: must hold {', '.join(names)}, got {error}; {remedy}") from None
    known = labels[~np.isnan(labels)]
    if not (np.isin(known, (0, 1)).all() and ((probabilities >= 0) & (probabilities <= 1)).all()):
        raise IntegrityError(f"{path}: labels of 0 and 1 and probabilities must be there, got others; {remedy}")
    return StudyTable(named[0], named[1], labels, probabilities)


def _dataset(search: SearchResult) -> tuple[PreparedDataset | None, str]:
    """The dataset that the search used, or why its slices cannot be shown: the page needs them only for examples."""
    where = search.record.dataset_folder
    if search.is_foreign(where):
        return None, (
            f"The prepared dataset was not looked at: only search.json names {where}. To see it here make the page "
            f"with --dataset {shlex.quote(where)}, or with the place of a copy."
        )
    try:
        return PreparedDataset.of_search(search), ""
    except IchRayError as error:
        return None, f"The prepared dataset cannot be read: {error}"
