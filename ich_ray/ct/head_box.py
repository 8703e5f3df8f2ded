"""Where the head lies in a slice: the box of the largest body above air.

Knows one slice at a time; the loop is in kernels.py. What a series makes of the boxes of its slices is in
data/shown_rectangles.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ich_ray.ct.dicom import CTSlice, SliceHeader

__all__ = ["HEAD_BOX", "NO_BOX", "head_box", "side_mm"]

# Edges in shares of the side of the square that the image is padded to, from its top and its left.
HEAD_BOX = ("head_top", "head_left", "head_bottom", "head_right")
NO_BOX = (math.nan,) * 4

_AIR_HU = -500.0  # between lung or foam and skin
# Cells of a side: 2 mm of 250 each. What is thinner than three of them is no body.
_CELLS = 128
_SMALLEST = 0.002  # of the cells: 1 cm2 of a field of 250 mm


def head_box(ct: CTSlice) -> tuple[float, ...]:
    """The box of the largest body in a slice, as `HEAD_BOX`; NaN where there is none.

    A table, a strap or a tube is thinner than the opening or smaller than the head. 0.02 ms for 512 x 512.
    """
    from ich_ray.ct.kernels import largest_body

    rows, columns = ct.stored.shape
    side = max(rows, columns)
    step = max(side // _CELLS, 1)
    above = math.floor((_AIR_HU - ct.intercept) / ct.slope)
    *box, area = largest_body(ct.stored, above, step)
    if area * step**2 < _SMALLEST * side**2:
        return NO_BOX
    first_row, first_column = (side - rows) // 2, (side - columns) // 2
    # Cells that do not fill the image leave out less than one of them at its lower and right edge.
    ends = [edge * step + first for edge, first in zip(box, (first_row, first_column) * 2, strict=True)]
    return tuple(end / side for end in ends)


def side_mm(header: SliceHeader) -> float:
    """The side of the square that the image is padded to, in mm; NaN without PixelSpacing."""
    return max(header.rows, header.columns) * header.acquisition.pixel_mm
