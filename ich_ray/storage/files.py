"""Bytes, JSON and tables on the disk and in object stores: every write is whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ich_ray.errors import ConfigError, IntegrityError, first_line
from ich_ray.storage.places import check_regular, is_local
from ich_ray.storage.retries import retried

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    import pyarrow.parquet as pq
    from upath import UPath

__all__ = [
    "bytes_written",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_table",
    "remove",
    "sha256",
    "write_bytes",
    "write_json",
    "write_table",
    "writing",
]

_CHUNK_BYTES = 1 << 20
# The largest we write is the manifest of a dataset, 200 bytes a block; a file beyond this was not written by us.
_LARGEST_JSON_BYTES = 64 << 20
# Of a table whose number of rows nobody knows: slices of 100,000 studies. Ours take 100 to 400 bytes a row.
_MOST_ROWS = 20_000_000
_ROW_BYTES = 4096
_RESTORE = "restore the file from a copy"


def write_bytes(path: UPath, data: bytes, private: bool = False) -> None:
    """Write a file that is either whole or as it was before.

    Locally: a temporary name beside it, fsync, rename, fsync of the folder (a rename alone survives a killed
    process but not a power loss). Object stores put whole objects, so there one write is enough.

    Args:
        path: the file.
        data: all of it.
        private: see `writing`.
    """

    def write() -> None:
        with writing(path, private) as file:
            file.write(data)

    if is_local(path):
        retried(path, write)
    else:
        write()  # which tries again by itself
    _written.add(len(data))


class _Total:
    """A sum over all threads."""

    def __init__(self) -> None:
        self.value, self._lock = 0, threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self.value += count


_written = _Total()


def bytes_written() -> int:
    """Bytes of all that `write_bytes` has written in this process."""
    return _written.value


@contextmanager
def writing(path: UPath, private: bool = False) -> Iterator[IO[bytes]]:
    """A file to write piece by piece; it stands at `path` once the block ends without an error.

    For an object store the pieces wait in a temporary file of this machine.

    Args:
        path: the file.
        private: only its owner may read it, from its first byte on; in an object store its own rules decide.

    Raises:
        ConfigError: a folder stands there.
    """
    if not is_local(path):
        retried(path, lambda: path.parent.mkdir(parents=True, exist_ok=True))
        with tempfile.NamedTemporaryFile() as file:
            yield file
            file.flush()
            retried(path, lambda: path.fs.put_file(file.name, path.path))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(str(path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")))
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(str(path))
    except IsADirectoryError:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"{path}: must be a file, got a folder; remove it") from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(str(path.parent), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: UPath, value: Any) -> None:
    """Write `value` as readable JSON, atomically. NaN and infinities are refused: they are not JSON."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_bytes(path: UPath, most_bytes: int = -1) -> bytes:
    """The bytes of a file, or so many of them."""

    def read() -> bytes:
        with path.open("rb") as file:
            return file.read(most_bytes)

    return retried(path, read)


def read_json(path: UPath) -> Any:
    """Read a JSON file, which may come from anyone.

    Raises:
        IntegrityError: the file is not JSON, holds a number that is not finite, or is far larger than any of ours.
    """
    remedy = _RESTORE
    check_regular(path, remedy)
    data = read_bytes(path, _LARGEST_JSON_BYTES + 1)
    if len(data) > _LARGEST_JSON_BYTES:
        raise IntegrityError(f"{path}: must be JSON of at most {_LARGEST_JSON_BYTES >> 20} MiB, got more; {remedy}")
    try:
        return parse_json(data)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path}: must be JSON, got {error}; {remedy}") from None


def parse_json(data: bytes | str) -> Any:
    """JSON from anyone; NaN, Infinity and numbers that become infinite are none.

    Raises:
        ValueError: it is not JSON.
        RecursionError: it is too deep.
    """
    return json.loads(data, parse_constant=_no_number, parse_float=_finite)


def _no_number(name: str) -> float:
    raise ValueError(f"{name}, which is no number")


def _finite(text: str) -> float:
    if (number := float(text)) - number != 0:
        raise ValueError(f"{text[:20]}, which no number can hold")
    return number


def write_table(path: UPath, table: pa.Table, private: bool = False) -> str:
    """Write a Parquet file atomically, for its owner only if `private`; its SHA-256."""
    import pyarrow as pa  # who only reads JSON need not wait for it
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data = sink.getvalue().to_pybytes()
    write_bytes(path, data, private)
    return sha256(data)


def read_table(path: UPath, rows: int | None = None) -> pa.Table:
    """Read a Parquet file of numbers and text, which may come from anyone.

    Arrow is given a copy in its own memory. Where it reads a Python file, or bytes, its threads may still hold them
    while Python ends, and with PyTorch loaded that aborts the process, whatever its exit code was to be: of 40 that
    read a small file and left with code 2, 26 ended in SIGABRT (with bytes 14 of 30), and of 40 with a copy none.

    Args:
        path: the file.
        rows: how many it must have, compared before any is read.

    Raises:
        IntegrityError: the file is not Parquet, or not whole, or larger than such rows are.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_regular(path, _RESTORE)
    most_bytes = (_MOST_ROWS if rows is None else rows) * _ROW_BYTES + _CHUNK_BYTES

    def copied() -> pa.Buffer:
        held = pa.BufferOutputStream()
        with path.open("rb") as file:
            if (size := file.seek(0, os.SEEK_END)) > most_bytes:
                raise ValueError(f"{size:,} bytes")
            file.seek(0)
            shutil.copyfileobj(file, held, _CHUNK_BYTES)
        return held.getvalue()

    try:
        source = retried(path, copied)
        parquet = pq.ParquetFile(pa.BufferReader(source))
        text = _text_columns(parquet, rows, most_bytes)
        as_words = pq.ParquetFile(pa.BufferReader(source), metadata=parquet.metadata, read_dictionary=text)
        _check_words(as_words, text, most_bytes)
        return parquet.read()
    except FileNotFoundError:
        raise
    except (pa.ArrowException, ValueError, KeyError, TypeError, ArithmeticError, MemoryError) as error:
        raise _no_table(path, error) from None
    except OSError as error:  # Arrow's has no number: it speaks of the content, which is in memory
        if error.errno is not None:
            raise
        raise _no_table(path, error) from None


def _no_table(path: UPath, error: Exception) -> IntegrityError:
    return IntegrityError(f"{path}: must be a Parquet file, got {first_line(error)}; {_RESTORE}")


def _text_columns(file: pq.ParquetFile, rows: int | None, most_bytes: int) -> list[str]:
    """The columns of text of a file that is as large as it should be.

    Nothing is asked of single columns: of a codec or an encoding that it does not know Arrow aborts the process there.
    """
    import pyarrow as pa

    facts, schema = file.metadata, file.schema_arrow
    wanted = facts.num_rows if rows is None else rows
    if facts.num_rows != wanted or not 0 <= wanted <= (_MOST_ROWS if rows is None else wanted):
        raise ValueError(f"{facts.num_rows:,} rows in place of {wanted:,}")
    groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
    if not 0 <= (size := sum(group.total_byte_size for group in groups)) <= most_bytes:
        raise ValueError(f"{size:,} bytes of {wanted:,} rows")
    text = []
    for field in schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            text.append(field.name)
        elif not (pa.types.is_primitive(kind) or pa.types.is_null(kind)):
            raise ValueError(f"a column {field.name[:80]!r} of {str(kind)[:80]}")
    return text


def _check_words(file: pq.ParquetFile, text: list[str], most_bytes: int) -> None:
    """Refuse a file that repeats long words: a few bytes of Parquet stand for a word in every row.

    Args:
        file: opened to read columns of text as dictionaries; the first row of a group then comes with all words of it.
        text: these columns.
        most_bytes: of all rows together.
    """
    import pyarrow.compute as pc

    size = 0
    for number in range(file.metadata.num_row_groups if text else 0):
        for batch in file.iter_batches(1, row_groups=[number], columns=text):
            words = (pc.max(pc.binary_length(column.dictionary)).as_py() or 0 for column in batch.columns)
            size += sum(words) * file.metadata.row_group(number).num_rows
            break
        if size > most_bytes:
            raise ValueError(f"up to {size:,} bytes of text")


def remove(folder: UPath) -> None:
    """Remove a folder and all that is in it; one that is not there is gone already."""
    if is_local(folder):
        shutil.rmtree(str(folder), ignore_errors=True)
    elif folder.exists():
        folder.fs.rm(folder.path, recursive=True)


def sha256(data: bytes | UPath) -> str:
    """The SHA-256 of bytes or of a file, in hexadecimal.

    Raises:
        IntegrityError: it is no regular file.
    """
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    check_regular(data, _RESTORE)

    def digest_of() -> str:
        digest = hashlib.sha256()
        with data.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    return retried(data, digest_of)
