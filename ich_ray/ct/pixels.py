"""Stored pixel words of one slice: a view of native data, or a decoded copy of compressed data.

Knows the Image Pixel module (PS3.3 C.7.6.3) and the transfer syntaxes; does not know Hounsfield units. Native data
never go through pydicom's `pixel_array`, which copies. Compressed data go through pydicom's decoders, in a process of
their own, after the size in the codestream itself was compared with the header, because decoders allocate what the
codestream says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ich_ray.ct.elements import FILE_LIMIT_BYTES, PIXEL_DATA, Elements
from ich_ray.ct.isolation import decoded_frame
from ich_ray.errors import Rejection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["COMPRESSED", "NATIVE", "PixelLayout", "stored_words"]

NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"})
_RLE = "1.2.840.10008.1.2.5"
_LOSSY = frozenset(f"1.2.840.10008.1.2.4.{last}" for last in (50, 51, 81, 91, 203))
_LOSSLESS = frozenset(f"1.2.840.10008.1.2.4.{last}" for last in (57, 70, 80, 90, 201, 202))
COMPRESSED = _LOSSLESS | _LOSSY | {_RLE}

# JPEG and JPEG-LS frame headers (ITU-T T.81 B.1.1.3, T.87); the other markers of C0..CF are tables.
_JPEG_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_SIZ, _SOT, _SOS = 0x51, 0x90, 0xDA
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff")  # of JPEG and JPEG-LS, of JPEG 2000, each with its next marker
_END = b"\xff\xd9"  # of each of them


_EMPTY_ITEM = b"\xfe\xff\x00\xe0\0\0\0\0"


@dataclass(frozen=True)
class PixelLayout:
    """How words are stored: `[rows, columns]` of `bits_allocated`.

    The lowest `bits_stored` of them count.
    """

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool

    @property
    def size_bytes(self) -> int:
        return self.rows * self.columns * self.bits_allocated // 8

    @property
    def is_too_large(self) -> bool:
        """Whether the square that a slice is padded to would be larger than a file may be.

        65,535x1 pixels pad to 17 GB.
        """
        return max(self.rows, self.columns) ** 2 * self.bits_allocated // 8 > FILE_LIMIT_BYTES

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"{'i' if self.signed else 'u'}{self.bits_allocated // 8}")


def stored_words(elements: Elements, layout: PixelLayout) -> tuple[NDArray[Any], list[str]]:
    """The stored words `[rows, columns]`, in this machine's byte order and read-only, with flags.

    Raises:
        Rejection: `dims_limit`, `size_limit`, `pixel_short`, `pixel_excess`, `decode_error`, `dims_mismatch`,
            `truncated_pixel`, `decoder_crash` or `syntax_unsupported`.
    """
    if elements.syntax in NATIVE:
        words, flags = _native(elements, layout)
    elif elements.syntax in COMPRESSED:
        words, flags = _decoded(elements, layout)
    else:
        raise Rejection("syntax_unsupported", "the transfer syntax is none of those that are read")
    words, excess = _without_high_bits(words, layout)
    words = np.require(words, requirements=["C", "A"])
    words.flags.writeable = False
    return words, [*flags, *excess]


def _native(elements: Elements, layout: PixelLayout) -> tuple[NDArray[Any], list[str]]:
    if layout.is_too_large:
        raise Rejection("dims_limit", f"{layout.rows}x{layout.columns} pixels are more than a slice may have")
    if elements.fragments:
        raise Rejection("decode_error", "encapsulated PixelData under a native transfer syntax")
    start, end = elements.spans[PIXEL_DATA]
    spare = end - start - layout.size_bytes
    if spare < 0:
        raise Rejection("pixel_short", f"{layout.size_bytes} bytes must be there, got {end - start}")
    if spare > 2:
        raise Rejection("pixel_excess", f"{layout.size_bytes} bytes must be there, got {end - start}")
    dtype = layout.dtype.newbyteorder(elements.order)
    words = np.frombuffer(elements.data, dtype, layout.rows * layout.columns, start)
    words = words.astype(layout.dtype, copy=False).reshape(layout.rows, layout.columns)
    return words, ["pixel_padding"] if spare else []


def _without_high_bits(words: NDArray[Any], layout: PixelLayout) -> tuple[NDArray[Any], list[str]]:
    """Words with the bits above `bits_stored` cleared, or filled with the sign (PS3.5 8.1.1)."""
    if layout.bits_stored == layout.bits_allocated:
        return words, []
    limit = 1 << layout.bits_stored
    low, high = (-limit // 2, limit // 2 - 1) if layout.signed else (0, limit - 1)
    if words.max() <= high and (not layout.signed or words.min() >= low):
        return words, []
    unused = layout.bits_allocated - layout.bits_stored
    return (words << unused) >> unused, ["high_bits"]


def _decoded(elements: Elements, layout: PixelLayout) -> tuple[NDArray[Any], list[str]]:
    if layout.is_too_large:
        raise Rejection("size_limit", f"{layout.rows}x{layout.columns} pixels are more than a slice may have")
    if len(elements.fragments) < 2:
        raise Rejection("decode_error", "no encapsulated frame under a compressed transfer syntax")
    bits, flags = 0, ["lossy"] if elements.syntax in _LOSSY else []
    if elements.syntax != _RLE:
        frame = b"".join(elements.data[start:end] for start, end in elements.fragments[1:])
        bits = _check_codestream(frame, layout)
        flags += ["pixel_padding"] if _after_end(frame).strip(b"\0") else []
    start, end = elements.spans[PIXEL_DATA]
    table = elements.fragments[0]
    encapsulated = bytes(elements.data[start:end])
    if table == (start, start):  # one of several frames, whose offset table is not its own
        encapsulated = _EMPTY_ITEM + encapsulated
    options: dict[str, Any] = {
        "rows": layout.rows,
        "columns": layout.columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": layout.bits_allocated,
        "bits_stored": layout.bits_stored,
        "pixel_representation": int(layout.signed),
        "pixel_keyword": "PixelData",
    }
    try:
        words = decoded_frame(elements.syntax, encapsulated, options, bits)
    except Rejection as rejection:
        if rejection.reason == "decode_error" and elements.syntax == _RLE:
            raise Rejection("truncated_pixel", rejection.detail) from None
        raise
    if words.shape != (layout.rows, layout.columns):
        raise Rejection("dims_mismatch", f"{layout.rows}x{layout.columns} in the header, {words.shape} decoded")
    return np.asarray(words, layout.dtype), flags


def _check_codestream(frame: bytes, layout: PixelLayout) -> int:
    """Bits of a sample of a codestream of the size that the header says."""
    found = _codestream_facts(frame)
    if found is None:
        raise Rejection("decode_error", "the frame is no JPEG, JPEG-LS or JPEG 2000 codestream")
    rows, columns, bits = found
    if rows * columns * 2 > FILE_LIMIT_BYTES:
        raise Rejection("size_limit", f"the codestream holds {rows}x{columns} pixels")
    if (rows, columns) != (layout.rows, layout.columns):
        raise Rejection("dims_mismatch", f"{layout.rows}x{layout.columns} in the header, {rows}x{columns} in the frame")
    return bits


def _after_end(frame: bytes) -> bytes:
    """What follows the end marker of a codestream: nothing, padding, or what an encoder's buffer held.

    Raises:
        Rejection: `truncated_pixel`, no end marker; `pixel_excess`, a second codestream, which may be the image.
    """
    data = next((place for marker, place in _segments(frame) if marker in {_SOS, _SOT}), 0)
    # Coded data hold no end marker (ITU-T T.81 B.1.1.5, T.87 C.1, T.800 B.10.1), other segments may: a thumbnail.
    # CharLS needs 8 s to find out that the end of a JPEG-LS frame of 4 kB is missing.
    end = frame.find(_END, data)
    if end < 0:
        raise Rejection("truncated_pixel", "the codestream has no end marker")
    rest = frame[end + len(_END) :]
    if any(start in rest for start in _STARTS):
        raise Rejection("pixel_excess", "one codestream must be there, got another one behind its end marker")
    return rest


def _codestream_facts(frame: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, bits of a sample) that a codestream itself declares, None if it is none that we know."""
    for marker, place in _segments(frame):
        if marker == _SIZ and frame.startswith(_STARTS[1]) and place + 37 <= len(frame):  # ITU-T T.800 A.5.1
            right, bottom, left, top = (int.from_bytes(frame[at : at + 4]) for at in range(place + 4, place + 20, 4))
            return bottom - top, right - left, (frame[place + 36] & 0x7F) + 1
        if marker in _JPEG_FRAMES and frame.startswith(_STARTS[0]) and place + 7 <= len(frame):
            return (
                int.from_bytes(frame[place + 3 : place + 5]),
                int.from_bytes(frame[place + 5 : place + 7]),
                frame[place + 2],
            )
    return None


def _segments(frame: bytes) -> Iterator[tuple[int, int]]:
    """Marker, and place of the length, of each segment of a codestream up to its first coded data."""
    position = 2 if frame.startswith(_STARTS) else len(frame)
    while position + 4 <= len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker == 0xFF:  # fill bytes may precede any marker, ITU-T T.81 B.1.1.2
            position += 1
            continue
        yield marker, position + 2
        if marker in {_SOS, _SOT}:
            return
        position += 2 + int.from_bytes(frame[position + 2 : position + 4])
