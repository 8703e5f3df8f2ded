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

__all__ = ["add_scaled", "average_exact", "average_float", "average_unrolled", "largest_body", "survey"]

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
def _covered(output: int, pixel: int, p: int, q: int) -> int:
    """How much of a pixel an output pixel covers along one side, in 1 / q of it."""
    return max(0, min((output + 1) * p, (pixel + 1) * q) - max(output * p, pixel * q))


@_compiled
def average_unrolled(
    words: NDArray[Any],
    edges: tuple[NDArray[Any], NDArray[Any]],
    rounding: tuple[NDArray[Any], NDArray[Any]],
    ratio: tuple[tuple[int, ...], tuple[int, ...]],
    out: NDArray[Any],
) -> None:
    """`average_exact` for one small ratio of sides, several times as fast.

    A block of `p` rows becomes `q` rows, and of those `p` columns become `q`: which pixels an output pixel covers, and
    how much of each, is known to the compiler, which leaves loops without branches. Clipped words and sums of columns
    are 16 bits wide.

    Args:
        words: `[side, side]`.
        edges: see `average_exact`; `p * (high - low)` is below 65,536.
        rounding: see `average_exact`; all of float32 or all of float64.
        ratio: any tuple of length `p` and any of length `q`, where `side / size` is `p / q` in lowest terms. Lengths of
            tuples belong to their types, so that each ratio is compiled for itself.
        out: uint8 `[channels, size, size]`.
    """
    p, q = len(ratio[0]), len(ratio[1])
    channels, blocks = out.shape[0], out.shape[1] // q
    real = rounding[0].dtype.type
    sums = np.empty((q, words.shape[1]), np.uint16)
    for block in range(blocks):
        for channel in range(channels):
            low, high = edges[0][channel], edges[1][channel]
            scale, offset = rounding[0][channel], rounding[1][channel]
            for column in range(words.shape[1]):
                for row in range(q):
                    total = np.uint16(0)
                    for line in range(p):
                        shown = np.uint16(min(max(words[block * p + line, column], low), high) - low)
                        total = np.uint16(total + np.uint16(_covered(row, line, p, q)) * shown)
                    sums[row, column] = total
            for row in range(q):
                for beside in range(blocks):
                    for column in range(q):
                        area = np.uint32(0)
                        for step in range(p):
                            weight = np.uint32(_covered(column, step, p, q))
                            area = np.uint32(area + weight * np.uint32(sums[row, beside * p + step]))
                        grey = np.int32(real(np.int32(area)) * scale + offset)
                        out[channel, block * q + row, beside * q + column] = np.uint8(grey)


@_compiled
def average_exact(
    words: NDArray[Any],
    edges: tuple[NDArray[Any], NDArray[Any]],
    rounding: tuple[NDArray[np.float64], NDArray[np.float64]],
    ratio: tuple[int, int],
    sums: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Clip to each `low..high` (in words) and average exact areas, in integers; halves are rounded up.

    Args:
        words: `[side, side]` of any size, larger or smaller than the output.
        edges: lows and highs in words `[channels]`, of the type of the words or int32.
        rounding: scales and offsets `[channels]`: `total * scale + offset`, cut to an integer, is the mean in grey
            levels, rounded, for every total that there may be.
        ratio: `p` and `q`, where `side / size` is `p / q` in lowest terms.
        sums: room for the sums of columns `[side]`: uint16 if `p * (high - low)` is below 65,536, else int32.
        out: uint8 `[channels, size, size]`.

    Areas are counted in 1 / q of a pixel, so that all numbers are whole: `p * p * (high - low)` is below 2**31. An
    output pixel is the difference of two running totals, whose overflow cancels out.
    """
    channels, size, side = out.shape[0], out.shape[1], words.shape[1]
    p, q = ratio
    kind = sums.dtype.type
    running, until = np.empty(side, np.uint32), np.empty(size + 1, np.uint32)
    pixels, parts = np.empty(size + 1, np.uint32), np.empty(size + 1, np.uint32)
    for column in range(size + 1):  # divisions, so not once per row
        pixels[column] = min(column * p // q, side - 1)
        parts[column] = column * p - pixels[column] * q
    for row in range(size):
        for channel in range(channels):
            low, high = edges[0][channel], edges[1][channel]
            scale, offset = rounding[0][channel], rounding[1][channel]
            sums[:] = 0
            for line in range(row * p // q, ((row + 1) * p + q - 1) // q):
                covered = kind(_covered(row, line, p, q))
                for column in range(side):
                    sums[column] += kind(covered * kind(min(max(words[line, column], low), high) - low))
            total = np.uint32(0)
            for column in range(side):
                running[column] = total
                total += np.uint32(sums[column])
            for column in range(size + 1):
                pixel = pixels[column]
                until[column] = np.uint32(q) * running[pixel] + parts[column] * np.uint32(sums[pixel])
            for column in range(size):
                area = np.int32(np.uint32(until[column + 1] - until[column]))
                out[channel, row, column] = np.uint8(np.int32(area * scale + offset))


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
