"""Slices of the files of a chunk: those of thin series averaged as they are read, others as they are.

Knows no headers of other files: which slices a slab holds was found before, and travels as text.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from ich_ray.ct.slabs import SlabReader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ich_ray.ct.dicom import CTSlice
    from ich_ray.ct.slice_file import SliceFile

__all__ = ["ChunkSlices", "SlabMembers", "packed", "unpacked"]

Key: TypeAlias = tuple[str, int]  # a file and its frame
# The slab around each slice of a thin series.
SlabMembers: TypeAlias = dict[Key, list[tuple[Key, float]]]


def packed(slabs: SlabMembers) -> str:
    """Slabs as text, as they travel to a task."""
    keys = {key: number for number, key in enumerate(dict.fromkeys(key for slab in slabs.values() for key, _ in slab))}
    told = [[keys[center], [[keys[key], weight] for key, weight in slab]] for center, slab in slabs.items()]
    return json.dumps([[*keys], told])


def unpacked(text: str) -> SlabMembers:
    """What `packed` was given."""
    keys, told = json.loads(text)
    named = [(file, frame) for file, frame in keys]
    return {named[center]: [(named[key], weight) for key, weight in slab] for center, slab in told}


class ChunkSlices:
    """Slices of the files of a chunk: of a thin series averaged, others as they are.

    Args:
        opened: a file by its name.
        read: a slice of it by its frame.
        slab_mm: of the slabs.
        slabs: around the slices of thin series among them.
    """

    def __init__(
        self,
        opened: Callable[[str], SliceFile],
        read: Callable[[SliceFile, int], CTSlice],
        slab_mm: float,
        slabs: SlabMembers,
    ) -> None:
        self._opened = lru_cache(maxsize=2)(opened)  # frames of one file follow each other
        self._read, self._slab_mm, self._slabs = read, slab_mm, slabs
        self._reader = SlabReader(self._one)

    def slab_mm(self, file: str, frame: int) -> float:
        """Of the slabs of the series of a slice; 0 where it is not averaged."""
        return self._slab_mm if (file, frame) in self._slabs else 0.0

    def frames(self, file: str) -> Sequence[int]:
        """See `SliceFile`.

        Raises:
            Rejection: nothing of the file is accepted.
        """
        return (0,) if (file, 0) in self._slabs else self._opened(file).frames

    def read(self, file: str, frame: int) -> CTSlice:
        """Read one slice.

        Raises:
            Rejection: see `ChunkJob.read`.
        """
        slab = self._slabs.get((file, frame))
        return self._one((file, frame)) if slab is None else self._reader.slab((file, frame), slab)

    def _one(self, key: Key) -> CTSlice:
        file, frame = key
        return self._read(self._opened(file), frame)
