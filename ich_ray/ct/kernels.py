"""The compiled loops over pixels: surveying and adding words, the largest body, windows with means.

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

__all__ = ["add_scaled", "average_float", "average_integer", "average_short", "largest_body", "survey"]

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
def _eroded(words: NDArray[Any], above: Any, step: int) -> NDArray[np.uint8]:
    """Whether a cell and all eight around it are above; a last column that is not.

    Beyond the edge all are.
    """
    rows, columns = words.shape[0] // step, words.shape[1] // step
    full = np.ones((rows + 2, columns + 2), np.uint8)
    for row in range(rows):
        line = words[row * step + step // 2]
        for column in range(columns):
            full[row + 1, column + 1] = line[column * step + step // 2] > above
    across, core = np.empty((rows + 2, columns), np.uint8), np.zeros((rows, columns + 1), np.uint8)
    for row in range(rows + 2):
        for column in range(columns):
            across[row, column] = full[row, column] & full[row, column + 1] & full[row, column + 2]
    for row in range(rows):
        for column in range(columns):
            core[row, column] = across[row, column] & across[row + 1, column] & across[row + 2, column]
    return core


@_compiled
def _join(body: NDArray[np.int64], boxes: NDArray[np.int64], one: int, other: int) -> None:
    """Make the bodies of two runs one, with the box and area of both; an absorbed one has no area."""
    while body[one] != one:
        one = body[one]
    while body[other] != other:
        other = body[other]
    if one == other:
        return
    kept, lost = min(one, other), max(one, other)
    body[lost] = kept
    for edge in range(2):
        boxes[kept, edge] = min(boxes[kept, edge], boxes[lost, edge])
        boxes[kept, 2 + edge] = max(boxes[kept, 2 + edge], boxes[lost, 2 + edge])
    boxes[kept, 4] += boxes[lost, 4]
    boxes[lost, 4] = 0


@_compiled
def largest_body(words: NDArray[Any], above: Any, step: int) -> tuple[int, int, int, int, int]:
    """Box of the largest connected body of words above a limit, in cells.

    Top, left, bottom, right and area. Every `step`-th word of every `step`-th row is a cell. Cells are opened with a
    square of 3 x 3 first: what is nowhere as thick, such as a table or a strap, is no body and joins none. Beyond the
    edge all counts as body, so that a head that is cut off reaches it. Of bodies of one area the topmost wins; the area
    is 0 where there is none.
    """
    rows, columns = words.shape[0] // step, words.shape[1] // step
    core = _eroded(words, above, step)
    # Runs of cells of a row: where they lie; the first run of their body; and of that one, the box and area so far.
    most = rows * (columns // 2 + 1)
    starts, ends = np.empty(most, np.int64), np.empty(most, np.int64)
    body, boxes = np.empty(most, np.int64), np.empty((most, 5), np.int64)
    before, first, count = 0, 0, 0
    for row in range(rows):
        inside = np.uint8(0)
        for column in range(columns + 1):
            if core[row, column] == inside:
                continue
            inside = core[row, column]
            if inside:
                starts[count] = column
                continue
            ends[count], body[count] = column, count
            boxes[count] = (row, starts[count], row + 1, column, column - starts[count])
            for other in range(before, first):  # runs of the row before
                if starts[other] <= column and ends[other] >= starts[count]:
                    _join(body, boxes, other, count)
            count += 1
        before, first = first, count
    if not count:
        return 0, 0, 0, 0, 0
    top, left, bottom, right, area = boxes[np.argmax(boxes[:count, 4])]
    return max(top - 1, 0), max(left - 1, 0), min(bottom + 1, rows), min(right + 1, columns), area


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
