"""The program of a decoder process: compressed frames in, raw words out, until its input ends.

Run by isolation.py as `python -m ich_ray.ct.decoder`; it may die at any frame and nothing else is lost. Knows pydicom's
decoders; checks nothing that the header says, and writes nothing but its answers.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import resource
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["FRAME_LIMIT_BYTES", "FRAME_LIMIT_S", "is_available", "missing_decoders", "receive", "send"]

FRAME_LIMIT_S = 10
FRAME_LIMIT_BYTES = 2**30

# What libjpeg writes to stderr, and no plug-in tells its caller, before it makes up the rest of an image.
_MADE_UP = (b"premature end of data segment", b"bad Huffman code", b"Premature end of JPEG file")
_COMPLAINTS_BYTES = 2**20

# The plug-ins of these two syntaxes say that they are there, and then decode 8 bits only.
_LOSSY_JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
_TWELVE_BITS = 12
# 8x8 words of 2,198 as 12-bit JPEG Extended (ITU-T T.81 process 4): one block, quantized by 1, without AC coefficients.
_SAMPLE = (
    b"\xff\xd8\xff\xdb\0\x43\0" + b"\1" * 64 + b"\xff\xc1\0\x0b\x0c\0\x08\0\x08\1\1\x11\0"
    b"\xff\xc4\0\x22\0\0\0\0\x0f" + bytes(12) + bytes(range(15)) + b"\xff\xc4\0\x14\x10\1" + bytes(16)
    + b"\xff\xda\0\x08\1\1\0\0\x3f\0\xb9\x60\xff\xd9"
)  # fmt: skip


def send(stream: BinaryIO, facts: dict[str, Any], payload: bytes | memoryview = b"") -> None:
    """Write one message: length of the facts, facts as JSON, payload.

    The facts hold the length of the payload.
    """
    head = json.dumps({**facts, "bytes": len(payload)}).encode()
    stream.write(len(head).to_bytes(4, "little") + head)
    stream.write(payload)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """Read one message; None where the stream ends before it is whole."""
    head = stream.read(int.from_bytes(stream.read(4), "little"))
    if not head:
        return None
    try:
        facts: dict[str, Any] = json.loads(head)
    except ValueError:
        return None
    payload = stream.read(facts["bytes"])
    return (facts, payload) if len(payload) == facts["bytes"] else None


def is_available(syntax: str, bits: int = 0) -> bool:
    """Whether a decoder for the transfer syntax UID is installed.

    Args:
        syntax: the UID.
        bits: what a codestream has for each sample; any number that is usual for its syntax if it is not known.
    """
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    if bits == _TWELVE_BITS and syntax in _LOSSY_JPEG:
        return _decodes_twelve_bits()
    return get_decoder(UID(syntax)).is_available


def missing_decoders(syntaxes: Iterable[str]) -> list[str]:
    """Which of the transfer syntaxes cannot be decoded here, or only not with 12 bits, in words."""
    missing = sorted(syntax for syntax in syntaxes if not is_available(syntax))
    extended = _LOSSY_JPEG[1]
    if extended not in missing and not is_available(extended, _TWELVE_BITS):
        missing.append(f"{extended} with {_TWELVE_BITS} bits")
    return missing


@functools.cache
def _decodes_twelve_bits() -> bool:
    """Whether a frame of 12-bit lossy JPEG comes out right; what a plug-in says of itself does not tell."""
    from pydicom.encaps import encapsulate

    options = {
        "rows": 8,
        "columns": 8,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": 16,
        "bits_stored": _TWELVE_BITS,
        "pixel_representation": 0,
        "pixel_keyword": "PixelData",
    }
    try:
        return bool((_decode(_LOSSY_JPEG[1], encapsulate([_SAMPLE]), options) == 2198).all())
    except Exception:  # noqa: BLE001  (whatever a plug-in raises)
        return False


def _decode(syntax: str, frame: bytes, options: dict[str, Any]) -> NDArray[np.generic]:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    words, _ = get_decoder(UID(syntax)).as_array(frame, raw=True, **options)
    return words


def _answer(facts: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
    if not is_available(facts["syntax"], facts["bits"]):
        return {"outcome": "unavailable"}, b""
    try:
        words = _decode(facts["syntax"], payload, facts["options"])
    # Plug-ins raise whatever they like, bare Exception and MemoryError included, and all of it means one thing.
    except Exception as error:  # noqa: BLE001
        return {"outcome": "failed", "error": type(error).__name__}, b""
    return {"outcome": "decoded", "dtype": words.dtype.str, "shape": words.shape}, words.tobytes()


def _confine() -> None:
    """Bound the memory beyond what the program itself has mapped, and what a library prints.

    No core file is left, which would hold the pixels.
    """
    mapped_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes + FRAME_LIMIT_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_COMPLAINTS_BYTES, _COMPLAINTS_BYTES))


def _main() -> None:
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    complaints = os.memfd_create("complaints")
    for stream in (1, 2):  # a library that prints must not print into the answers
        os.dup2(complaints, stream)
    # pydicom's logger and warnings quote paths and values.
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    import pydicom.pixels.decoders  # noqa: F401  (its time is not the first frame's)

    _confine()
    send(target, {"outcome": "ready"})
    while message := receive(source):
        # Kills this process in the middle of native code too, should nobody be left to do so.
        signal.alarm(2 * FRAME_LIMIT_S)
        os.lseek(complaints, 0, os.SEEK_SET)  # of all three descriptors, which are one open file
        os.ftruncate(complaints, 0)
        facts, words = _answer(*message)
        if any(complaint in os.pread(complaints, _COMPLAINTS_BYTES, 0) for complaint in _MADE_UP):
            facts, words = {"outcome": "failed", "error": "the end of the coded data is missing"}, b""
        send(target, facts, words)
        signal.alarm(0)


if __name__ == "__main__":
    _main()
