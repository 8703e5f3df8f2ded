"""Label tables: a CSV file -> six labels a slice or examination, with every contradiction named.

Two layouts are read. Long (the RSNA competition): columns `ID,Label`, no label being mapped, one row per slice and
label, the ID being `<slice>_<label>`. Wide: a column `id` or `slice_id`, or one that names series, studies or patients,
any of the five subtypes, `any`, and if wanted `role`, by these names or as they are mapped; other columns are ignored.
A value is 0 or 1, no or yes, false or true. What cannot be read without guessing is an error; slices whose rows
contradict each other keep their place with a reason. Knows nothing of image files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ich_ray.data.prepare.label_columns import MappedColumns, map_columns
from ich_ray.data.prepare.label_csv import read_cells, read_layout, row_number
from ich_ray.data.prepare.readers import MISSING, majority, reader_agreement, withhold_disputed
from ich_ray.errors import ConfigError, LabelError
from ich_ray.storage import Location, locate
from ich_ray.vocabulary import LABELS, MATCH_RULES, ROLES, SUBTYPES, Level, MatchRule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from upath import UPath

    from ich_ray.data.dataset import ReaderAgreement

__all__ = ["LabelTable", "read_labels"]

_ANY = LABELS.index("any")
_WANTED = {"id", "slice_id", "label", "role", *LABELS}
_ALIKE = 0.85  # `roles` and `subdual` are, `rule` and `subdural_left` are not
# Whole numbers with a fraction are what pandas writes beside a gap.
_VALUES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "no": 0, "yes": 1, "false": 0, "true": 1}


@dataclass(frozen=True)
class LabelTable:
    """Labels by slice, or by what `level` says.

    Attributes:
        slice_ids: strings `[n]`, each once, in the order of the file: of slices, or of what `level` says.
        values: int8 `[n, 6]` in the order of `LABELS`; -1 where a subtype is not known, never for `any` of a good row.
        reasons: why a slice cannot be used, `[n]`: empty, `label_conflict` (two rows disagree), `label_inconsistent`
            (`any` is not the OR of the subtypes) or `label_incomplete` (`any` is not known).
        roles: the `role` column `[n]`, None without one.
        collapsed: rows that repeated another one.
        rule: how the ids name slices, see label_match.py; of studies `path` where they are folders.
        level: what a row is about.
        agreement: of the readers, where a label has several.
        by_accession: whether studies go by accession numbers, until `accession_numbers.by_study` has found them.
        unfound: the accession numbers among the ids that no file has. They are counted, and never written.
    """

    slice_ids: pa.StringArray
    values: NDArray[np.int8]
    reasons: NDArray[np.object_]
    roles: NDArray[np.object_] | None
    collapsed: int
    rule: MatchRule = "uid"
    level: Level = "slice"
    agreement: tuple[ReaderAgreement, ...] = ()
    by_accession: bool = False
    unfound: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.slice_ids)

    def find(self, slice_ids: pa.Array) -> NDArray[np.int64]:
        """The row of each slice, -1 where the table has none."""
        found = pc.fill_null(pc.index_in(slice_ids, value_set=self.slice_ids), -1)
        return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)

    def said(self) -> str:
        """What its rows are about, if not slices by their UIDs."""
        if self.level == "slice":
            return "" if self.rule == "uid" else f"a row a slice, by its {MATCH_RULES[self.rule]}"
        by_folder = ", by its folder" if self.rule == "path" else ""
        return f"a row a {self.level}{', by its accession number' if self.by_accession else by_folder}"

    def mismatch_error(self, slice_id: str, file: str) -> ConfigError:
        """What to raise when no file is in the table; `file` is one of them, `slice_id` that of one."""
        return ConfigError(
            "labels: ids of the table must be SOPInstanceUIDs, paths or names of the files, got none in common: the "
            f"table has {self.slice_ids[0].as_py()!r}, the files {slice_id!r} and names such as {file!r}; give the "
            "table of these files"
        )


def read_labels(
    where: Location, columns: Mapping[str, str | Sequence[str]] | None = None, level: Level | None = None
) -> LabelTable:
    """Read a label table, 4.5 million rows in a few seconds.

    Args:
        where: the CSV file.
        columns: by `id`, `role` and label its column, or the columns of several readers, see label_columns.py.
        level: what a row is about, told from the columns if not given.

    Raises:
        ConfigError: `columns` cannot be understood.
        LabelError: the file is missing, has no layout that is known, or holds a value that is not 0 or 1.
    """
    path = locate(where)
    if not path.is_file():
        raise LabelError(f"{path}: a label table must be there, got no file; check --labels")
    layout = read_layout(path)
    mapped = map_columns(path, layout.columns, columns or {}, level)
    _check_columns(path, mapped)
    used = _used(mapped)
    # Columns that nobody reads may have one name, or none, but not for the reader of the file.
    names = [name if name in used else f"\0{number}" for number, name in enumerate(mapped.names)]
    table = read_cells(path, replace(layout, columns=names), used)
    if len(table) == 0:
        raise LabelError(f"{path}: a label table must have rows, got only a header")
    rule: MatchRule = "path" if mapped.by_folder else "uid"
    if _is_long(mapped):
        found = _collapse(_long(path, table), None)
        return replace(found, level=mapped.level, rule=rule, by_accession=mapped.by_accession)
    cells, agreement = _wide(path, table, mapped)
    found = _collapse(cells, _roles(path, table))
    return replace(found, agreement=agreement, level=mapped.level, rule=rule, by_accession=mapped.by_accession)


@dataclass(frozen=True)
class _Cells:
    """Every value of a table on its own: `value` of label number `label` for `ids[code]`."""

    ids: pa.StringArray
    code: NDArray[np.int64]
    label: NDArray[np.int64]
    value: NDArray[np.int64]


def _is_long(mapped: MappedColumns) -> bool:
    """Whether it is the layout of the competition; a column `label` that was mapped is one of answers."""
    return {"id", "label"} == {*mapped.names} - {""} and not mapped.mapped


def _used(mapped: MappedColumns) -> set[str]:
    """Columns that are read."""
    if _is_long(mapped):
        return {"id", "label"}
    return {"id", "role", *(one.column for readings in mapped.readings.values() for one in readings)}


def _check_columns(path: UPath, mapped: MappedColumns) -> None:
    """A header that is known; other columns are ignored, but not one that was meant to be a role or a subtype."""
    names, used = mapped.names, _used(mapped)
    known = _is_long(mapped) or ("id" in names and mapped.readings)
    if not known or any(names.count(name) > 1 for name in used):
        got = ", ".join(name.removeprefix("\0") for name in names)[:200]
        raise LabelError(
            f"{path}: the columns must be `ID,Label`, or `id` (or `slice_id`, or StudyInstanceUID) with "
            f"{', '.join(LABELS)}, each once; got {got or 'none'}; name yours with --column, such as any=hemorrhage, "
            "id=file or study=case"
        )
    missing = {*SUBTYPES, "role"} - set(names) - mapped.mapped
    for name in names:
        if name not in _WANTED | used and (meant := get_close_matches(name, missing, n=1, cutoff=_ALIKE)):
            raise LabelError(f"{path}: a column must not be almost {meant[0]}, got {name!r}; rename it")


def _numbers(path: UPath, name: str, table: pa.Table, may_be_empty: bool) -> NDArray[np.int64]:
    """0, 1 or MISSING per row."""
    encoded = table[name.lower()].combine_chunks().dictionary_encode()
    texts = [text.strip() for text in encoded.dictionary.to_pylist()]
    known = _VALUES | {"": MISSING} if may_be_empty else _VALUES
    codes = np.asarray(encoded.indices)
    bad = np.array([text.lower() not in known for text in texts])
    if bad.any():
        text = texts[codes[np.argmax(bad[codes])]]
        row = row_number(table, bad[codes])
        raise LabelError(f"{path}: row {row}: {name} must be 0 or 1, got {text[:20]!r}; correct the table")
    return np.asarray(np.array([known[text.lower()] for text in texts])[codes], np.int64)


def _ids(path: UPath, table: pa.Table) -> pa.Array:
    ids = pc.utf8_trim_whitespace(table["id"]).combine_chunks()
    empty = np.asarray(pc.equal(ids, ""))
    if empty.any():
        raise LabelError(f"{path}: row {row_number(table, empty)}: a slice must be named, got an empty id")
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
            f"{path}: row {row_number(table, unknown)}: an ID must end in one of _{', _'.join(LABELS)}, "
            f"got {names[int(np.argmax(unknown))].as_py()[-40:]!r}"
        )
    encoded = pa.concat_arrays(ids).dictionary_encode()
    return _Cells(encoded.dictionary, np.asarray(encoded.indices, np.int64), np.concatenate(labels),
                  np.concatenate(values))  # fmt: skip


def _wide(path: UPath, table: pa.Table, mapped: MappedColumns) -> tuple[_Cells, tuple[ReaderAgreement, ...]]:
    encoded = _ids(path, table).dictionary_encode()
    code = np.asarray(encoded.indices, np.int64)
    votes, answers = {}, {}
    for name, readings in mapped.readings.items():
        optional = name != "any" or name in mapped.mapped
        said = [_numbers(path, one.column, table, may_be_empty=optional) for one in readings]
        said = [np.where(each == MISSING, each, each ^ one.negated) for each, one in zip(said, readings, strict=True)]
        answers[name] = said[0].astype(np.int8)
        if len(said) > 1:
            votes[name] = np.stack(said, axis=1).astype(np.int8)
            answers[name] = _majority(path, name, votes[name])
    disputed = withhold_disputed(answers, votes)
    agreement = tuple(reader_agreement(name, votes[name], disputed.get(name, 0)) for name in LABELS if name in votes)
    known = {LABELS.index(name): each != MISSING for name, each in answers.items()}
    cells = _Cells(
        encoded.dictionary,
        np.concatenate([code[here] for here in known.values()]),
        np.concatenate([np.full(int(here.sum()), label) for label, here in known.items()]),
        np.concatenate([answers[LABELS[label]][here].astype(np.int64) for label, here in known.items()]),
    )
    return cells, agreement


def _majority(path: UPath, name: str, votes: NDArray[np.int8]) -> NDArray[np.int8]:
    found, several = majority(votes), (votes != MISSING).sum(axis=1) > 1
    if several.any() and (found == MISSING).all():
        raise LabelError(
            f"{path}: {name}: readers must agree on some row, got a tie in each of {int(several.sum())}; name other "
            "columns, or one reader"
        )
    return found


def _roles(path: UPath, table: pa.Table) -> NDArray[np.object_] | None:
    """The role of each distinct slice."""
    if "role" not in table.column_names:
        return None
    roles = np.array([text.strip().lower() for text in table["role"].to_pylist()], object)
    unknown = ~np.isin(roles.astype(str), ROLES)
    if unknown.any():
        row, got = row_number(table, unknown), roles[np.argmax(unknown)][:20]
        raise LabelError(f"{path}: row {row}: role must be one of {', '.join(ROLES)}, got {got!r}")
    encoded = _ids(path, table).dictionary_encode()
    code = np.asarray(encoded.indices, np.int64)
    found = np.empty(len(encoded.dictionary), object)
    found[code[::-1]] = roles[::-1]  # the first of several
    differs = found[code] != roles
    if differs.any():
        raise LabelError(f"{path}: row {row_number(table, differs)}: a slice has one role, got two")
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
