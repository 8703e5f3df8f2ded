"""Which rectangle of each image a network sees: columns of slices.parquet in, rectangles out.

`crop: head` shows the head, by one box for all slices of a series, so that neither the scale nor the place changes from
slice to slice. `scale: mm` shows squares of one size in mm around the head, or around the middle of the image. Numbers
only: `predict` has no slices.parquet.

Array shapes: boxes are `[n, 4]` as in `ct.head_box.HEAD_BOX`; rectangles float32 `[n, 4]` as in
`model.resampling.resampled`: x and y of the center, half of the width and of the height, from -1 to 1 over the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.model.fields import NetworkFields

__all__ = ["FIELD_MM", "WHOLE", "plausible_sides", "series_boxes", "shown_rectangles"]

# What `scale: mm` shows: fields of view of the RSNA set are 220 to 260 mm, heads of adults up to 210 mm long.
FIELD_MM = 240.0
WHOLE = (0.0, 0.0, 1.0, 1.0)  # the whole image

_MARGIN = 0.05  # of the longer edge of a box, on each side
# Of the largest box of a series: less is a vertex that the others cover, or a table without a head.
_SMALLEST_PART = 1 / 3
# Of a head, whatever its box: slices of the vertex that stand alone are not shown as large as heads.
_SMALLEST_MM, _SMALLEST_UNKNOWN = 150.0, 0.5  # the latter of the image, where its size is not known
_PLAUSIBLE_MM = (50.0, 1000.0)


def shown_rectangles(
    parameters: NetworkFields, boxes: NDArray[np.float64], sides_mm: NDArray[np.float64]
) -> NDArray[np.float32]:
    """What a network of these parameters sees of each image: a square, which may reach beyond it.

    Args:
        parameters: their `crop` and `scale`.
        boxes: of the series of each image, see `series_boxes`; the whole image where NaN.
        sides_mm: of each image; one that is not known, or no side of a CT image, is shown as with `scale: pixels`.
    """
    rectangles = np.tile(np.array(WHOLE), (len(boxes), 1))
    sized = plausible_sides(sides_mm)
    if parameters.crop == "head":
        known = np.isfinite(boxes).all(1)
        top, left, bottom, right = boxes[known].T
        longer = np.maximum(bottom - top, right - left) * (1 + 2 * _MARGIN)
        smallest = np.full(len(boxes), _SMALLEST_UNKNOWN)
        smallest[sized] = np.minimum(_SMALLEST_MM / sides_mm[sized], 1)
        half = np.maximum(longer, smallest[known])  # of a side that is 2 long
        rectangles[known] = np.stack([left + right - 1, top + bottom - 1, half, half], 1)
    if parameters.scale == "mm":
        rectangles[sized, 2:] = (FIELD_MM / sides_mm[sized])[:, None]
    return rectangles.astype(np.float32)


def plausible_sides(sides_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of these may be the side of a CT image."""
    return np.asarray((sides_mm >= _PLAUSIBLE_MM[0]) & (sides_mm <= _PLAUSIBLE_MM[1]))


def series_boxes(series: NDArray[np.int64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each slice the box around all heads of its series, `[n, 4]`; NaN where none has one.

    Args:
        series: a number of the series of each slice; a slice of a negative one is a series of its own.
        boxes: of each slice; NaN where it shows no head.
    """
    keys = np.where(series >= 0, series, -1 - np.arange(len(series)))
    _, group = np.unique(keys, return_inverse=True)
    height, width = (boxes[:, 2:] - boxes[:, :2]).T
    known = np.flatnonzero(((boxes >= 0) & (boxes <= 1)).all(1) & (height > 0) & (width > 0))
    area = height * width
    largest = np.full(group.max(initial=-1) + 1, -np.inf)
    np.maximum.at(largest, group[known], area[known])
    known = known[area[known] >= _SMALLEST_PART * largest[group[known]]]
    found = np.tile(np.array([np.inf, np.inf, -np.inf, -np.inf]), (len(largest), 1))
    np.minimum.at(found[:, :2], group[known], boxes[known, :2])
    np.maximum.at(found[:, 2:], group[known], boxes[known, 2:])
    found[~np.isfinite(found).all(1)] = np.nan
    return found[group]
