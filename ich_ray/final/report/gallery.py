"""Example slices: where the model was most sure, and right or wrong.

Slices are named by their row in predictions.parquet, never by an identifier of the DICOM file: a page is passed on.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from PIL import Image

from ich_ray.data.dataset import SUBTYPES
from ich_ray.final.report.style import count, number

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.final.report.inputs import Inputs, Predictions

__all__ = ["Example", "Gallery", "Kind", "examples", "gallery", "grey_png", "pick"]

Kind = Literal["right positive", "right negative", "false alarm", "miss"]
EACH = 6
MOST_PIXELS = 256  # on a side: 24 pictures stay under 1.5 MB


@dataclass(frozen=True)
class Example:
    """One slice to look at. `image` is a data URI."""

    image: str
    probability: str
    label: str
    row: str


@dataclass(frozen=True)
class Gallery:
    """Examples by the title of their kind, or why there are none."""

    groups: list[tuple[str, list[Example]]]
    window: str = ""
    problem: str = ""


_TITLES: dict[Kind, str] = {
    "right positive": "Flagged, and haemorrhage is there",
    "false alarm": "False alarms: flagged, no haemorrhage",
    "miss": "Misses: haemorrhage, not flagged",
    "right negative": "Not flagged, and no haemorrhage",
}


def gallery(inputs: Inputs) -> Gallery:
    """The examples of an evaluated search whose dataset is still there."""
    if inputs.evaluation is None or inputs.evaluation.point is None or inputs.predictions is None:
        return Gallery([], problem="Examples are taken from the test patients once they have been evaluated.")
    if inputs.dataset is None:
        return Gallery([], problem=inputs.dataset_problem)
    found = examples(inputs.dataset, inputs.predictions, inputs.evaluation.point[1].threshold)
    window = inputs.dataset.manifest.windows[_channel(inputs.dataset)]
    low, high = window.center_hu - window.width_hu / 2, window.center_hu + window.width_hu / 2
    groups = [(title, found[kind]) for kind, title in _TITLES.items()]
    return Gallery(groups, window=f"{window.name} window, {low:g} to {high:g} HU")


def _channel(dataset: PreparedDataset) -> int:
    """The brain window, or the first one where the dataset has none."""
    names = [window.name for window in dataset.manifest.windows]
    return names.index("brain") if "brain" in names else 0


def pick(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    patients: NDArray[np.object_],
    threshold: float,
    each: int = EACH,
) -> dict[Kind, list[int]]:
    """Positions of the most confident slices of each kind, at most one per patient, so that six are six cases."""
    flagged = probabilities >= threshold
    positive = labels == 1
    groups: dict[Kind, NDArray[np.bool_]] = {
        "right positive": flagged & positive,
        "false alarm": flagged & ~positive,
        "miss": ~flagged & positive,
        "right negative": ~flagged & ~positive,
    }
    found: dict[Kind, list[int]] = {}
    for kind, group in groups.items():
        sign = -1 if kind in {"right positive", "false alarm"} else 1
        order = np.flatnonzero(group)[np.argsort(sign * probabilities[group], kind="stable")]
        seen: dict[object, int] = {}
        for position in order:
            seen.setdefault(patients[position], int(position))
            if len(seen) == each:
                break
        found[kind] = list(seen.values())
    return found


def examples(dataset: PreparedDataset, predictions: Predictions, threshold: float) -> dict[Kind, list[Example]]:
    """Pictures of the brain window with probability and labels; slices that the dataset lacks are left out."""
    channel = _channel(dataset)
    rows = {slice_id: row for row, slice_id in enumerate(dataset.column("slice_id"))}
    chosen = pick(predictions.labels, predictions.probabilities, predictions.patients, threshold)
    return {
        kind: [
            _example(dataset, predictions, position, rows[predictions.slice_ids[position]], channel)
            for position in chosen[kind]
            if predictions.slice_ids[position] in rows
        ]
        for kind in get_args(Kind)
    }


def _example(dataset: PreparedDataset, predictions: Predictions, position: int, row: int, channel: int) -> Example:
    image = dataset.gather(np.array([row]))[0, channel]
    subtypes = [name for name in SUBTYPES if dataset.slices[name][row].as_py()]
    truth = ", ".join(subtypes) or ("haemorrhage" if predictions.labels[position] else "no haemorrhage")
    return Example(
        image=f"data:image/png;base64,{base64.b64encode(grey_png(image)).decode()}",
        probability=number(float(predictions.probabilities[position])),
        label=truth,
        row=count(position),
    )


def grey_png(image: NDArray[np.uint8]) -> bytes:
    """A greyscale PNG of `[rows, columns]`, made smaller if a side has more than 256 pixels."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((MOST_PIXELS, MOST_PIXELS), Image.Resampling.BOX)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
