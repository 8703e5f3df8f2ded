"""A DICOM file with one slice or several, read a slice at a time.

Knows no windows, labels or other files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ich_ray.ct.dicom import CTSlice, check_file, is_identifier, read_file, slice_of
from ich_ray.ct.elements import parse
from ich_ray.ct.frames import Frames

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ich_ray.storage import Location

__all__ = ["SliceFile", "frame_name"]


class SliceFile:
    """An open file.

    A frame of several goes by the SOPInstanceUID of the classic file that it was converted from, if the file tells it
    (PS3.3 C.7.6.16.2.20): that file is the same slice. Else it goes by `SOPInstanceUID#frame`, which is no UID and no
    identifier that a file may have.

    Attributes:
        frames: what `read` takes: 0 alone if the file is one slice, else its frames, counted from 1.
        slice_ids: of the frames; that of a file that is one slice is empty, and stands in its header.

    Args:
        source: a path, a URI or the bytes of a file, which must not change while a slice is in use.
        without_preamble: see `elements.parse`.

    Raises:
        Rejection: nothing of the file is accepted.
    """

    def __init__(self, source: bytes | bytearray | memoryview | Location, without_preamble: bool = False) -> None:
        data = source if isinstance(source, bytes | bytearray | memoryview) else read_file(source)
        elements = parse(memoryview(data), without_preamble)
        self._frames = Frames(elements)
        self.slice_ids = [""]
        self.frames: Sequence[int] = (0,)
        if len(self._frames) > 1:
            slice_id, layout = check_file(elements)
            self._frames.divide_pixels(layout.size_bytes)
            self.frames = range(1, len(self._frames) + 1)
            self.slice_ids = [told if is_identifier(told) else frame_name(slice_id, frame)
                         for frame, told in zip(self.frames, self._frames.source_ids(), strict=True)]  # fmt: skip

    def read(self, frame: int) -> CTSlice:
        """Read one slice.

        Raises:
            Rejection: it is not accepted, whatever becomes of the others.
        """
        index = max(frame - 1, 0)
        return slice_of(self._frames[index], self.slice_ids[index])


def frame_name(name: str, frame: int) -> str:
    """`name#frame`; the name itself if the frame is 0, as of a file that is one slice."""
    return f"{name}#{frame}" if frame else name
