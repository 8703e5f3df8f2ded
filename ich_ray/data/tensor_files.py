"""Map Arrow IPC files of one column of tensors and one batch, their metadata checked first.

Array shapes: `[n, *shape]`, in the order in which they lie in the file.

Arrow itself would inflate a compressed column while it decodes the batch, to any size, and says nothing of it before;
so the batch is not decoded: three fields of its description are read, and the tensors are where it says.
The format: https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc
"""

from __future__ import annotations

import math
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ich_ray.errors import IntegrityError, first_line
from ich_ray.storage import check_regular, is_local, read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from upath import UPath

__all__ = ["MALFORMED", "check_size", "malformed", "map_tensors"]

# All that Arrow, its files and what they say can raise while one is mapped. (ArrowException covers what it calls
# invalid, not implemented or out of memory; the parser of extension types raises ValueError and KeyError.)
MALFORMED = (
    pa.ArrowException, OSError, EOFError, KeyError, ValueError, TypeError, IndexError, ArithmeticError, MemoryError,
    struct.error, RecursionError,
)  # fmt: skip
# A block has 1 kB that is no image: schema, batch and footer, each of which is described once.
_LARGEST_REST_BYTES = 64 << 10
_MAGIC_BYTES = 8


@contextmanager
def malformed(path: UPath, rule: str, remedy: str) -> Iterator[None]:
    """Whatever mapping a damaged file raises, as one line with its name.

    Raises:
        IntegrityError: in place of one of `MALFORMED`.
    """
    try:
        yield
    except MALFORMED as error:
        raise IntegrityError(f"{path}: {rule}, got {first_line(error)}; {remedy}") from None


def map_tensors(
    path: UPath, column: str, kind: type[np.generic], shape: Sequence[int] | None = None, remedy: str = "restore it"
) -> NDArray[Any]:
    """The tensors of a file, without copying: pages are read when touched, and are read-only.

    A file on object storage is read into memory.

    Args:
        path: the file.
        column: its one column.
        kind: of the numbers.
        shape: `(n, *shape)` that must be there, compared with the size of the file before it is read.
        remedy: the end of an error's message.

    Raises:
        IntegrityError: it is no regular file.
        ...: one of `MALFORMED`, whatever else is wrong with it.
    """
    check_regular(path, remedy)
    if shape is not None:
        check_size(path, math.prod(shape) * np.dtype(kind).itemsize)
    with pa.memory_map(str(path)) if is_local(path) else pa.BufferReader(read_bytes(path)) as source:
        told = pa.ipc.open_file(source)
        if told.num_record_batches != 1:
            raise ValueError(f"{told.num_record_batches} record batches in place of one record batch")
        of_each = _tensor_shape(told.schema, column, kind)
        source.seek(_MAGIC_BYTES)
        # The schema is in the file twice; of a damaged one in front Arrow ended the process, so it is passed over.
        first, batch = pa.ipc.read_message(source), pa.ipc.read_message(source)
    if first.type != "schema":
        raise ValueError(f"a {first.type} in place of a schema")
    if batch.type != "record batch":
        raise ValueError(f"a {batch.type} in place of a record batch")
    count, start = _laid_out(batch.metadata.to_pybytes(), math.prod(of_each), np.dtype(kind).itemsize, batch.body.size)
    found = np.frombuffer(batch.body, kind, count * math.prod(of_each), start).reshape(count, *of_each)
    if shape is not None and found.shape != tuple(shape):
        raise ValueError(f"tensors of {found.shape} in place of {tuple(shape)}")
    return found


def check_size(path: UPath, tensor_bytes: int) -> None:
    """Refuse a file that cannot hold so many bytes of tensors and what belongs to them.

    Raises:
        ValueError: it is smaller or larger.
        IntegrityError: it is no regular file.
    """
    check_regular(path, "restore it")
    size = path.stat().st_size
    if not tensor_bytes < size <= tensor_bytes * 1.001 + _LARGEST_REST_BYTES:
        raise ValueError(f"{size:,} bytes for {tensor_bytes:,} bytes of tensors")


def _tensor_shape(schema: pa.Schema, column: str, kind: type[np.generic]) -> tuple[int, ...]:
    """The shape of one tensor, if there is only this column and its elements lie in C order."""
    held = schema.field(0).type if schema.names == [column] else None
    if not isinstance(held, pa.FixedShapeTensorType) or held.value_type != pa.from_numpy_dtype(kind):
        raise ValueError(f"the columns {str(schema.names)[:80]} in place of {column} with tensors of {kind.__name__}")
    shape = tuple(held.shape)
    order = list(held.permutation or range(len(shape)))
    if order != list(range(len(shape))) or held.dim_names or min(shape, default=0) < 1:
        raise ValueError(f"tensors of {list(shape)} in another order than they lie")
    return shape


def _laid_out(description: bytes, elements: int, itemsize: int, body_bytes: int) -> tuple[int, int]:
    """How many tensors a batch has, and where in its body they begin.

    Field numbers are those of Message.fbs and of the tables in it; Arrow has verified that all offsets lie inside.
    """
    batch = _Table.root(description).table(2)
    count = batch.number(0)
    nodes, buffers = batch.pairs(1), batch.pairs(2)
    if batch.at(3):
        raise ValueError("a compressed batch")
    # Per field the count of values and of nulls, and of buffers: two bitmaps of what is null, and the numbers.
    if nodes != [(count, 0), (count * elements, 0)] or [length for _, length in buffers[:2]] != [0, 0]:
        raise ValueError("a batch with nulls or false counts")
    ((start, length),) = buffers[2:]
    if not count * elements * itemsize <= length or not 0 <= start <= start + length <= body_bytes or count < 1:
        raise ValueError(f"{length:,} bytes for {count:,} tensors")
    return count, start


class _Table:
    """A FlatBuffers table, as https://flatbuffers.dev/internals/ lays it out."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data, self._position = data, position

    @classmethod
    def root(cls, data: bytes) -> _Table:
        return cls(data, struct.unpack_from("<I", data)[0])

    def at(self, field: int) -> int:
        """Where a field lies, 0 if it is left out."""
        fields = self._position - struct.unpack_from("<i", self._data, self._position)[0]
        if 4 + 2 * field >= struct.unpack_from("<H", self._data, fields)[0]:
            return 0
        offset: int = struct.unpack_from("<H", self._data, fields + 4 + 2 * field)[0]
        return self._position + offset if offset else 0

    def number(self, field: int) -> int:
        """An int64, 0 if it is left out."""
        place = self.at(field)
        return int(struct.unpack_from("<q", self._data, place)[0]) if place else 0

    def _pointed(self, field: int) -> int:
        place = self.at(field)
        if not place:
            raise ValueError("a batch without its description")
        return place + int(struct.unpack_from("<I", self._data, place)[0])

    def table(self, field: int) -> _Table:
        return _Table(self._data, self._pointed(field))

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """A vector of two int64 each."""
        place = self._pointed(field)
        (count,) = struct.unpack_from("<I", self._data, place)
        if count > 3:  # one column of tensors has two counts and three buffers
            raise ValueError(f"{count} parts of a batch")
        return [struct.unpack_from("<qq", self._data, place + 4 + 16 * number) for number in range(count)]
