"""HU windows: which part of the CT scale a channel shows, and slices seen through them.

Knows one slice at a time; the loops are in kernels.py. The window tags of the files are not used: in the RSNA set they
are multi-valued in half the files and inconsistent in the others.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ich_ray.errors import ConfigError, nearest
from ich_ray.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ich_ray.ct.dicom import CTSlice

__all__ = [
    "DEFAULT_WINDOWS",
    "MOST_WINDOWS",
    "WINDOWS",
    "WindowSpec",
    "brain_channel",
    "parse_windows",
    "window_slice",
]

_FARTHEST_HU = 2**17
# A channel each: published systems use 1 and 3.
MOST_WINDOWS = 64
_NAME = re.compile(r"[\w-]{1,200}")
_BLACK_HU = -32768  # below every window that shows anything
_LARGEST_INTEGER_SLOPE = 1000  # 16-bit words times this fit into 32 bits
_WIDEST_INTEGER_SUM = 2**31 - 1


class WindowSpec(BaseModel):
    """A window: HU from `center_hu - width_hu / 2` (black) to `center_hu + width_hu / 2` (white).

    Far beyond 16-bit words there is nothing to see, and edges would not fit the kernels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[\w-]+$", max_length=200)
    center_hu: float = Field(ge=-_FARTHEST_HU, le=_FARTHEST_HU, allow_inf_nan=False)
    width_hu: float = Field(gt=0, le=_FARTHEST_HU, allow_inf_nan=False)


BRAIN = WindowSpec(name="brain", center_hu=40, width_hu=80)
SUBDURAL = WindowSpec(name="subdural", center_hu=80, width_hu=200)
BONE = WindowSpec(name="bone", center_hu=600, width_hu=2800)
SOFT = WindowSpec(name="soft", center_hu=40, width_hu=380)
# One from outside: `WINDOWS.register("stroke", WindowSpec(name="stroke", center_hu=32, width_hu=8))`.
WINDOWS: Registry[WindowSpec] = Registry(
    "windows", {name: f"{__name__}:{name.upper()}" for name in ("brain", "subdural", "bone", "soft")}, home=__name__
)
DEFAULT_WINDOWS = "brain,subdural,bone"


def brain_channel(windows: Sequence[WindowSpec]) -> int:
    """The channel that is shown to people: the brain window, or the first one where there is none."""
    names = [window.name for window in windows]
    return names.index("brain") if "brain" in names else 0


def parse_windows(text: str) -> tuple[WindowSpec, ...]:
    """Windows from `brain,subdural` or, for other ones, `name=center/width` such as `stroke=32/8`.

    Raises:
        ConfigError: an unknown name, a repeated one, or numbers that are none of a window.
    """
    windows: list[WindowSpec] = []
    for part in text.split(","):
        name, is_new, numbers = part.strip().partition("=")
        if is_new and not _NAME.fullmatch(name):
            raise ConfigError(f"--windows: a name of letters, digits, _ and - must be given, got {name!r}")
        if is_new:
            try:
                center, width = (float(number) for number in numbers.split("/"))
                windows.append(WindowSpec(name=name, center_hu=center, width_hu=width))
            except ValueError:
                raise ConfigError(
                    f"--windows: name=center/width in HU, within {_FARTHEST_HU:,} and the width above 0, must hold, "
                    f"got {part!r}"
                ) from None
        elif name in WINDOWS:
            windows.append(WINDOWS[name])
        else:
            raise ConfigError(
                f"--windows: one of {', '.join(WINDOWS.names())} or name=center/width must be given, got {name!r}"
                f"{nearest(name, WINDOWS.names())}"
            )
    if len(windows) > MOST_WINDOWS:
        raise ConfigError(f"--windows: at most {MOST_WINDOWS} must be given, got {len(windows)}; leave some out")
    if len({window.name for window in windows}) < len(windows):
        raise ConfigError(f"--windows: names must differ, got {text!r}")
    return tuple(windows)


def window_slice(ct: CTSlice, windows: Sequence[WindowSpec], size: int) -> NDArray[np.uint8]:
    """A slice as one 8-bit channel per window, clipped first, then averaged over exact areas.

    Each pixel is mapped by LINEAR_EXACT (PS3.3 C.11.2.1.3.2): black up to `center - width / 2`, white from
    `center + width / 2` on, `(hu - center) / width + 0.5` between. It is not LINEAR (C.11.2.1.2.1), whose
    `center - 0.5` and `width - 1` describe integer displays and differ by up to 1 / width. The mean over the area of an
    output pixel, times 255, is rounded half up. Slices that are not square are centered on a black square first.

    Integer slopes, intercepts and window edges with a whole number of pixels per output pixel are computed exactly in
    integers (0.1 ms for three windows of 512x512 to 128x128), all else in float64 (0.7 ms).

    Args:
        ct: the slice.
        windows: one per channel.
        size: rows and columns of the result; larger than the slice repeats pixels.

    Returns:
        uint8 `[channels, size, size]`.
    """
    from ich_ray.ct.kernels import average_float, average_integer, average_short

    words, slope, intercept = _square(ct), ct.slope, ct.intercept
    lows_hu, widths_hu = _edges(tuple(windows))
    out = np.empty((len(windows), size, size), np.uint8)
    if slope != 1 and slope.is_integer() and abs(slope) <= _LARGEST_INTEGER_SLOPE:
        words, slope = words * np.int32(slope), 1.0
    lows = lows_hu - intercept
    factor, rest = divmod(len(words), size)
    is_integer = words.dtype.kind in "iu" and slope == 1 and not (lows % 1).any() and not (widths_hu % 1).any()
    fits = widths_hu.max() <= _WIDEST_INTEGER_SUM // max(factor, 1) ** 2 and abs(lows).max() <= 2**30
    highs = lows + widths_hu
    if is_integer and fits and rest == 0 and _is_short(words, lows, highs, factor):
        average_short(words, lows.astype(words.dtype), highs.astype(words.dtype), out)
    elif is_integer and fits and rest == 0:
        average_integer(words, lows.astype(np.int32), highs.astype(np.int32), out)
    else:
        average_float(words, (slope, float(intercept)), lows_hu, widths_hu, out)
    return out


@lru_cache
def _edges(windows: tuple[WindowSpec, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower edges and widths of the windows, HU `[channels]`."""
    widths_hu = np.array([window.width_hu for window in windows])
    return np.array([window.center_hu for window in windows]) - widths_hu / 2, widths_hu


def _is_short(words: NDArray[Any], lows: NDArray[np.float64], highs: NDArray[np.float64], factor: int) -> bool:
    """Whether `average_short` may be used: edges that are words of 16 bits, and sums of a column that fit as well."""
    if words.dtype.kind not in "iu" or words.dtype.itemsize != 2:
        return False
    limits = np.iinfo(words.dtype)
    edges_fit = limits.min <= lows.min() and highs.max() <= limits.max
    return bool(edges_fit and factor * (highs - lows).max() <= np.iinfo(np.uint16).max)


def _square(ct: CTSlice) -> NDArray[Any]:
    """The words in the middle of a black square."""
    rows, columns = ct.stored.shape
    if rows == columns:
        return ct.stored
    side = max(rows, columns)
    kind = np.int32 if ct.stored.dtype.kind in "iu" else ct.stored.dtype
    square = np.full((side, side), round((_BLACK_HU - ct.intercept) / ct.slope), kind)
    top, left = (side - rows) // 2, (side - columns) // 2
    square[top : top + rows, left : left + columns] = ct.stored
    return square
