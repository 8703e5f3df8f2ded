"""The order of training images: shuffled epochs without end, known in advance; seeds of the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Lookahead", "Stream", "mixed_seed", "next_batch"]

_SMALLEST_TAIL = 8


class Stream:
    """Place `p` of the stream is entry `p mod slices` of the permutation of epoch `p // slices`."""

    def __init__(self, slices: int, seed: int) -> None:
        self._slices, self._seed = slices, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def slices(self, start: int, count: int) -> NDArray[np.int64]:
        """The training slices at the places `start` to `start + count`."""
        parts, n = [], self._slices
        while count:
            epoch, offset = divmod(start, n)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, np.random.default_rng((self._seed, epoch)).permutation(n)
            part = self._order[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts)


class Lookahead:
    """The same stream up to `end`, before its slices are taken: each place is given once.

    It has an order of its own, as one that looks forward and back would draw its epochs again and again.
    """

    def __init__(self, slices: int, seed: int, end: int) -> None:
        self._stream, self._end, self._given = Stream(slices, seed), end, 0

    def coming(self, start: int, place: int) -> NDArray[np.int64]:
        """The training slices from `start` up to `place`, but for those given before."""
        start, place = max(start, self._given), min(place, self._end)
        if start >= place:
            return np.empty(0, np.int64)
        self._given = place
        return self._stream.slices(start, place - start)


def next_batch(batch_size: int, left: int) -> int:
    """Images of the next step where so many are left until the report.

    Fewer than eight would be no batch of their own, and join this one.
    """
    take = min(batch_size, left)
    return left if left - take < min(_SMALLEST_TAIL, batch_size) else take


def mixed_seed(*numbers: int) -> int:
    """A seed for PyTorch that depends on each of the numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
