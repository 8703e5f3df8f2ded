"""The compiled loops over pixels: surveying raw words, adding slices, windowing + area averaging.

Knows arrays and numbers only. Compiled on first use and cached beside this file, else in the user's cache, else in a
private folder below /tmp: an installation may be read-only, and a home not there. Imported where it is used, because
numba takes half a second to load. All release the GIL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from ich_ray.storage import name_a_home, own_temporary_folder, private_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["add_scaled", "average_float", "average_integer", "average_short", "survey"]

name_a_home()  # before numba looks for a folder


def _compiled(function: Callable[..., Any]) -> Any:
    """The function, compiled when it is first called."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba finds no folder that it may write
        numba.config.CACHE_DIR = str(private_folder(own_temporary_folder() / "numba"))  # type: ignore[attr-defined]
        return numba.njit(nogil=True, cache=True)(function)


@_compiled
def survey(words: NDArray[Any], low: Any, high: Any) -> tuple[int, int, int]:
    """Smallest word, largest word, and how many lie in `low..high`, both of the type of the words.

    Counts of a row are 16 bits wide as the words are, so that one vector instruction holds as many: rows of up to
    65,535 words.
    """
    smallest, largest, within = np.int64(words[0, 0]), np.int64(words[0, 0]), np.int64(0)
    for row in range(words.shape[0]):
        row_smallest, row_largest, row_within = words[row, 0], words[row, 0], np.uint16(0)
        for column in range(words.shape[1]):
            word = words[row, column]
            row_smallest, row_largest = min(row_smallest, word), max(row_largest, word)
            row_within = np.uint16(row_within + np.uint16((word >= low) & (word <= high)))
        smallest, largest = min(smallest, np.int64(row_smallest)), max(largest, np.int64(row_largest))
        within += np.int64(row_within)
    return smallest, largest, within  # type: ignore[return-value]


@_compiled
def add_scaled(words: NDArray[Any], factor: float, total: NDArray[np.float64]) -> None:
    """Add `words * factor` to `total`, both `[rows, columns]`: a quarter of the time that NumPy takes."""
    for row in range(words.shape[0]):
        for column in range(words.shape[1]):
            total[row, column] += words[row, column] * factor


@_compiled
def average_short(words: NDArray[Any], lows: NDArray[Any], highs: NDArray[Any], out: NDArray[Any]) -> None:
    """`average_integer` for words of 16 bits, in half the time.

    Clipped words and column sums stay 16 bits wide.

    Args:
        words: int16 or uint16 `[side, side]`; `side` is a multiple of the output's.
        lows: `[channels]`, of the type of the words.
        highs: `[channels]`, of the type of the words; `side / size` times `high - low` is below 65,536.
        out: uint8 `[channels, size, size]`.
    """
    channels, size = out.shape[0], out.shape[1]
    side = words.shape[1]
    factor = words.shape[0] // size
    sums, totals = np.empty(side, np.uint16), np.empty(size, np.int32)
    for row in range(size):
        first = row * factor
        for channel in range(channels):
            low, high = lows[channel], highs[channel]
            half = float(factor * factor) * (float(high) - float(low))
            for column in range(side):
                sums[column] = np.uint16(min(max(words[first, column], low), high) - low)
            for line in range(first + 1, first + factor):
                for column in range(side):
                    sums[column] += np.uint16(min(max(words[line, column], low), high) - low)
            totals[:] = 0
            for step in range(factor):
                for column in range(size):
                    totals[column] += np.int32(sums[column * factor + step])
            for column in range(size):
                out[channel, row, column] = np.uint8((510.0 * totals[column] + half) / (2.0 * half))


@_compiled
def average_integer(words: NDArray[Any], lows: NDArray[np.int32], highs: NDArray[np.int32], out: NDArray[Any]) -> None:
    """Clip to each `lows..highs` (in words) and average squares of whole pixels, exactly.

    Halves are rounded up.

    Args:
        words: `[side, side]`; `side` is a multiple of the output's.
        lows: `[channels]`.
        highs: `[channels]`.
        out: uint8 `[channels, size, size]`.

    Sums are integers of 32 bits: squares of up to 181 pixels a side and windows of up to 65,535 words fit. The last
    division is of integers below 2**53 in floating point, so its floor is exact.
    """
    channels, size = out.shape[0], out.shape[1]
    factor = words.shape[0] // size
    sums = np.empty(words.shape[1], np.int32)
    for channel in range(channels):
        low, high = lows[channel], highs[channel]
        half = float(factor * factor) * float(high - low)
        for row in range(size):
            first = row * factor
            for column in range(words.shape[1]):
                sums[column] = min(max(np.int32(words[first, column]), low), high) - low
            for line in range(first + 1, first + factor):
                for column in range(words.shape[1]):
                    sums[column] += min(max(np.int32(words[line, column]), low), high) - low
            for column in range(size):
                total = np.int32(0)
                for step in range(factor):
                    total += sums[column * factor + step]
                out[channel, row, column] = np.uint8((510.0 * total + half) / (2.0 * half))


@_compiled
def average_float(
    words: NDArray[Any],
    rescale: tuple[float, float],
    lows_hu: NDArray[np.float64],
    widths_hu: NDArray[np.float64],
    out: NDArray[Any],
) -> None:
    """Clip `words * slope + intercept` to each window and average exact areas, rounding half up.

    Args:
        words: `[side, side]` of any size, larger or smaller than the output.
        rescale: slope and intercept of the words.
        lows_hu: `[channels]`.
        widths_hu: `[channels]`.
        out: uint8 `[channels, size, size]`.

    Areas are counted in 1 / size of a pixel, so that weights are whole numbers and whole HU give exact sums.
    """
    channels, size = out.shape[0], out.shape[1]
    side = words.shape[0]
    slope, intercept = rescale
    sums = np.empty(side, np.float64)
    # What each output column takes of its first and last pixel, and where they are: divisions, so not once per row.
    firsts, lasts = np.empty(size, np.int64), np.empty(size, np.int64)
    of_first, of_last = np.empty(size, np.float64), np.empty(size, np.float64)
    for column in range(size):
        left, right = column * side, (column + 1) * side
        firsts[column], lasts[column] = left // size, (right + size - 1) // size - 1
        of_first[column] = float(min(right, (firsts[column] + 1) * size) - left)
        of_last[column] = float(right - lasts[column] * size) if lasts[column] > firsts[column] else 0.0
    for channel in range(channels):
        low, width = lows_hu[channel], widths_hu[channel]
        half = float(side * side) * width
        for row in range(size):
            top, bottom = row * side, (row + 1) * side
            sums[:] = 0.0
            for line in range(top // size, (bottom + size - 1) // size):
                weight = float(min(bottom, (line + 1) * size) - max(top, line * size))
                for column in range(side):
                    hu = words[line, column] * slope + intercept
                    sums[column] += weight * (min(max(hu, low), low + width) - low)
            for column in range(size):
                first, last = firsts[column], lasts[column]
                total = of_first[column] * sums[first] + of_last[column] * sums[last]
                for step in range(first + 1, last):
                    total += float(size) * sums[step]
                out[channel, row, column] = np.uint8(min((510.0 * total + half) / (2.0 * half), 255.0))
