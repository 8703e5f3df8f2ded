"""One to three changes in a file's header, encapsulation or pixels: bytes, lengths, tags, VRs, whole elements."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from ich_ray.ct.elements import DEFLATED, PIXEL_DATA, parse

__all__ = ["Base", "changed"]

_VALUES = (
    b"0",
    b"1",
    b"-1",
    b"2",
    b"9",
    b" ",
    b"\\",
    b".",
    b"-",
    b"+",
    b"e",
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\x0c",
    b"\n",
)
_VRS = (b"OB", b"OW", b"UN", b"SQ", b"US", b"SS", b"DS", b"IS", b"UI", b"LO", b"CS", b"UT", b"??", b"\0\0")
# What decides about pixels and identity, and what would take its place.
_TAGS = (
    *(0x00080005, 0x00080018, 0x00080060, 0x00100020, 0x0020000D, 0x0020000E, 0x00200032, 0x00200037),
    *(0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280102, 0x00280103),
    *(0x00280120, 0x00280121, 0x00281052, 0x00281053, 0x00281054, 0x00283000, 0x7FE00008, 0x7FE00010),
)
_PHOTOMETRIC = 0x00280004


@dataclass(frozen=True)
class Base:
    """A good file, uncompressed if it was deflated, with its places.

    Attributes:
        elements: (start, end) of each top-level element in file order, head included.
        heads: places of item heads and of the head of PixelData.
        pixels: (start, end) of the value of PixelData.
    """

    data: bytes
    meta_end: int
    deflated: bool
    big: bool
    elements: tuple[tuple[int, int], ...]
    heads: tuple[int, ...]
    pixels: tuple[int, int]

    @classmethod
    def of(cls, data: bytes) -> Base:
        found = parse(memoryview(data))
        meta_end = 144 + int.from_bytes(data[140:144], "little")  # PS3.10 7.1: the group's length comes first
        elements, begin = [], 132
        for _, end in sorted(found.spans.values()):
            elements.append((begin, end))
            begin = end
        heads = [elements[-1][0], *(start - 8 for start, _ in found.fragments)]
        pixels = found.spans[PIXEL_DATA]
        return cls(
            bytes(found.data),
            meta_end,
            found.syntax == DEFLATED,
            found.order == ">",
            tuple(elements),
            tuple(heads + [pixels[1] - 8] * bool(found.fragments)),
            pixels,
        )

    def file(self, data: bytes) -> bytes:
        """The file that holds `data`: deflated again where the base was."""
        if not self.deflated:
            return data
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        body = deflater.compress(data[self.meta_end :]) + deflater.flush()
        return data[: self.meta_end] + body + b"\0" * (len(body) % 2)


def changed(base: Base, rng: random.Random) -> bytes:
    """The base with one to three changes."""
    data = bytearray(base.data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        _change(base, data, rng)
    file = base.file(bytes(data))
    if base.deflated and rng.random() < 0.1:
        flipped = bytearray(file)
        flipped[rng.randrange(base.meta_end, len(file))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    return file


def _change(base: Base, data: bytearray, rng: random.Random) -> None:
    where = rng.random()
    if where < 0.3:
        _of_header(base, data, rng)
    elif where < 0.55:
        rng.choice(_ELEMENTS)(base, data, rng)
    elif where < 0.75:
        at = rng.choice(base.heads) + rng.randrange(12)
        rng.choice(_BYTES)(data, min(at, len(data) - 1), rng)
    else:
        rng.choice(_BYTES)(data, min(rng.randrange(*base.pixels), len(data) - 1), rng)


def _of_header(base: Base, data: bytearray, rng: random.Random) -> None:
    start, end = rng.choice(base.elements)
    at = min(rng.randrange(start, end), base.pixels[0] - 1, len(data) - 1)
    rng.choice(_BYTES)(data, at, rng)


def _any(data: bytearray, at: int, rng: random.Random) -> None:
    data[at] = rng.randrange(256)


def _bit(data: bytearray, at: int, rng: random.Random) -> None:
    data[at] ^= 1 << rng.randrange(8)


def _near(data: bytearray, at: int, rng: random.Random) -> None:
    data[at] = (data[at] + rng.choice((-4, -2, -1, 1, 2, 4))) % 256


def _typical(data: bytearray, at: int, rng: random.Random) -> None:
    value = rng.choice(_VALUES)
    data[at : at + len(value)] = value


def _copied(data: bytearray, at: int, rng: random.Random) -> None:
    """A byte of the file in the place of another: digits become other digits."""
    data[at] = data[rng.randrange(128, len(data))]


def _inserted(data: bytearray, at: int, rng: random.Random) -> None:
    data[at:at] = rng.choice((b"\0", b"\xff", b" ", rng.randbytes(1))) * rng.choice((1, 2, 4))


def _deleted(data: bytearray, at: int, rng: random.Random) -> None:
    del data[at : at + rng.choice((1, 2, 4, 8))]


def _undefined(data: bytearray, at: int, rng: random.Random) -> None:
    """Four bytes that are all set or all clear, as lengths are that say nothing."""
    data[at : at + 4] = rng.choice((b"\xff", b"\0")) * 4


_BYTES: tuple[Callable[[bytearray, int, random.Random], None], ...] = (
    *(_any, _bit, _bit, _near, _typical, _typical, _copied),
    *(_inserted, _deleted, _undefined),
)


def _is_whole(base: Base, data: bytearray) -> bool:
    """Whether the places of the base still hold."""
    return len(data) == len(base.data)


def _repeated(base: Base, data: bytearray, rng: random.Random) -> None:
    start, end = rng.choice(base.elements)
    at, _ = rng.choice(base.elements)
    data[at:at] = data[start:end] if _is_whole(base, data) else b""


def _dropped(base: Base, data: bytearray, rng: random.Random) -> None:
    start, end = rng.choice(base.elements)
    if _is_whole(base, data):
        del data[start:end]


def _retagged(base: Base, data: bytearray, rng: random.Random) -> None:
    """Another tag on an element: what was there is missing, and something else is there, or is there twice."""
    at, _ = rng.choice(base.elements)
    tag, order = rng.choice(_TAGS), "big" if base.big and at >= base.meta_end else "little"
    data[at : at + 4] = (tag >> 16).to_bytes(2, order) + (tag & 0xFFFF).to_bytes(2, order)  # type: ignore[arg-type]


def _retyped(base: Base, data: bytearray, rng: random.Random) -> None:
    at, _ = rng.choice(base.elements)
    data[at + 4 : at + 6] = rng.choice(_VRS)


def _revalued(base: Base, data: bytearray, rng: random.Random) -> None:
    """Bytes at the end of a value, where numbers and texts differ."""
    _, end = rng.choice(base.elements)
    at = min(end, len(data)) - rng.choice((1, 2, 3, 4))
    rng.choice((_near, _typical, _any))(data, at, rng)


def _moved(base: Base, data: bytearray, rng: random.Random) -> None:
    start, end = rng.choice(base.elements)
    at, _ = rng.choice(base.elements)
    if _is_whole(base, data) and not start <= at < end:
        moved = bytes(data[start:end])
        if at > start:
            data[at:at] = moved
            del data[start:end]
        else:
            del data[start:end]
            data[at:at] = moved


def _cut(base: Base, data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(base.pixels[0], len(data)) if len(data) > base.pixels[0] else len(data) - 1 :]


def _trailed(base: Base, data: bytearray, rng: random.Random) -> None:
    data += rng.choice((b"\0", b"\n", b"\xff", b"\xfc\xff\xfc\xff\0\0\0\0")) * rng.choice((1, 2, 3, 16))


def _split(base: Base, data: bytearray, rng: random.Random) -> None:
    """Two fragments in the place of one, or an empty one between."""
    if len(base.heads) < 3 or not _is_whole(base, data):
        return _revalued(base, data, rng)
    at = base.heads[2]
    length = int.from_bytes(data[at + 4 : at + 8], "little")
    first = rng.choice((0, 2, length // 4 * 2, length))
    head = b"\xfe\xff\x00\xe0"
    body = bytes(data[at + 8 : at + 8 + length])
    data[at : at + 8 + length] = b"".join(
        head + len(part).to_bytes(4, "little") + part for part in (body[:first], body[first:])
    )
    return None


def _named(base: Base, data: bytearray, rng: random.Random) -> None:
    """Another word of the same length where the color is said."""
    data[:] = data.replace(b"MONOCHROME2", rng.choice((b"MONOCHROME1", b"PALETTE COL", b"monochrome2")))


_ELEMENTS: tuple[Callable[[Base, bytearray, random.Random], None], ...] = (
    *(_repeated, _dropped, _retagged, _retagged, _retyped, _revalued, _revalued, _revalued),
    *(_moved, _cut, _trailed, _split, _named),
)
