"""Copy images out of mapped files, and have those read in advance that are not in memory.

A page that is not in memory stops whoever touches it until the disk has answered, and shuffled images are touched one
after the other. The system would also read what lies around such a page, up to 15 MB on file systems of a network, and
drop other images for it. So mapped images are read as they are asked for, and asked for in advance: then they come side
by side, and nothing else does. Asking costs as much as copying an image that is in memory; once some thousand images
were, nobody asks until one is not.
"""

from __future__ import annotations

import ctypes
import mmap
import resource
from ctypes import memmove
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["IMAGES_AHEAD", "MappedImages", "ask_for", "map_at_random"]

# Of one training. Disks and shared file systems have answered by then; of 512 x 512 pixels they are 200 MB.
IMAGES_AHEAD = 256
# Of one copying: as many are asked for together, and looked at together for faults.
_TOGETHER, _LOOKED_AT = 64, 8
# Images to ask for before it is seen whether any is missing.
_ASKED = 1 << 14
_PAGE = mmap.PAGESIZE
_WILL_NEED, _RANDOM = getattr(mmap, "MADV_WILLNEED", None), getattr(mmap, "MADV_RANDOM", None)


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """The system's own; `mmap.madvise` of Python takes no address. None where there is none."""
    try:
        found: Any = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):
        return None
    found.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return found  # type: ignore[no-any-return]


def ask_for(addresses: Sequence[int], sizes: Sequence[int]) -> None:
    """Have these mapped bytes read, and return at once; on a system that cannot, do nothing."""
    _advise(addresses, sizes, _WILL_NEED)


def map_at_random(address: int, size: int) -> None:
    """Have nothing read of these mapped bytes but what is touched or asked for."""
    _advise([address], [size], _RANDOM)


def _advise(addresses: Sequence[int], sizes: Sequence[int], advice: int | None) -> None:
    advise = _madvise()
    if advise is None or advice is None:
        return
    for address, size in zip(addresses, sizes, strict=True):
        before = address % _PAGE
        advise(address - before, size + before, advice)  # a hint: whether it was taken does not matter


def _faults() -> int:
    """Pages that this process had to wait for."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


class MappedImages:
    """Copies images that are mapped at random, and knows whether it is worth asking for them."""

    def __init__(self) -> None:
        self._left, self._faults = _ASKED, 0

    def ask_for(self, addresses: Sequence[int], sizes: Sequence[int]) -> None:
        """Have images read that will soon be copied, if any was missing lately; return at once."""
        if self._left > 0:
            ask_for(addresses, sizes)

    def copy(self, addresses: Sequence[int], sizes: Sequence[int], target: int) -> None:
        """Copy them to `target`, one behind the other: as fast as copying memory in a row.

        Args:
            addresses: of images in memory that stays mapped.
            sizes: in bytes, of each.
            target: address of as much memory as they have together.
        """
        asked = 0
        for start in range(0, len(addresses), _LOOKED_AT):
            if self._left > 0 and start >= asked - _TOGETHER:
                first, asked = max(start, asked), start + 2 * _TOGETHER
                ask_for(addresses[first:asked], sizes[first:asked])
            end = start + _LOOKED_AT
            for address, size in zip(addresses[start:end], sizes[start:end], strict=True):
                memmove(target, address, size)
                target += size
            self._look(min(end, len(addresses)) - start)

    def _look(self, images: int) -> None:
        """Count down while images are asked for, and then begin anew where one was missing."""
        if self._left > 0:
            self._left -= images
            if self._left <= 0:
                self._faults = _faults()
        elif (faults := _faults()) > self._faults:
            self._left, self._faults = _ASKED, faults
