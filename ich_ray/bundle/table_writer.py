"""Rows written one after another into CSV, JSON or Parquet, by the suffix of the file.

In CSV, text that a spreadsheet would compute gets a single quote in front; JSON and Parquet are exact.

Knows flat dataclasses of text, numbers, None and tuples of numbers; holds a few hundred rows at a time, however many
there are. The file is there when all rows are in it, and not before.
"""

from __future__ import annotations

import csv
import io
import json
from contextlib import contextmanager
from dataclasses import fields
from typing import IO, TYPE_CHECKING, Any

from ich_ray.errors import ConfigError
from ich_ray.spreadsheet import inert
from ich_ray.storage import writing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pyarrow as pa
    from upath import UPath

__all__ = ["SUFFIXES", "as_table", "check_suffix", "from_table", "writing_rows"]

_NUMBERS = "tuple[float, ...]"
SUFFIXES = (".csv", ".json", ".parquet")


def check_suffix(path: UPath) -> None:
    """Refuse a file whose suffix names no format.

    Raises:
        ConfigError: it does not.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--out {path.name}: the suffix must be one of {', '.join(SUFFIXES)}, got {path.suffix!r}")


@contextmanager
def writing_rows(path: UPath, kind: type[Any]) -> Iterator[Callable[[Sequence[Any]], None]]:
    """A function that appends rows to a table of the columns of the dataclass `kind`; they may have more.

    Rows name patients' files, so only the owner may read it.

    Raises:
        ConfigError: the suffix names no format.
    """
    check_suffix(path)
    write = {".csv": _csv, ".json": _json, ".parquet": _parquet}[path.suffix]
    with writing(path, private=True) as file, write(file, kind) as append:
        yield append


@contextmanager
def _csv(file: IO[bytes], kind: type[Any]) -> Iterator[Callable[[Sequence[Any]], None]]:
    text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
    writer = csv.DictWriter(text, [field.name for field in fields(kind)])
    writer.writeheader()
    yield lambda rows: writer.writerows({name: inert(cell) for name, cell in _cells(row, kind)} for row in rows)
    text.detach()


@contextmanager
def _json(file: IO[bytes], kind: type[Any]) -> Iterator[Callable[[Sequence[Any]], None]]:
    """One array with a row a line."""
    separator = b"[\n"

    def append(rows: Sequence[Any]) -> None:
        nonlocal separator
        for row in rows:
            file.write(separator + json.dumps(dict(_cells(row, kind)), allow_nan=False).encode())
            separator = b",\n"

    yield append
    file.write(b"\n]\n" if separator == b",\n" else b"[]\n")


@contextmanager
def _parquet(file: IO[bytes], kind: type[Any]) -> Iterator[Callable[[Sequence[Any]], None]]:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(file, schema(kind)) as writer:
        yield lambda rows: writer.write_table(as_table(rows, kind))


def schema(kind: type[Any]) -> pa.Schema:
    """The Arrow schema of a dataclass: `int`, `float | None`, tuples of floats, and text for all else."""
    import pyarrow as pa

    numbers = {"int": pa.int64(), "float | None": pa.float64(), _NUMBERS: pa.list_(pa.float64())}
    return pa.schema([(field.name, numbers.get(str(field.type), pa.string())) for field in fields(kind)])


def as_table(rows: Sequence[Any], kind: type[Any]) -> pa.Table:
    """Rows of the dataclass `kind` as an Arrow table."""
    import pyarrow as pa

    return pa.Table.from_pylist([dict(_cells(row, kind)) for row in rows], schema(kind))


def from_table(table: pa.Table, kind: type[Any]) -> list[Any]:
    """The rows of `as_table`."""
    several = [field.name for field in fields(kind) if str(field.type) == _NUMBERS]
    return [kind(**(row | {name: tuple(row[name]) for name in several})) for row in table.to_pylist()]


def _cells(row: Any, kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """Each column of `kind` in a row, which may have more."""
    return ((field.name, getattr(row, field.name)) for field in fields(kind))
