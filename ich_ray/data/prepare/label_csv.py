"""Label tables as CSV files: their columns, and their cells as text with the number of each row.

`,` `;` and tab separate; a byte order mark, CRLF, blank lines and .gz are fine. Knows nothing of labels.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from ich_ray.errors import LabelError
from ich_ray.storage import is_local

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from upath import UPath

__all__ = ["Layout", "read_cells", "read_layout", "row_number"]

_HEADER_BYTES = 1 << 16
_NUMBER = "#"


@dataclass(frozen=True)
class Layout:
    """Column names in lower case, what separates them, and how many lines end with the header."""

    columns: list[str]
    delimiter: str
    lines: int


def _open(path: UPath) -> pa.NativeFile:
    # Arrow opens what it can itself: with Python's file 5 of 20 processes aborted, see `storage.read_table`.
    source = pa.OSFile(str(path)) if is_local(path) else pa.PythonFile(path.open("rb"), mode="r")
    return pa.CompressedInputStream(source, "gzip") if path.suffix == ".gz" else source


def read_layout(path: UPath) -> Layout:
    """Read the header.

    Raises:
        LabelError: the file is no CSV file that can be read.
    """
    lines = _head(path).decode("utf-8-sig", "replace").splitlines()
    number, line = next(((number, line) for number, line in enumerate(lines, 1) if line.strip()), (1, ""))
    if any(character < " " for character in line.replace("\t", "")):
        raise LabelError(f"{path}: must be a CSV file in UTF-8, or one as .gz, got other bytes; export it so")
    delimiter = max(",;\t", key=line.count)
    columns = [name.strip().lower() for name in next(csv.reader([line], delimiter=delimiter), [])]
    return Layout(columns, delimiter, number)


def _head(path: UPath) -> bytes:
    try:
        with _open(path) as source:
            return bytes(source.read(_HEADER_BYTES))
    except OSError as error:
        said = os.strerror(error.errno).lower() if error.errno else str(error).splitlines()[0][:80]
        raise LabelError(f"{path}: must be a CSV file that can be read, got {said}; correct --labels") from None


def read_cells(path: UPath, layout: Layout, wanted: Iterable[str]) -> pa.Table:
    """All wanted columns as strings, and the number of each row, without rows that say nothing.

    One thread, because only so does Arrow know the number of a bad row.

    Raises:
        LabelError: a row has too many columns or too few, or the file is no CSV file.
    """
    bad: list[pacsv.InvalidRow] = []

    def refuse(row: pacsv.InvalidRow) -> str:
        bad.append(row)
        return "error"

    names = [name for name in layout.columns if name in {*wanted}]
    try:
        with _open(path) as source:
            table = pacsv.read_csv(
                source,
                pacsv.ReadOptions(
                    column_names=layout.columns, skip_rows=layout.lines, use_threads=False, block_size=1 << 24
                ),
                pacsv.ParseOptions(delimiter=layout.delimiter, invalid_row_handler=refuse, ignore_empty_lines=False),
                pacsv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()), include_columns=names, strings_can_be_null=False
                ),
            )
    except (pa.ArrowInvalid, OSError) as error:
        if bad:
            raise LabelError(
                f"{path}: row {bad[0].number}: {bad[0].expected_columns} columns must be there, got "
                f"{bad[0].actual_columns}"
            ) from None
        raise LabelError(f"{path}: must be a CSV file in UTF-8, got {str(error).splitlines()[0][:80]}") from None

    says = [pc.not_equal(column, "") for column in table.columns]
    numbers = pa.array(np.arange(len(table)) + layout.lines + 1)
    return table.append_column(_NUMBER, numbers).filter(reduce(pc.or_, says))


def row_number(table: pa.Table, where: NDArray[Any]) -> int:
    """The first row of the file at which `where` holds, as a spreadsheet counts."""
    return int(table[_NUMBER][int(np.argmax(where))].as_py())
