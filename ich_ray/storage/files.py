"""Bytes, JSON and tables on the disk and in object stores: every write is whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ich_ray.errors import IntegrityError
from ich_ray.storage.places import is_local

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from upath import UPath

__all__ = ["read_json", "read_table", "remove", "sha256", "write_bytes", "write_json", "write_table", "writing"]

_CHUNK_BYTES = 1 << 20
# The largest we write is the manifest of a dataset, 200 bytes a block; a file beyond this was not written by us.
_LARGEST_JSON_BYTES = 64 << 20


def write_bytes(path: UPath, data: bytes, private: bool = False) -> None:
    """Write a file that is either whole or as it was before.

    Locally: a temporary name beside it, fsync, rename, fsync of the folder (a rename alone survives a killed
    process but not a power loss). Object stores put whole objects, so there one write is enough.

    Args:
        path: the file.
        data: all of it.
        private: see `writing`.
    """
    with writing(path, private) as file:
        file.write(data)


@contextmanager
def writing(path: UPath, private: bool = False) -> Iterator[IO[bytes]]:
    """A file to write piece by piece; it stands at `path`, whole, when the block ends without an error, and not before.

    For an object store the pieces wait in a temporary file of this machine.

    Args:
        path: the file.
        private: only its owner may read it, from its first byte on; in an object store its own rules decide.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_local(path):
        with tempfile.NamedTemporaryFile() as file:
            yield file
            file.flush()
            path.fs.put_file(file.name, path.path)
        return
    temporary = Path(str(path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")))
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(str(path))
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


def read_json(path: UPath) -> Any:
    """Read a JSON file, which may come from anyone.

    Raises:
        IntegrityError: the file is not JSON, holds a number that is not finite, or is far larger than any of ours.
    """
    remedy = "restore the file from a copy"
    _check_regular(path)
    with path.open("rb") as file:
        data = file.read(_LARGEST_JSON_BYTES + 1)
    if len(data) > _LARGEST_JSON_BYTES:
        raise IntegrityError(f"{path}: must be JSON of at most {_LARGEST_JSON_BYTES >> 20} MiB, got more; {remedy}")
    try:
        return json.loads(data, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path}: must be JSON, got {error}; {remedy}") from None


def _check_regular(path: UPath) -> None:
    """A pipe would never end, nor would /dev/zero; a link to one is one."""
    if is_local(path) and path.exists() and not path.is_file():
        raise IntegrityError(f"{path}: must be a file, got something else; restore the file from a copy")


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


def read_table(path: UPath, most_rows: int | None = None) -> pa.Table:
    """Read a Parquet file, which may come from anyone.

    Arrow is given a copy in its own memory. Where it reads a Python file, or bytes, its threads may still hold them
    while Python ends, and with PyTorch loaded that aborts the process, whatever its exit code was to be: of 40 that
    read a small file and left with code 2, 26 ended in SIGABRT (with bytes 14 of 30), and of 40 with a copy none.

    Args:
        path: the file.
        most_rows: that it can have if it is what its manifest says; a file of a few bytes may tell of billions.

    Raises:
        IntegrityError: the file is not Parquet, not whole, or has more rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    _check_regular(path)
    held = pa.BufferOutputStream()
    with path.open("rb") as file:
        shutil.copyfileobj(file, held, _CHUNK_BYTES)
    data, remedy = held.getvalue(), "restore the file from a copy"
    try:
        told = pq.read_metadata(pa.BufferReader(data)).num_rows
        if most_rows is not None and told > most_rows:
            raise IntegrityError(f"{path}: at most {most_rows:,} rows must be there, got {told:,}; {remedy}")
        return pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:  # of the content: all of it is in memory
        said = str(error).strip().partition("\n")[0]
        raise IntegrityError(f"{path}: must be a Parquet file, got {said}; {remedy}") from None


def remove(folder: UPath) -> None:
    """Remove a folder and all that is in it; one that is not there is gone already."""
    if is_local(folder):
        shutil.rmtree(str(folder), ignore_errors=True)
    elif folder.exists():
        folder.fs.rm(folder.path, recursive=True)


def sha256(data: bytes | UPath) -> str:
    """The SHA-256 of bytes or of a file, in hexadecimal.

    Raises:
        IntegrityError: something else than a file is there.
    """
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    _check_regular(data)
    digest = hashlib.sha256()
    with data.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
