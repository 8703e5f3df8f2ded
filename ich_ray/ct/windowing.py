"""HU windows: which part of the CT scale a channel shows, and slices seen through them.

Knows one slice at a time; the loops are in kernels.py. The window tags of the files are not used: in the RSNA set they
are multi-valued in half the files and inconsistent in the others.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
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
_LARGEST_FLOAT32_SUM = 14_000  # tried with every smaller one; 14,419 is the first to round a sum wrongly
# Ratios of sides that have a loop of their own: slices of 512x512 to 512, 384, 256, 192, 128 and 64.
_UNROLLED = frozenset({(1, 1), (4, 3), (2, 1), (8, 3), (4, 1), (8, 1)})


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

    Integer slopes, intercepts and window edges are computed exactly in integers (0.03 ms for three windows of 512x512
    to 128x128), all else in float64 (0.7 ms).

    Args:
        ct: the slice.
        windows: one per channel.
        size: rows and columns of the result; larger than the slice repeats pixels.

    Returns:
        uint8 `[channels, size, size]`.
    """
    from ich_ray.ct.kernels import average_exact, average_float, average_unrolled

    windows = tuple(windows)
    words, slope = _square(ct), ct.slope
    if slope != 1 and slope.is_integer() and abs(slope) <= _LARGEST_INTEGER_SLOPE:
        words, slope = words * np.int32(slope), 1.0
    words = words.view()
    words.flags.writeable = False  # numba compiles for each kind of array
    shared = math.gcd(len(words), size)
    p, q = len(words) // shared, size // shared
    out = np.empty((len(windows), size, size), np.uint8)
    is_integer = slope == 1 and words.dtype.kind in "iu"
    plan = _integers(windows, float(ct.intercept), words.dtype, (p, q)) if is_integer else None
    if plan is None:
        average_float(words, (slope, float(ct.intercept)), *_edges(windows), out)
    elif plan.is_unrolled:
        average_unrolled(words, plan.edges, plan.rounding, ((0,) * p, (0,) * q), out)
    else:
        average_exact(words, plan.edges, plan.rounding, (p, q), np.empty(len(words), plan.sums), out)
    return out


@lru_cache
def _edges(windows: tuple[WindowSpec, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower edges and widths of the windows, HU `[channels]`."""
    widths_hu = np.array([window.width_hu for window in windows])
    return np.array([window.center_hu for window in windows]) - widths_hu / 2, widths_hu


@dataclass(frozen=True)
class _Integers:
    """What the kernels need to compute windows in integers; see kernels.py.

    Attributes:
        edges: lows and highs in words.
        rounding: scales and offsets that make grey levels of sums.
        sums: type of the sums of a column.
        is_unrolled: whether the ratio of sides has a loop of its own that may be used.
    """

    edges: tuple[NDArray[Any], NDArray[Any]]
    rounding: tuple[NDArray[Any], NDArray[Any]]
    sums: np.dtype[Any]
    is_unrolled: bool


@lru_cache
def _integers(
    windows: tuple[WindowSpec, ...], intercept: float, dtype: np.dtype[Any], ratio: tuple[int, int]
) -> _Integers | None:
    """How to compute these windows in integers, of words of slope 1; None where they do not fit."""
    lows_hu, widths_hu = _edges(windows)
    lows, p = lows_hu - intercept, ratio[0]
    fits = widths_hu.max() <= _WIDEST_INTEGER_SUM // p**2 and abs(lows).max() <= 2**30
    if (lows % 1).any() or (widths_hu % 1).any() or not fits:
        return None
    edges = lows.astype(np.int32), (lows + widths_hu).astype(np.int32)
    if _are_words(dtype, *edges):  # compared twice as fast as words that are widened first
        edges = edges[0].astype(dtype), edges[1].astype(dtype)
    is_short = bool(p * widths_hu.max() <= np.iinfo(np.uint16).max)
    is_unrolled = is_short and ratio in _UNROLLED
    sums = np.dtype(np.uint16 if is_short else np.int32)
    return _Integers(edges, _rounding(widths_hu * p**2, is_unrolled), sums, is_unrolled)


def _rounding(white: NDArray[np.float64], may_be_float32: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """Scales and offsets: `sum * scale + offset`, cut to an integer, is `sum / white * 255`, rounded half up.

    What is to be cut lies a multiple of `1 / (2 * white)` from a whole number. Half of that on top changes no result,
    and lifts every sum beyond the errors of float64, and those of float32, twice as fast, as long as sums are small.

    Args:
        white: the largest sums, whole numbers `[channels]`.
        may_be_float32: whether the kernel computes in the type of what it is given.
    """
    kind = np.float32 if may_be_float32 and white.max() <= _LARGEST_FLOAT32_SUM else np.float64
    return (255 / white).astype(kind), (0.5 + 1 / (4 * white)).astype(kind)


def _are_words(dtype: np.dtype[Any], lows: NDArray[np.int32], highs: NDArray[np.int32]) -> bool:
    """Whether words are of 16 bits, and edges are such words."""
    limits = np.iinfo(dtype)
    return bool(dtype.itemsize == 2 and limits.min <= lows.min() and highs.max() <= limits.max)


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
