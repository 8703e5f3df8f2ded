"""Strips of studies: the probability of slices along the head, the truth, the slices that decided.

Missed and false studies come first. Studies are named by their row in studies.parquet, never by an identifier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ich_ray.bundle.answering_series import answering_series
from ich_ray.bundle.training_data import TrainingData
from ich_ray.ct.windowing import brain_channel
from ich_ray.data.dataset import SliceSet
from ich_ray.data.series_survey import numbers
from ich_ray.data.study_labels import studies_of
from ich_ray.html_report.gallery import data_uri
from ich_ray.html_report.style import count, number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.html_report.inputs import Inputs, Predictions, StudyTable

__all__ = ["StudyKind", "StudyStrip", "Thumbnail", "pick_studies", "strips"]

StudyKind = Literal["miss", "false alarm", "right positive", "right negative"]
_TITLES: dict[StudyKind, str] = {
    "miss": "Missed studies: haemorrhage, not flagged",
    "false alarm": "False studies: flagged, no haemorrhage",
    "right positive": "Flagged, and haemorrhage is there",
    "right negative": "Not flagged, and no haemorrhage",
}
_EACH: dict[StudyKind, int] = {"miss": 8, "false alarm": 8, "right positive": 3, "right negative": 3}
_DECIDING = 3
_THUMBNAIL_PIXELS = 128  # 66 pictures stay under 1 MB
WIDTH, HEIGHT = 600, 100  # of the drawing, which the page stretches


@dataclass(frozen=True)
class Thumbnail:
    """A slice that decided, as a data URI, with its place in the series."""

    image: str
    probability: str
    place: str
    label: str


@dataclass(frozen=True)
class StudyStrip:
    """One study.

    Attributes:
        line: SVG points of the probability of its slices, in their order; `alone` those of the network without its
            sequence model, empty where there is none.
        bleeding: where slices show haemorrhage, as x of the drawing; `labeled` whether that is known.
        decided: x of the slices that decided.
        threshold: y of the threshold of slices.
        change: how far the sequence model moved its most probable slice, in words; empty without one.
    """

    row: str
    probability: str
    truth: str
    slices: str
    others: str
    line: str
    alone: str
    bleeding: list[float]
    labeled: bool
    decided: list[float]
    threshold: float | None
    thumbnails: list[Thumbnail]
    change: str


def pick_studies(
    labels: NDArray[np.float64], probabilities: NDArray[np.float64], threshold: float
) -> dict[StudyKind, list[int]]:
    """Positions of studies of each kind, those on which the model was most sure first.

    Studies whose label is unknown (NaN) are of no kind.
    """
    found: dict[StudyKind, list[int]] = {}
    for kind, group in _kinds(labels, probabilities, threshold).items():
        sign = -1 if kind in {"false alarm", "right positive"} else 1
        order = np.flatnonzero(group)[np.argsort(sign * probabilities[group], kind="stable")]
        found[kind] = order[: _EACH[kind]].tolist()
    return found


def _kinds(
    labels: NDArray[np.float64], probabilities: NDArray[np.float64], threshold: float
) -> dict[StudyKind, NDArray[np.bool_]]:
    """Which studies are of each kind."""
    flagged = probabilities >= threshold
    return {
        "miss": ~flagged & (labels == 1),
        "false alarm": flagged & (labels == 0),
        "right positive": flagged & (labels == 1),
        "right negative": ~flagged & (labels == 0),
    }


def strips(inputs: Inputs) -> list[tuple[str, int, list[StudyStrip]]]:
    """Title of each kind, how many studies are of it, and strips of some; nothing without the data."""
    evaluation, studies, predictions, dataset = inputs.evaluation, inputs.studies, inputs.predictions, inputs.dataset
    point = evaluation.studies.point if evaluation and evaluation.studies else None
    if evaluation is None or studies is None or predictions is None or dataset is None or point is None:
        return []
    drawing = _Drawing(
        dataset, predictions, _training(inputs), evaluation.point[1].threshold if evaluation.point else None
    )
    threshold, found = point[1].threshold, []
    chosen = pick_studies(studies.labels, studies.probabilities, threshold)
    kinds = _kinds(studies.labels, studies.probabilities, threshold)
    for kind, title in _TITLES.items():
        drawn = [drawing.strip(studies, place) for place in chosen[kind]]
        found.append((title, int(kinds[kind].sum()), [strip for strip in drawn if strip is not None]))
    return found


def _training(inputs: Inputs) -> TrainingData | None:
    held = (inputs.card or {}).get("training_data")
    return TrainingData.model_validate(held) if held else None


class _Drawing:
    """What all strips need: the slices of each test study, and which series answers."""

    def __init__(
        self, dataset: PreparedDataset, predictions: Predictions, known: TrainingData | None, threshold: float | None
    ) -> None:
        self._dataset, self._predictions, self._threshold = dataset, predictions, threshold
        rows = {slice_id: row for row, slice_id in enumerate(dataset.column("slice_id"))}
        self._held = np.array([place for place, name in enumerate(predictions.slice_ids) if name in rows], np.int64)
        self._rows = np.array([rows[name] for name in predictions.slice_ids[self._held]], np.int64)
        slices = SliceSet(dataset, self._rows)
        self._studies = studies_of(slices)
        self._answers = answering_series(slices, known)
        self._places_mm = numbers(dataset.slices, "position_mm")[self._rows]
        pairs = zip(self._studies.names, self._studies.patients, strict=True)
        self._number: Mapping[tuple[str, str], int] = {pair: place for place, pair in enumerate(pairs)}

    def strip(self, studies: StudyTable, row: int) -> StudyStrip | None:
        """The strip of one study; None where the dataset does not hold its slices."""
        number_of = self._number.get((studies.studies[row], studies.patients[row]))
        if number_of is None:
            return None
        of_study = self._studies.of_slice == number_of
        places = np.flatnonzero(of_study & self._answers)
        places = places[np.argsort(self._places_mm[places], kind="stable")]
        held = self._held[places]
        probabilities = self._predictions.probabilities[held]
        deciding = np.argsort(-probabilities, kind="stable")[:_DECIDING]
        x = _spread(len(places))
        others = int(of_study.sum()) - len(places)
        return StudyStrip(
            row=count(row),
            probability=number(float(studies.probabilities[row])),
            truth={1.0: "haemorrhage", 0.0: "no haemorrhage"}[float(studies.labels[row])],
            slices=count(len(places)),
            others=f", {count(others)} more in other series" if others else "",
            line=_points(x, probabilities),
            alone="" if self._predictions.without_sequence is None
            else _points(x, self._predictions.without_sequence[held]),
            bleeding=x[self._predictions.labels[held] == 1].tolist(),
            labeled=self._dataset.manifest.level == "slice",
            decided=x[np.sort(deciding)].tolist(),
            threshold=None if self._threshold is None else _y(self._threshold),
            thumbnails=[self._thumbnail(places, place) for place in deciding.tolist()],
            change=self._change(held, deciding),
        )  # fmt: skip

    def _thumbnail(self, places: NDArray[np.int64], place: int) -> Thumbnail:
        position = self._held[places[place]]
        image = self._dataset.gather(self._rows[places[[place]]])[0, brain_channel(self._dataset.manifest.windows)]
        return Thumbnail(
            image=data_uri(image, _THUMBNAIL_PIXELS),
            probability=number(float(self._predictions.probabilities[position])),
            place=f"slice {place + 1} of {len(places)}",
            label="haemorrhage" if self._predictions.labels[position] else "no haemorrhage",
        )

    def _change(self, held: NDArray[np.int64], deciding: NDArray[np.int64]) -> str:
        alone = self._predictions.without_sequence
        if alone is None or not len(deciding):
            return ""
        position = held[deciding[0]]
        before, after = float(alone[position]), float(self._predictions.probabilities[position])
        return f"its most probable slice without the sequence model {number(before)}, with it {number(after)}"


def _spread(slices: int) -> NDArray[np.float64]:
    return np.round(WIDTH * (np.arange(slices) + 0.5) / max(slices, 1), 1)


def _y(probability: float) -> float:
    return round(HEIGHT * (1 - probability), 1)


def _points(x: NDArray[np.float64], probabilities: NDArray[np.float64]) -> str:
    return " ".join(f"{place:g},{_y(float(value)):g}" for place, value in zip(x, probabilities, strict=True))
