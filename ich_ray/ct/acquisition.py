"""How a slice was taken and reconstructed, as its header says.

Knows the elements of PS3.3 C.7.6.2 (Image Plane), C.8.2.1 (CT Image) and C.7.6.1 (General Image); does not judge them.
No identifier is among them, but what people typed is: print and keep only what `clean_name` returns of it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ich_ray.ct.elements import Elements

__all__ = ["Acquisition", "clean_name", "decimals", "read_acquisition"]

IMAGE_TYPE, SOP_CLASS, SERIES_DESCRIPTION, CONTRAST_AGENT = 0x00080008, 0x00080016, 0x0008103E, 0x00180010
THICKNESS, KERNEL = 0x00180050, 0x00181210
POSITION, ORIENTATION, PIXEL_SPACING = 0x00200032, 0x00200037, 0x00280030

_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_LONGEST_NAME = 64
_COSINE_ERROR = 0.1


@dataclass(frozen=True)
class Acquisition:
    """What the header says; empty or NaN where it does not, or not validly.

    Attributes:
        position: of the center of the first pixel, `(x, y, z)` in mm of the patient's axes (left, posterior, head).
        orientation: direction cosines of a row and of a column, six numbers.
        spacing_mm: between the centers of rows, then of columns; positive.
        image_type: values of ImageType, in capitals.
        sop_class: SOPClassUID.
        series_description: free text.
        kernel: ConvolutionKernel, free text.
        contrast: whether ContrastBolusAgent names one.
    """

    position: tuple[float, ...] = ()
    orientation: tuple[float, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    thickness_mm: float = math.nan
    image_type: tuple[str, ...] = ()
    series_description: str = ""
    kernel: str = ""
    contrast: bool = False
    sop_class: str = ""

    @cached_property  # it is asked for ten times a slice
    def normal(self) -> tuple[float, ...]:
        """The unit normal of the image, to the feet or the head; none without a valid orientation.

        Direction cosines must be of unit length and orthogonal (PS3.3 C.7.6.2.1.1); those that were rounded to one
        decimal still are within a tenth, those of zeros or of another element are not.
        """
        if not self.orientation:
            return ()
        (a, b, c), (d, e, f) = self.orientation[:3], self.orientation[3:]
        row, column = math.hypot(a, b, c), math.hypot(d, e, f)
        if max(abs(row - 1), abs(column - 1), abs(a * d + b * e + c * f)) > _COSINE_ERROR:
            return ()
        x, y, z = b * f - c * e, c * d - a * f, a * e - b * d  # np.cross takes 0.09 ms for this
        length = math.hypot(x, y, z)
        return (x / length, y / length, z / length)

    @cached_property
    def tilt_deg(self) -> float:
        """The angle between the image and the axial plane, 0 to 90; NaN without a valid orientation."""
        return math.degrees(math.acos(min(abs(self.normal[2]), 1.0))) if self.normal else math.nan

    @property
    def pixel_mm(self) -> float:
        """The mean of the two spacings; NaN without them."""
        return sum(self.spacing_mm) / 2 if self.spacing_mm else math.nan

    @property
    def position_mm(self) -> float:
        """Distance of the slice along its own normal (PS3.3 C.7.6.2.1.1).

        With a tilted gantry z alone misleads.
        """
        if not self.position:
            return math.nan
        if not self.normal:
            return self.position[2]
        return sum(n * p for n, p in zip(self.normal, self.position, strict=True))


def read_acquisition(elements: Elements) -> Acquisition:
    """How the slice of these elements was taken."""
    thickness, spacing = _numbers(elements, THICKNESS, 1), _numbers(elements, PIXEL_SPACING, 2)
    return Acquisition(
        position=_numbers(elements, POSITION, 3),
        orientation=_numbers(elements, ORIENTATION, 6),
        spacing_mm=spacing if spacing and min(spacing) > 0 else (),
        thickness_mm=thickness[0] if thickness else math.nan,
        image_type=tuple(part.strip().upper() for part in elements.text(IMAGE_TYPE).split("\\")),
        series_description=elements.text(SERIES_DESCRIPTION),
        kernel=elements.text(KERNEL),
        contrast=bool(elements.text(CONTRAST_AGENT)),
        sop_class=elements.text(SOP_CLASS),
    )


def clean_name(text: str) -> str:
    """A name such as a kernel's, fit to be kept: letters, digits and `. _ + - /`, at most 64 of them."""
    return re.sub(r"[^A-Za-z0-9._+/-]+", " ", text).strip()[:_LONGEST_NAME]


@lru_cache(maxsize=1024)  # slices of a series share most of theirs
def decimals(text: str) -> tuple[float, ...]:
    """The values of a DS element (PS3.5 6.2); none if any of them is not a finite decimal number."""
    parts = [part.strip(" ") for part in text.split("\\")]
    values = tuple(float(part) for part in parts if _DECIMAL.fullmatch(part))
    return values if len(values) == len(parts) and all(map(math.isfinite, values)) else ()


def _numbers(elements: Elements, tag: int, count: int) -> tuple[float, ...]:
    """The values of an element that must have so many; none otherwise."""
    values = decimals(elements.text(tag)) if tag in elements else ()
    return values if len(values) == count else ()
