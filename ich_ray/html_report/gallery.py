"""Example slices: where the model was most sure, and right or wrong.

Slices are named by their row in predictions.parquet, never by an identifier of the DICOM file: a page is passed on.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from PIL import Image

from ich_ray.bundle.heatmap_overlay import overlay, strength
from ich_ray.ct.windowing import brain_channel
from ich_ray.data.dataset import SliceSet
from ich_ray.errors import ConfigError
from ich_ray.html_report.style import count, number
from ich_ray.vocabulary import SUBTYPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.html_report.inputs import Inputs, Predictions

__all__ = ["Example", "Gallery", "Kind", "data_uri", "examples", "gallery", "no_heat", "pick", "small_png"]

Heat = Callable[["SliceSet"], "NDArray[np.float32] | None"]
Kind = Literal["right positive", "right negative", "false alarm", "miss"]
EACH = 6
MOST_PIXELS = 256  # on a side: 24 pictures stay under 1.5 MB


@dataclass(frozen=True)
class Example:
    """One slice to look at, as data URIs.

    `heat` is the slice under its heat map, empty without one.
    """

    image: str
    heat: str
    probability: str
    label: str
    row: str


@dataclass(frozen=True)
class Gallery:
    """Examples by the title of their kind, or why there are none, or no heat maps."""

    groups: list[tuple[str, list[Example]]]
    window: str = ""
    problem: str = ""
    heat_problem: str = ""


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
    heat, heat_problem = _heat(inputs)
    found = examples(inputs.dataset, inputs.predictions, inputs.evaluation.point[1].threshold, heat)
    windows = inputs.dataset.manifest.windows
    window = windows[brain_channel(windows)]
    low, high = window.center_hu - window.width_hu / 2, window.center_hu + window.width_hu / 2
    groups = [(title, found[kind]) for kind, title in _TITLES.items()]
    return Gallery(groups, window=f"{window.name} window, {low:g} to {high:g} HU", heat_problem=heat_problem)


def _heat(inputs: Inputs) -> tuple[Heat, str]:
    """The heat of slices by the bundle that was evaluated, or none and why."""
    from ich_ray.bundle.bundle import WEIGHTS_FILE, load_bundle  # loads PyTorch

    if not (inputs.search.files.bundle / WEIGHTS_FILE).exists():
        return no_heat, "Heat maps need the bundle, which is not there."
    try:
        from ich_ray.bundle.grad_cam import check_captum, grad_cam

        check_captum()
    except ConfigError:
        return no_heat, "Heat maps need captum: pip install 'ich_ray[heatmaps]', then write this page again."
    from ich_ray.model.architectures import architecture_of

    bundle = load_bundle(inputs.search.files.bundle)
    try:
        architecture_of(bundle.card.parameters).heat_layer(bundle.card.parameters)
    except ConfigError:
        return no_heat, f"There are no heat maps: {bundle.card.parameters.architecture} ends in no map of places."
    return lambda slices: grad_cam(bundle, bundle.inputs(slices), bundle.rectangles(slices)), ""


def no_heat(slices: SliceSet) -> None:
    """What is drawn over slices where there is no bundle to ask."""


def pick(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    patients: NDArray[np.object_],
    threshold: float,
    each: int = EACH,
) -> dict[Kind, list[int]]:
    """Pick positions of the most confident slices of each kind, at most one per patient.

    Six pictures are then of six patients.
    """
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


def examples(
    dataset: PreparedDataset, predictions: Predictions, threshold: float, heat: Heat = no_heat
) -> dict[Kind, list[Example]]:
    """Pictures of the brain window with probability and labels.

    Slices that the dataset lacks are left out. Below the threshold a heat map fades with the probability, as
    `heatmaps.HeatMaps` does it.
    """
    rows = {slice_id: row for row, slice_id in enumerate(dataset.column("slice_id"))}
    chosen = pick(predictions.labels, predictions.probabilities, predictions.patients, threshold)
    found: dict[Kind, list[Example]] = {}
    for kind in get_args(Kind):
        positions = [position for position in chosen[kind] if predictions.slice_ids[position] in rows]
        held = np.array([rows[predictions.slice_ids[position]] for position in positions], np.int64)
        images = dataset.gather(held)
        hot = heat(SliceSet(dataset, held)) if len(held) else None
        found[kind] = [
            _example(dataset, predictions, (position, row), image, None if hot is None else hot[index], threshold)
            for index, (position, row, image) in enumerate(zip(positions, held.tolist(), images, strict=True))
        ]
    return found


def _example(
    dataset: PreparedDataset,
    predictions: Predictions,
    place: tuple[int, int],
    image: NDArray[np.uint8],
    hot: NDArray[np.float32] | None,
    threshold: float,
) -> Example:
    position, row = place
    subtypes = [name for name in SUBTYPES if dataset.slices[name][row].as_py()]
    truth = ", ".join(subtypes) or ("haemorrhage" if predictions.labels[position] else "no haemorrhage")
    probability, grey = float(predictions.probabilities[position]), image[brain_channel(dataset.manifest.windows)]
    return Example(
        image=data_uri(grey),
        heat="" if hot is None else data_uri(overlay(grey, hot * np.float32(strength(probability, threshold)))),
        probability=number(probability),
        label=truth,
        row=count(position),
    )


def data_uri(image: NDArray[np.uint8], most_pixels: int = MOST_PIXELS) -> str:
    """An image as the page holds it, see `small_png`."""
    return f"data:image/png;base64,{base64.b64encode(small_png(image, most_pixels)).decode()}"


def small_png(image: NDArray[np.uint8], most_pixels: int = MOST_PIXELS) -> bytes:
    """A PNG of gray `[rows, columns]` or color `[rows, columns, 3]`, of so many pixels a side at most."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((most_pixels, most_pixels), Image.Resampling.BOX)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
