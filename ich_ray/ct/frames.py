"""The frames of an enhanced or legacy-converted CT file, each as the elements of a classic file.

A classic file says at its top what an enhanced one says in functional groups, shared by all frames or of each (PS3.3
C.7.6.16, A.38, A.70). A frame is a view: its elements are those of the file, with what its groups say put in their
classic places, and its part of the pixels. What reads a classic file then reads a frame. No value is converted, and no
group that is missing is made up.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice, pairwise
from struct import unpack
from typing import TYPE_CHECKING, TypeAlias

from ich_ray.ct.acquisition import (
    CONTRAST_AGENT,
    IMAGE_TYPE,
    KERNEL,
    ORIENTATION,
    PIXEL_SPACING,
    POSITION,
    THICKNESS,
    decimals,
)
from ich_ray.ct.elements import FILE_LIMIT_BYTES, PIXEL_DATA
from ich_ray.ct.pixels import COMPRESSED, NATIVE
from ich_ray.errors import Rejection

if TYPE_CHECKING:
    from ich_ray.ct.elements import Elements

__all__ = ["DECISIVE", "Frames", "check_frame_count"]

Span: TypeAlias = tuple[int, int]

# A perfusion scan of 320 rows has some 7,000; each takes a row, and a dictionary while its file is read.
_FRAME_LIMIT = 2**14

_FRAME_COUNT, _SOP_CLASS, _MODALITY = 0x00280008, 0x00080016, 0x00080060
_INTERCEPT, _SLOPE, _RESCALE_TYPE = 0x00281052, 0x00281053, 0x00281054
_ENHANCED = {"1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"}
_SHARED, _PER_FRAME = 0x52009229, 0x52009230
_OFFSETS = 0x7FE00001
_FRAME_TYPE = 0x00089007
_CONTRAST_AGENTS, _CONTRAST_USAGE, _ADMINISTERED = 0x00180012, 0x00189341, 0x00189342
_SOURCE, _SOURCE_INSTANCE, _SOURCE_FRAME = 0x00209172, 0x00081155, 0x00081160
# The sequence of a functional group -> elements in its item -> where a classic file has them.
_GROUPS = {
    0x00209113: {POSITION: POSITION},
    0x00209116: {ORIENTATION: ORIENTATION},
    0x00289110: {PIXEL_SPACING: PIXEL_SPACING, THICKNESS: THICKNESS},
    0x00289145: {_INTERCEPT: _INTERCEPT, _SLOPE: _SLOPE, _RESCALE_TYPE: _RESCALE_TYPE},
    0x00189329: {_FRAME_TYPE: IMAGE_TYPE},
    0x00189314: {KERNEL: KERNEL},
}
# What decides a pixel of a frame, besides what does of a slice.
DECISIVE = frozenset({_FRAME_COUNT, _SHARED, _PER_FRAME, _OFFSETS, 0x00289145})
_CODESTREAMS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")  # SOI of JPEG and JPEG-LS, SOC of JPEG 2000
_ITEM_HEAD_BYTES = 8
# What the top says of where a slice lies can be true of one frame only.
_NOWHERE: dict[int, Span] = {POSITION: (0, 0)}


def check_frame_count(elements: Elements) -> None:
    """Refuse several frames of which nothing says where they lie.

    Raises:
        Rejection: `frames_invalid` or `multiframe`.
    """
    frames = _frame_count(elements)
    if frames > 1 and not _is_enhanced(elements):
        raise Rejection("multiframe", f"one frame must be there, or enhanced CT, got {frames}")


def _frame_count(elements: Elements) -> int:
    """Absent, 0 and 1 all mean one frame."""
    text = elements.text(_FRAME_COUNT)
    frames = int(text or "1") if re.fullmatch(r"([+-]?\d{1,11})?", text) else -1
    if not 0 <= frames < 2**31 - 1:
        raise Rejection("frames_invalid", "NumberOfFrames must be a count")
    return max(frames, 1)


def _is_enhanced(elements: Elements) -> bool:
    """Whether functional groups describe the frames; those of other modalities are refused for what they are."""
    is_ct = elements.text(_MODALITY).upper() == "CT"
    return is_ct and (elements.text(_SOP_CLASS) in _ENHANCED or _PER_FRAME in elements)


class Frames:
    """The frames of a file, counted from 0; any other file than enhanced CT has itself as its only one.

    Args:
        elements: the file; its pixels may be missing, and stay in one piece unless they are divided.

    Raises:
        Rejection: `frames_invalid` unless there are functional groups of each frame; `size_limit`.
    """

    def __init__(self, elements: Elements) -> None:
        self._elements = elements
        self._starts: list[int] = []
        self._own: list[Elements] = []
        self._shared: Elements | None = None
        self._count = 1
        if _is_enhanced(elements):
            self._count = _frame_count(elements)
            self._read_groups()
        if len(elements.data) > self._count * FILE_LIMIT_BYTES:
            got = f"{len(elements.data)} bytes of {self._count}"
            raise Rejection("size_limit", f"a frame may have {FILE_LIMIT_BYTES} bytes, got {got}")

    def _read_groups(self) -> None:
        if self._count > _FRAME_LIMIT:
            raise Rejection("size_limit", f"a file may have {_FRAME_LIMIT} frames, got {self._count}")
        self._shared = next(self._elements.items(_SHARED), None)
        self._own = [*islice(self._elements.items(_PER_FRAME), self._count + 1)]
        is_classic = self._count == 1 and _PER_FRAME not in self._elements
        if len(self._own) != self._count and not is_classic:
            got = "more" if len(self._own) > self._count else len(self._own)
            raise Rejection("frames_invalid", f"functional groups of {self._count} frames must be there, got {got}")

    def __len__(self) -> int:
        return self._count

    def only(self) -> Elements:
        """The one frame.

        Raises:
            Rejection: `multiframe`.
        """
        if self._count > 1:
            raise Rejection("multiframe", f"one slice must be there, got {self._count} frames")
        return self[0]

    def __getitem__(self, frame: int) -> Elements:
        """A frame as the elements of a classic file.

        Raises:
            Rejection: `frames_invalid` if its groups contradict each other, `rescale_invalid` if the file does.
        """
        if not self._own:
            return self._elements
        spans = {**self._elements.spans, **self._in_classic_places(frame)}
        if not self._starts:
            return replace(self._elements, spans=spans)
        spans[PIXEL_DATA], fragments = self._pixels(frame)
        return replace(self._elements, spans=spans, fragments=fragments)

    def source_ids(self) -> list[str]:
        """The SOPInstanceUID of the classic file that each frame was converted from.

        It is empty where that is not told. All are empty unless no two are equal, because they name slices.
        """
        found = [_source_id(item) for item in self._own]
        told = [uid for uid in found if uid]
        return found if len(set(told)) == len(told) else [""] * len(found)

    def _in_classic_places(self, frame: int) -> dict[int, Span]:
        spans: dict[int, Span] = {} if self._count == 1 else _NOWHERE
        own = self._own[frame]
        for sequence, places in _GROUPS.items():
            groups = [group for item in (own, self._shared) if item and (group := _item(item, sequence))]
            if len({tuple(group.text(tag) for tag in places) for group in groups}) > 1:
                raise Rejection("frames_invalid", "a functional group is both shared and of a frame, and they differ")
            spans = {**spans, **{place: group.spans[tag] for group in groups[:1]
                                 for tag, place in places.items() if tag in group}}  # fmt: skip
        self._check_rescale(spans)
        return {**spans, **_contrast(own, self._shared, self._elements)}

    def _check_rescale(self, spans: dict[int, Span]) -> None:
        top = self._elements
        frame = replace(top, spans=spans)
        for tag in (_SLOPE, _INTERCEPT):
            if tag in top and tag in frame and decimals(top.text(tag)) != decimals(frame.text(tag)):
                raise Rejection("rescale_invalid", "the rescale of a frame differs from the one of the file")

    def divide_pixels(self, size_bytes: int) -> None:
        """Find where each frame begins: a byte of native data, a fragment of encapsulated.

        Args:
            size_bytes: of the words of a frame.

        Raises:
            Rejection: `no_pixel`, `pixel_short`, `pixel_excess`, `decode_error` or `syntax_unsupported`.
        """
        start, end = self._elements.spans.get(PIXEL_DATA, (0, 0))
        if start == end:
            raise Rejection("no_pixel", "PixelData is absent or empty")
        if self._elements.syntax not in NATIVE | COMPRESSED:
            raise Rejection("syntax_unsupported", "the transfer syntax is not one for CT")
        if bool(self._elements.fragments) == (self._elements.syntax in NATIVE):
            raise Rejection("decode_error", "PixelData must be encapsulated if, and only if, the syntax is compressed")
        if self._elements.fragments:
            self._starts = _first_fragments(self._elements, self._count)
            return
        needed = self._count * size_bytes
        if not 0 <= end - start - needed <= 2:
            reason = "pixel_short" if end - start < needed else "pixel_excess"
            raise Rejection(reason, f"{needed} bytes must be there for {self._count} frames, got {end - start}")
        self._starts = [start + frame * size_bytes for frame in range(self._count)]

    def _pixels(self, frame: int) -> tuple[Span, tuple[Span, ...]]:
        """The bytes of a frame and its fragments, an empty offset table first; spare bytes go with the last frame."""
        first = self._starts[frame]
        following = self._starts[frame + 1] if frame + 1 < self._count else None
        if not self._elements.fragments:
            return (first, self._elements.spans[PIXEL_DATA][1] if following is None else following), ()
        fragments = self._elements.fragments[first:following]
        start, end = fragments[0][0] - _ITEM_HEAD_BYTES, fragments[-1][1]
        return (start, end), ((start, start), *fragments)


def _item(elements: Elements, sequence: int) -> Elements | None:
    """The one item of a functional group; None without the group."""
    items = [*islice(elements.items(sequence), 2)]
    if len(items) > 1:
        raise Rejection("frames_invalid", "a functional group must have one item, got several")
    return items[0] if items else None


def _contrast(own: Elements, shared: Elements | None, top: Elements) -> dict[int, Span]:
    """In the place of its classic name, an element that tells of contrast agent (PS3.3 C.7.6.16.2.12, C.7.6.4b)."""
    used = [use for item in (own, shared) if item for use in item.items(_CONTRAST_USAGE)]
    given = [use.spans[_ADMINISTERED] for use in used if use.text(_ADMINISTERED) == "YES"]
    if not used and any(True for _ in top.items(_CONTRAST_AGENTS)):
        given = [top.spans[_CONTRAST_AGENTS]]
    return {CONTRAST_AGENT: given[0]} if given else {}


def _source_id(item: Elements) -> str:
    sources = [*islice(item.items(_SOURCE), 2)]
    if len(sources) != 1 or _SOURCE_FRAME in sources[0]:
        return ""
    return sources[0].text(_SOURCE_INSTANCE)


def _first_fragments(elements: Elements, frames: int) -> list[int]:
    """The first fragment of each frame (PS3.5 A.4): as an offset table says, else one each, else by first bytes."""
    table, *fragments = elements.fragments
    if not fragments:
        raise Rejection("decode_error", "encapsulated PixelData holds no frame")
    if offsets := _offsets(elements, table):
        numbers = {start - fragments[0][0]: number for number, (start, _) in enumerate(fragments, 1)}
        found = [numbers.get(offset, 0) for offset in offsets]
        if len(found) != frames or found[0] != 1 or any(one >= other for one, other in pairwise(found)):
            raise Rejection("decode_error", f"an offset table must lead to {frames} frames in their order")
        return found
    found = [*range(1, len(fragments) + 1)]
    if len(fragments) != frames:
        heads = [bytes(elements.data[start : min(start + 4, end)]) for start, end in fragments]
        found = [number for number, head in enumerate(heads, 1) if head.startswith(_CODESTREAMS)]
    if len(found) != frames or found[0] != 1:
        raise Rejection(
            "decode_error", f"{len(fragments)} fragments without offsets cannot be told apart as {frames} frames"
        )
    return found


def _offsets(elements: Elements, table: Span) -> list[int]:
    """From the first item on, of the extended offset table or the basic one; empty without either."""
    wide = elements.value(_OFFSETS)
    data, letter = (wide, "Q") if wide else (bytes(elements.data[slice(*table)]), "L")
    count, rest = divmod(len(data), 8 if wide else 4)
    if rest:
        raise Rejection("decode_error", "the offset table does not hold whole offsets")
    return [*unpack(f"<{count}{letter}", data)]
