"""Ask the kernel for mapped bytes that will be read soon.

A page that is not in memory stops whoever touches it until the disk has answered, and shuffled images are touched one
after the other. Asked for in advance, they are read side by side, and none of what lies between them. Pages that are in
memory already cost a look; what was asked for and is never touched is dropped as any other page of the file cache.
"""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from itertools import repeat
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["IMAGES_AHEAD", "read_ahead"]

# Of one training. Disks and shared file systems have answered by then; of 512 x 512 pixels they are 200 MB.
IMAGES_AHEAD = 256

_PAGE = mmap.PAGESIZE


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """The system's own; `mmap.madvise` of Python takes no address. None where there is none."""
    try:
        found: Any = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):
        return None
    found.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return found  # type: ignore[no-any-return]


def read_ahead(addresses: Iterable[int], sizes: Iterable[int]) -> None:
    """Have these mapped bytes read, and return at once; on a system that cannot, do nothing.

    Args:
        addresses: of memory that stays mapped meanwhile.
        sizes: in bytes, of each.
    """
    advise = _madvise()
    if advise is None or not hasattr(mmap, "MADV_WILLNEED"):
        return
    for address, size, advice in zip(addresses, sizes, repeat(mmap.MADV_WILLNEED)):
        before = address % _PAGE
        advise(address - before, size + before, advice)  # a hint: whether it was taken does not matter
