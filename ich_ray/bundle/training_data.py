"""How the slices that trained a bundle were taken, in its card, and which series are far from them.

A detector that saw slices of 5 mm calls those of 0.6 mm positive without a word: so it is said. Knows how slices were
taken, not their pixels: their windows stand in the card by themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from ich_ray.ct.slabs import SlabRule, known_median
from ich_ray.data.dataset import THICKEST_SLAB_MM
from ich_ray.data.series_survey import number_series, numbers
from ich_ray.statistics.aggregation import members
from ich_ray.storage import Count, Line, Record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.vocabulary import Role

__all__ = [
    "FAR_FLAGS",
    "Distribution",
    "Names",
    "SeriesLook",
    "TrainingData",
    "describe_training",
    "differences",
    "median_step",
    "site_note",
]

# Flags of `predict` alone: they depend on the bundle, those of `ct.dicom.FLAGS` on the file.
FAR_FLAGS = {
    "far_kernel": "a reconstruction kernel of less than 1 % of the slices that trained the bundle",
    "far_matrix": "rows and columns of less than 1 % of the slices that trained the bundle",
    "far_spacing": "pixels or distances between slices far outside those that trained the bundle",
    "far_thickness": "SliceThickness far outside those that trained the bundle",
}
# Beyond the 1st or 99th percentile by these factors. Slices of half or twice the thickness show a bleeding at another
# contrast; a field of view of 150 % shows a head of two thirds.
_FAR = {
    "thickness_mm": ("far_thickness", 2.0),
    "slice_spacing_mm": ("far_spacing", 2.0),
    "pixel_spacing_mm": ("far_spacing", 1.5),
}
_RARE = 0.01
_MOST_NAMES = 20
_PERCENTILES = (1, 5, 50, 95, 99)


class Distribution(Record):
    """Percentiles of a number over the slices that have it."""

    slices: Count
    p1: float
    p5: float
    median: float
    p95: float
    p99: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.p5:.3g} to {self.p95:.3g})" if self.p5 < self.p95 else f"{self.median:.3g}"

    def is_far(self, value: float, factor: float) -> bool:
        """Whether a value lies beyond the outer percentiles by more than a factor; NaN does not."""
        return bool(value < self.p1 / factor or value > self.p99 * factor)


class Names(Record):
    """The slices of the most frequent names; `others` have another one."""

    counts: dict[Line, Count]
    others: Count = 0

    def __str__(self) -> str:
        held = [name for name, count in self.counts.items() if count]
        return ", ".join([*held[:3], *["others"] * (len(held) > 3 or self.others > 0)])

    def is_rare(self, name: str) -> bool:
        """Whether few of the slices can have this name; none at all is not rare."""
        held = {known.upper(): count for known, count in self.counts.items()}
        total = sum(held.values()) + self.others
        return bool(name) and held.get(name.upper(), self.others) < _RARE * total


class TrainingData(Record):
    """How the slices that trained the weights were taken; None where their dataset does not say.

    Attributes:
        slices: that trained the weights.
        slice_spacing_mm: between neighbouring positions of a series, the median of each.
        pixel_spacing_mm: the mean of rows and columns.
        tilt_deg: between the slice and the axial plane; said, not compared.
        kernels: ConvolutionKernel.
        matrices: rows and columns, such as `512x512`.
        slab_mm: to which series finer than half of it were averaged when the dataset was prepared; 0 for none, and in
            cards from before slabs.
    """

    slices: Count
    thickness_mm: Distribution | None = None
    slice_spacing_mm: Distribution | None = None
    pixel_spacing_mm: Distribution | None = None
    tilt_deg: Distribution | None = None
    kernels: Names | None = None
    matrices: Names | None = None
    slab_mm: float = Field(default=0, ge=0, le=THICKEST_SLAB_MM, allow_inf_nan=False)

    @property
    def slab_rule(self) -> SlabRule | None:
        """To what thinner series are averaged: to the slabs of the dataset, by the rule that made them.

        Without slabs to the medians, one for the other where that is not known; a series as fine as the 5th percentile
        was seen as it is, and stays so.
        """
        if self.slab_mm:
            return SlabRule(self.slab_mm, self.slab_mm)
        thickness, spacing = self.thickness_mm or self.slice_spacing_mm, self.slice_spacing_mm or self.thickness_mm
        if thickness is None or spacing is None:
            return None
        known = all(0 < each.median <= THICKEST_SLAB_MM for each in (thickness, spacing))
        if not known:
            return None
        seen = (each.p5 if each.p5 > 0 else math.inf for each in (thickness, spacing))  # 0 is of no slice
        return SlabRule(thickness.median, spacing.median, *seen)

    @property
    def unknown(self) -> list[str]:
        """What cannot be compared, in words."""
        return [what for field, what in _WORDS.items() if field != "tilt_deg" and getattr(self, field) is None]

    def __str__(self) -> str:
        known = {what: value for field, what in _WORDS.items() if (value := getattr(self, field)) is not None}
        return "; ".join(f"{what} {value}" for what, value in known.items()) or "not available"


_WORDS = {
    "thickness_mm": "slice thickness in mm",
    "slice_spacing_mm": "distance of slices in mm",
    "pixel_spacing_mm": "pixel spacing in mm",
    "tilt_deg": "tilt in degrees",
    "kernels": "kernel",
    "matrices": "matrix",
}


@dataclass(frozen=True)
class SeriesLook:
    """How the slices of a series were taken: medians, NaN or empty where the headers do not say."""

    thickness_mm: float
    slice_spacing_mm: float
    pixel_spacing_mm: float
    kernel: str
    matrix: str


def differences(training: TrainingData, look: SeriesLook) -> dict[str, str]:
    """In what a series is far from the training data: keys of `FAR_FLAGS`, and in words."""
    found = {}
    for field, (flag, factor) in _FAR.items():
        held: Distribution | None = getattr(training, field)
        if held is not None and held.is_far(value := getattr(look, field), factor):
            found[flag] = f"{_WORDS[field]} {value:.3g}, trained with {held}"
    for field, flag, name in (("kernels", "far_kernel", look.kernel), ("matrices", "far_matrix", look.matrix)):
        names: Names | None = getattr(training, field)
        if names is not None and names.is_rare(name):
            found[flag] = f"{_WORDS[field]} {name}, trained with {names}"
    return found


def site_note(training: TrainingData | None, site: PreparedDataset, roles: Iterable[Role]) -> str:
    """In what another dataset, by its medians, is far from the training data, and whether it lacks slabs.

    Empty if in nothing. Lacking slabs is no reason to refuse it: `predict --no-slabs` sees what it shows.
    """
    if training is None:
        return ""
    here = describe_training(site, roles)
    medians = {field: held.median if (held := getattr(here, field)) else math.nan for field in _FAR}
    look = SeriesLook(**medians, kernel=_most_frequent(here.kernels), matrix=_most_frequent(here.matrices))
    return "; ".join(filter(None, [*differences(training, look).values(), _without_slabs(training, site, roles)]))


def _without_slabs(training: TrainingData, site: PreparedDataset, roles: Iterable[Role]) -> str:
    """How many series of a dataset are as they are, and would be averaged in `predict`; empty if none."""
    rule, names = training.slab_rule, site.slices.column_names
    if rule is None or not {"series", "position_mm"} <= {*names}:
        return ""
    slices = site.slices.filter(np.isin(site.column("role"), [*roles]))
    number, places_mm = number_series(slices), numbers(slices, "position_mm")
    thickness_mm, slab_mm = numbers(slices, "thickness_mm"), np.nan_to_num(numbers(slices, "slab_mm"))
    series = [rows for rows in members(number) if number[rows[0]] >= 0]
    finer = sum(
        not slab_mm[rows].any() and rule.is_finer(median_step(places_mm[rows]), known_median(thickness_mm[rows]))
        for rows in series
    )
    if not finer:
        return ""
    return (
        f"{finer} of {len(series)} series are finer, and `predict` would average them: prepare the site with --slab-mm "
        f"{rule.thickness_mm:g}, or predict with --no-slabs"
    )


def _most_frequent(names: Names | None) -> str:
    """The name of more slices than others have; empty if there is none."""
    held = {} if names is None else names.counts
    name = max(held, key=lambda name: held[name], default="")
    return name if names is not None and held.get(name, 0) > names.others else ""


def describe_training(dataset: PreparedDataset, roles: Iterable[Role]) -> TrainingData:
    """What the slices of these roles looked like, by the columns that their dataset has.

    Slabs look as thick as they are, and lie as far apart as their neighbors do.
    """
    rows = np.flatnonzero(np.isin(dataset.column("role"), [*roles]))
    there = {name: dataset.column(name)[rows] for name in _COLUMNS if name in dataset.slices.column_names}
    series, position = there.get("series"), there.get("position_mm")
    spacing = None if series is None or position is None else _slice_spacing(series, position.astype(np.float64))
    thickness = there.get("thickness_mm")
    if "slab_mm" in there:
        slab_mm = there["slab_mm"].astype(np.float64)
        spacing, thickness = (
            None if held is None else np.where(slab_mm > 0, slab_mm, held.astype(np.float64))
            for held in (spacing, thickness)
        )
    return TrainingData(
        slices=len(rows),
        thickness_mm=_distribution(thickness),
        slice_spacing_mm=_distribution(spacing),
        pixel_spacing_mm=_distribution(there.get("spacing_mm")),
        tilt_deg=_distribution(there.get("tilt_deg")),
        kernels=_names(there.get("kernel")),
        matrices=_matrices(there),
        slab_mm=dataset.manifest.slab_mm,
    )


_COLUMNS = ("series", "position_mm", "thickness_mm", "slab_mm", "spacing_mm", "tilt_deg", "kernel", "flags")


def median_step(positions: NDArray[np.floating[Any]]) -> float:
    """The median distance of neighbouring distinct positions; NaN of fewer than two."""
    places = np.unique(np.round(positions[np.isfinite(positions)], 2))
    return float(np.median(np.diff(places))) if len(places) > 1 else np.nan


def _slice_spacing(series: NDArray[np.object_], positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the series of each slice, `[n]`."""
    _, number = np.unique(series.astype(str), return_inverse=True)
    found = np.full(len(series), np.nan)
    for part in members(number):
        if series[part[0]]:  # slices without a series are none together
            found[part] = median_step(positions[part])
    return found


def _distribution(values: NDArray[np.object_] | NDArray[np.float64] | None) -> Distribution | None:
    if values is None:
        return None
    numbers = values.astype(np.float64)
    known = numbers[np.isfinite(numbers)]
    if not len(known):
        return None
    p1, p5, median, p95, p99 = np.percentile(known, _PERCENTILES).round(4).tolist()
    return Distribution(slices=len(known), p1=p1, p5=p5, median=median, p95=p95, p99=p99)


def _names(values: NDArray[np.object_] | None) -> Names | None:
    known = [] if values is None else [name for name in values.tolist() if name]
    if not known:
        return None
    names, counts = np.unique(np.array(known, str), return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_MOST_NAMES]
    held = {str(names[place]): int(counts[place]) for place in order}
    return Names(counts=held, others=len(known) - sum(held.values()))


def _matrices(columns: dict[str, NDArray[np.object_]]) -> Names | None:
    """Of the flags alone: which slices are not 512x512, but not what they are."""
    if "flags" not in columns or not len(columns["flags"]):
        return None
    others = sum("not_512" in flags.split(",") for flags in columns["flags"].tolist())
    return Names(counts={"512x512": len(columns["flags"]) - others}, others=others)
