"""Label tables: a CSV file -> one row of six labels per slice, with every contradiction named.

Two layouts are read. Long (the RSNA competition): columns `ID,Label`, one row per slice and label, the ID being
`<slice>_<label>`. Wide: a column `id` or `slice_id`, any of the five subtypes, `any`, and if wanted `role`; other
columns are ignored. `,` `;` and tab separate; a byte order mark, CRLF, spaces around values and .gz are fine.
A value is 0 or 1. What cannot be read without guessing is an error; slices whose rows contradict each other keep their
place with a reason. Knows nothing of image files.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from difflib import get_close_matches
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from ich_ray.errors import ConfigError, LabelError
from ich_ray.storage import Location, is_local, locate
from ich_ray.vocabulary import LABELS, ROLES, SUBTYPES, MatchRule

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from upath import UPath

__all__ = ["LabelTable", "read_labels"]

MISSING = -1
_ANY = LABELS.index("any")
_HEADER_BYTES = 1 << 16
_NUMBER = "#"
_WANTED = {"id", "slice_id", "label", "role", *LABELS}
_ALIKE = 0.85  # `roles` and `subdual` are, `rule` and `subdural_left` are not
_VALUES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}  # whole numbers with a fraction are what pandas writes beside a gap


@dataclass(frozen=True)
class LabelTable:
    """Labels by slice.

    Attributes:
        slice_ids: strings `[n]`, each once, in the order of the file.
        values: int8 `[n, 6]` in the order of `LABELS`; -1 where a subtype is not known, never for `any` of a good row.
        reasons: why a slice cannot be used, `[n]`: empty, `label_conflict` (two rows disagree), `label_inconsistent`
            (`any` is not the OR of the subtypes) or `label_incomplete` (`any` is not known).
        roles: the `role` column `[n]`, None without one.
        collapsed: rows that repeated another one.
        rule: how the ids name slices, see label_match.py.
    """

    slice_ids: pa.StringArray
    values: NDArray[np.int8]
    reasons: NDArray[np.object_]
    roles: NDArray[np.object_] | None
    collapsed: int
    rule: MatchRule = "uid"

    def __len__(self) -> int:
        return len(self.slice_ids)

    def find(self, slice_ids: pa.Array) -> NDArray[np.int64]:
        """The row of each slice, -1 where the table has none."""
        found = pc.fill_null(pc.index_in(slice_ids, value_set=self.slice_ids), -1)
        return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)

    def mismatch_error(self, slice_id: str, file: str) -> ConfigError:
        """What to raise when no file is in the table; `file` is one of them, `slice_id` that of one."""
        return ConfigError(
            "labels: ids of the table must be SOPInstanceUIDs, paths or names of the files, got none in common: the "
            f"table has {self.slice_ids[0].as_py()!r}, the files {slice_id!r} and names such as {file!r}; give the "
            "table of these files"
        )


def read_labels(where: Location) -> LabelTable:
    """Read a label table, 4.5 million rows in a few seconds.

    Raises:
        LabelError: the file is missing, has no layout that is known, or holds a value that is not 0 or 1.
    """
    path = locate(where)
    if not path.is_file():
        raise LabelError(f"{path}: a label table must be there, got no file; check --labels")
    layout = _layout(path)
    table = _read(path, layout)
    if len(table) == 0:
        raise LabelError(f"{path}: a label table must have rows, got only a header")
    if {"id", "label"} == set(layout.columns):
        return _collapse(_long(path, table), None)
    return _collapse(_wide(path, table), _roles(path, table))


@dataclass(frozen=True)
class _Cells:
    """Every value of a table on its own: `value` of label number `label` for `ids[code]`."""

    ids: pa.StringArray
    code: NDArray[np.int64]
    label: NDArray[np.int64]
    value: NDArray[np.int64]


def _open(path: UPath) -> pa.NativeFile:
    # Arrow opens what it can itself: with Python's file 5 of 20 processes aborted, see `storage.read_table`.
    source = pa.OSFile(str(path)) if is_local(path) else pa.PythonFile(path.open("rb"), mode="r")
    return pa.CompressedInputStream(source, "gzip") if path.suffix == ".gz" else source


@dataclass(frozen=True)
class _Layout:
    """Column names in lower case, what separates them, and how many lines end with the header."""

    columns: list[str]
    delimiter: str
    lines: int


def _layout(path: UPath) -> _Layout:
    lines = _head(path).decode("utf-8-sig", "replace").splitlines()
    number, line = next(((number, line) for number, line in enumerate(lines, 1) if line.strip()), (1, ""))
    if any(character < " " for character in line.replace("\t", "")):
        raise LabelError(f"{path}: must be a CSV file in UTF-8, or one as .gz, got other bytes; export it so")
    delimiter = max(",;\t", key=line.count)
    columns = [name.strip().lower() for name in next(csv.reader([line], delimiter=delimiter), [])]
    known = {"id", "label"} == set(columns) or ({"id", "slice_id"} & set(columns) and {*LABELS} & set(columns))
    if not known or len(set(columns)) < len(columns):
        raise LabelError(
            f"{path}: the columns must be `ID,Label`, or `id` (or `slice_id`) with {', '.join(LABELS)}, each once; got "
            f"{', '.join(columns)[:200] or 'none'}"
        )
    _check_spelling(path, columns)
    return _Layout(columns, delimiter, number)


def _head(path: UPath) -> bytes:
    try:
        with _open(path) as source:
            return bytes(source.read(_HEADER_BYTES))
    except OSError as error:
        said = os.strerror(error.errno).lower() if error.errno else str(error).splitlines()[0][:80]
        raise LabelError(f"{path}: must be a CSV file that can be read, got {said}; correct --labels") from None


def _check_spelling(path: UPath, columns: list[str]) -> None:
    """Other columns are ignored, but not one that was meant to be a role or a subtype."""
    missing = {*SUBTYPES, "role"} - set(columns)
    for name in columns:
        if name not in _WANTED and (meant := get_close_matches(name, missing, n=1, cutoff=_ALIKE)):
            raise LabelError(f"{path}: a column must not be almost {meant[0]}, got {name!r}; rename it")


def _read(path: UPath, layout: _Layout) -> pa.Table:
    """All wanted columns as strings, and the number of each row, without rows that say nothing.

    One thread, because only so does Arrow know the number of a bad row.
    """
    bad: list[pacsv.InvalidRow] = []

    def refuse(row: pacsv.InvalidRow) -> str:
        bad.append(row)
        return "error"

    wanted = [name for name in layout.columns if name in _WANTED]
    try:
        with _open(path) as source:
            table = pacsv.read_csv(
                source,
                pacsv.ReadOptions(
                    column_names=layout.columns, skip_rows=layout.lines, use_threads=False, block_size=1 << 24
                ),
                pacsv.ParseOptions(delimiter=layout.delimiter, invalid_row_handler=refuse, ignore_empty_lines=False),
                pacsv.ConvertOptions(
                    column_types=dict.fromkeys(wanted, pa.string()), include_columns=wanted, strings_can_be_null=False
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


def _row(table: pa.Table, where: NDArray[Any]) -> int:
    """The first row of the file at which `where` holds, as a spreadsheet counts."""
    return int(table[_NUMBER][int(np.argmax(where))].as_py())


def _numbers(path: UPath, name: str, table: pa.Table, may_be_empty: bool) -> NDArray[np.int64]:
    """0, 1 or MISSING per row."""
    encoded = table[name.lower()].combine_chunks().dictionary_encode()
    texts = [text.strip() for text in encoded.dictionary.to_pylist()]
    known = _VALUES | {"": MISSING} if may_be_empty else _VALUES
    codes = np.asarray(encoded.indices)
    bad = np.array([text not in known for text in texts])
    if bad.any():
        text = texts[codes[np.argmax(bad[codes])]]
        row = _row(table, bad[codes])
        raise LabelError(f"{path}: row {row}: {name} must be 0 or 1, got {text[:20]!r}; correct the table")
    return np.asarray(np.array([known[text] for text in texts])[codes], np.int64)


def _ids(path: UPath, table: pa.Table) -> pa.Array:
    ids = pc.utf8_trim_whitespace(table["id" if "id" in table.column_names else "slice_id"]).combine_chunks()
    empty = np.asarray(pc.equal(ids, ""))
    if empty.any():
        raise LabelError(f"{path}: row {_row(table, empty)}: a slice must be named, got an empty id")
    return ids


def _long(path: UPath, table: pa.Table) -> _Cells:
    """Cells of the long table; the label is what follows the last `_` of the ID."""
    names, numbers = _ids(path, table), _numbers(path, "Label", table, may_be_empty=False)
    ids, labels, values = [], [], []
    unknown = np.ones(len(names), bool)
    for label, name in enumerate(LABELS):
        here = np.asarray(pc.ends_with(names, f"_{name}"))
        unknown &= ~here
        ids.append(pc.utf8_slice_codeunits(names.filter(here), 0, -len(name) - 1))
        labels.append(np.full(int(here.sum()), label))
        values.append(numbers[here])
    if unknown.any():
        raise LabelError(
            f"{path}: row {_row(table, unknown)}: an ID must end in one of _{', _'.join(LABELS)}, "
            f"got {names[int(np.argmax(unknown))].as_py()[-40:]!r}"
        )
    encoded = pa.concat_arrays(ids).dictionary_encode()
    return _Cells(encoded.dictionary, np.asarray(encoded.indices, np.int64), np.concatenate(labels),
                  np.concatenate(values))  # fmt: skip


def _wide(path: UPath, table: pa.Table) -> _Cells:
    encoded = _ids(path, table).dictionary_encode()
    code, labels, values, codes = np.asarray(encoded.indices, np.int64), [], [], []
    for label, name in enumerate(LABELS):
        if name not in table.column_names:
            continue
        numbers = _numbers(path, name, table, may_be_empty=name != "any")
        known = numbers != MISSING
        codes.append(code[known])
        labels.append(np.full(int(known.sum()), label))
        values.append(numbers[known])
    return _Cells(encoded.dictionary, np.concatenate(codes), np.concatenate(labels), np.concatenate(values))


def _roles(path: UPath, table: pa.Table) -> NDArray[np.object_] | None:
    """The role of each distinct slice."""
    if "role" not in table.column_names:
        return None
    roles = np.array([text.strip().lower() for text in table["role"].to_pylist()], object)
    unknown = ~np.isin(roles.astype(str), ROLES)
    if unknown.any():
        row, got = _row(table, unknown), roles[np.argmax(unknown)][:20]
        raise LabelError(f"{path}: row {row}: role must be one of {', '.join(ROLES)}, got {got!r}")
    encoded = _ids(path, table).dictionary_encode()
    code = np.asarray(encoded.indices, np.int64)
    found = np.empty(len(encoded.dictionary), object)
    found[code[::-1]] = roles[::-1]  # the first of several
    differs = found[code] != roles
    if differs.any():
        raise LabelError(f"{path}: row {_row(table, differs)}: a slice has one role, got two")
    return found


def _collapse(cells: _Cells, roles: NDArray[np.object_] | None) -> LabelTable:
    """One row per slice: repeated cells that agree become one, the others a reason."""
    count = len(cells.ids)
    key = cells.code * len(LABELS) + cells.label
    rows = np.bincount(key, minlength=count * len(LABELS)).reshape(count, -1)
    ones = np.bincount(key, cells.value, count * len(LABELS)).reshape(count, -1)
    conflict = (ones > 0) & (ones < rows)
    values = np.where(rows == 0, MISSING, ones > 0).astype(np.int8)
    subtypes = values[:, :_ANY]
    positive, complete = (subtypes == 1).any(axis=1), (subtypes != MISSING).all(axis=1)
    derived = np.where(positive, 1, np.where(complete, 0, MISSING))
    given = values[:, _ANY]
    inconsistent = (given != MISSING) & (derived != MISSING) & (given != derived)
    values[:, _ANY] = np.where(given == MISSING, derived, given)
    reasons = np.full(count, "", object)
    reasons[values[:, _ANY] == MISSING] = "label_incomplete"
    reasons[inconsistent] = "label_inconsistent"
    reasons[conflict.any(axis=1)] = "label_conflict"
    collapsed = int((rows - 1).clip(0)[~conflict].sum())
    return LabelTable(cells.ids, values, reasons, roles, collapsed)
