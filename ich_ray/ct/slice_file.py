"""A DICOM file with one slice or several, read a slice at a time.

Knows no windows, labels or other files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ich_ray.ct.dicom import (
    CTSlice,
    SliceHeader,
    check_file,
    header_of,
    is_identifier,
    slice_of,
)
from ich_ray.ct.elements import parse
from ich_ray.ct.frames import Frames
from ich_ray.ct.source import header_elements, read_file
from ich_ray.errors import Rejection

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ich_ray.ct.elements import Elements
    from ich_ray.ct.pixels import PixelLayout
    from ich_ray.storage import Location

__all__ = ["SliceFile", "frame_name", "read_headers"]


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
        self.slice_ids, layout = _common(elements, self._frames)
        if layout is not None:
            self._frames.divide_pixels(layout.size_bytes)
        self.frames = _numbers(self._frames)

    def read(self, frame: int) -> CTSlice:
        """Read one slice.

        Raises:
            Rejection: it is not accepted, whatever becomes of the others; `multiframe` for another frame than there is.
        """
        if frame not in self.frames:
            raise Rejection("multiframe", f"frame {frame} must be there, got {len(self.frames)} frames")
        index = max(frame - 1, 0)
        return slice_of(self._frames[index], self.slice_ids[index])


def read_headers(source: Location, without_preamble: bool = False) -> Iterator[tuple[int, SliceHeader | Rejection]]:
    """The header of each slice, or why it is not accepted, by the frame that it is.

    No pixels are read, mostly the first bytes of the file alone; what only pixels tell is not checked.

    Raises:
        Rejection: nothing of the file is accepted.
    """
    elements = header_elements(source, without_preamble)
    frames = Frames(elements)
    slice_ids, _ = _common(elements, frames)
    for index, frame in enumerate(_numbers(frames)):
        try:
            yield frame, header_of(frames[index], slice_ids[index])
        except Rejection as rejection:
            yield frame, rejection


def _numbers(frames: Frames) -> Sequence[int]:
    return range(1, len(frames) + 1) if len(frames) > 1 else (0,)


def _common(elements: Elements, frames: Frames) -> tuple[list[str], PixelLayout | None]:
    """The slice id and layout of frames; nothing of a file that is one slice, which has its own."""
    if len(frames) == 1:
        return [""], None
    uid, layout = check_file(elements)
    told = frames.source_ids()
    return [name if is_identifier(name) else frame_name(uid, frame) for frame, name in enumerate(told, 1)], layout


def frame_name(name: str, frame: int) -> str:
    """`name#frame`; the name itself if the frame is 0, as of a file that is one slice."""
    return f"{name}#{frame}" if frame else name
