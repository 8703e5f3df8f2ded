"""The bytes of a DICOM file, of this machine or of object storage, or a typed rejection.

Knows which files are read, and how much of them; knows no element but that pixels come last.
"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from upath import UPath

from ich_ray.ct.elements import FILE_LIMIT_BYTES, MULTIFRAME_LIMIT_BYTES, Elements, parse_header
from ich_ray.errors import Rejection
from ich_ray.storage import Location, is_local, locate

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["header_elements", "read_file"]

_READ_TRIES = 3
_HEADER_BYTES = 1 << 16  # a header of the RSNA set has 1 kB, one with private sequences some 20
_CUT = {"truncated_header", "truncated_pixel"}  # what a header is called that does not end there


def header_elements(source: Location, without_preamble: bool) -> Elements:
    """The elements before the pixels, of so much of a file as it takes.

    Raises:
        Rejection: see `elements.parse_header`.
    """
    for most_bytes in (_HEADER_BYTES, _HEADER_BYTES * 64):
        data = _first_bytes(source, most_bytes)
        try:
            return parse_header(memoryview(data), without_preamble)
        except Rejection as rejection:
            if rejection.reason not in _CUT or len(data) < most_bytes:
                raise
    return parse_header(memoryview(read_file(source)), without_preamble)


def read_file(source: Location) -> bytes | mmap.mmap:
    """The bytes of a regular file, no more than its slices may have.

    A file on this machine that is too large for one slice is mapped, so that its frames take the memory of one at a
    time; who cuts it in the meantime ends this process.

    Raises:
        Rejection: `not_regular`, `size_limit`, or `io_error` after three tries.
    """
    path = _place(source)
    return _tried(lambda: _read_local(path) if isinstance(path, str) else path.read_bytes())


def _first_bytes(source: Location, most_bytes: int) -> bytes | mmap.mmap:
    """So many bytes of a file; fewer are the whole of it."""
    path = _place(source)
    if isinstance(path, str):
        return _tried(lambda: _read_local(path, most_bytes))
    return _tried(lambda: path.fs.cat_file(path.path, start=0, end=most_bytes))


def _place(source: Location) -> UPath | str:
    """A string is an absolute path on this machine."""
    if isinstance(source, str | Path) and os.path.isabs(source):  # noqa: PTH117  (`locate` takes as long as the header)
        return str(source)
    path = source if isinstance(source, UPath) else locate(source)
    return str(path) if is_local(path) else path


def _tried(read: Callable[[], bytes | mmap.mmap]) -> bytes | mmap.mmap:
    for attempt in range(_READ_TRIES):
        try:
            return read()
        except OSError as error:
            if attempt == _READ_TRIES - 1:
                raise Rejection("io_error", os.strerror(error.errno) if error.errno else "unreadable") from None
    raise AssertionError


def _read_local(path: str, most_bytes: int = MULTIFRAME_LIMIT_BYTES) -> bytes | mmap.mmap:
    """The first `most_bytes` of a file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not make us wait
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise Rejection("not_regular", "not a regular file")
        if facts.st_size > MULTIFRAME_LIMIT_BYTES:
            raise Rejection("size_limit", f"a file may have {MULTIFRAME_LIMIT_BYTES} bytes, got {facts.st_size}")
        wanted = min(facts.st_size, most_bytes)
        if wanted > FILE_LIMIT_BYTES:
            return mmap.mmap(descriptor, wanted, access=mmap.ACCESS_READ)
        data = file.read(wanted + (wanted == facts.st_size))
        while data and len(data) < wanted and (more := file.read(wanted - len(data))):
            data += more
        if len(data) != wanted:
            raise OSError("the file changed while it was read")
        return data
