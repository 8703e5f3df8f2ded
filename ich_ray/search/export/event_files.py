"""TensorBoard event files: append a record, read those that are whole.

A record is a length, its checksum, an event and its checksum. A kill, or a full disk, may leave a torn one at the end
of a file: it is skipped by every reader, and nothing is appended after it. Knows nothing of searches.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tensorboardX.proto.summary_pb2 import Summary

__all__ = ["EventFile", "read_events"]

_PREFIX = "events.out.tfevents."
_LARGEST = 1 << 24  # of an event; what says that it has more bytes is damaged


class EventFile:
    """A new file of a folder, which sorts behind those that are there: readers go through them by name.

    Args:
        folder: of one run.
        begun: seconds since 1970.
    """

    def __init__(self, folder: Path, begun: float) -> None:
        last = max((path.name for path in folder.glob(f"{_PREFIX}*")), default="")
        number = 0
        while (name := f"{_PREFIX}{int(begun):010d}.{number:04d}.ich_ray") <= last:
            number += 1
            if number > 9999:  # the clock was set back
                begun, number = int(last.removeprefix(_PREFIX).partition(".")[0] or begun) + 1, 0
        self.path = folder / name
        folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("xb") as file:
            file.write(_packed(Event(wall_time=begun, file_version="brain.Event:2")))

    def append(self, summary: Summary, step: int, wall_time: float) -> None:
        """Append one event, whole unless the process or the disk ends meanwhile."""
        with self.path.open("ab", buffering=0) as file:
            data = _packed(Event(wall_time=wall_time, step=step, summary=summary))
            while data:
                data = data[file.write(data) :]


def read_events(folder: Path) -> Iterator[Event]:
    """All whole events of a run, file by file."""
    for path in sorted(folder.glob(f"{_PREFIX}*")):
        yield from _whole_events(path.read_bytes())


def _whole_events(data: bytes) -> Iterator[Event]:
    at = 0
    while at + 12 <= len(data):
        head = data[at : at + 8]
        (length,) = struct.unpack("<Q", head)
        body = data[at + 12 : at + 12 + length]
        if (
            _checksum(head) != data[at + 8 : at + 12]
            or length > _LARGEST
            or _checksum(body) != data[at + 12 + length : at + 16 + length]
        ):
            return
        try:
            yield Event.FromString(body)
        except DecodeError:
            return
        at += 16 + length


def _packed(event: Event) -> bytes:
    body: bytes = event.SerializeToString()
    head = struct.pack("<Q", len(body))
    return head + _checksum(head) + body + _checksum(body)


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))
