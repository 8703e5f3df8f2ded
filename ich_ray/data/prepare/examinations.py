"""Labels of series, studies and patients: whose they are, and where they contradict those of slices.

They are kept apart, and never become labels of slices: that a study shows blood says of none of its slices that it
does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ich_ray.data.prepare.label_table import LabelTable, read_labels
from ich_ray.data.prepare.readers import MISSING
from ich_ray.errors import ConfigError
from ich_ray.statistics.aggregation import partners
from ich_ray.vocabulary import LABELS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from ich_ray.data.prepare.pseudonyms import Kind, Pseudonyms
    from ich_ray.storage import Location
    from ich_ray.vocabulary import Level

__all__ = [
    "Examinations",
    "check_by_slice",
    "find_examinations",
    "find_folders",
    "gather_examinations",
    "read_tables",
    "settle_examinations",
]

_ANY = LABELS.index("any")
_CONTRADICTIONS = {
    "slice_positive": "negative with a positive slice",
    "slices_negative": "positive though all of its slices are negative",
}
_NAMED = 3
_OF_EXAMINATIONS = "examinations."


def read_tables(
    labels: Location, examinations: Location | None, columns: Mapping[str, str | Sequence[str]], level: Level | None
) -> tuple[LabelTable, LabelTable | None]:
    """The label table, and that of examinations beside it if there is one.

    Columns of the second are mapped with `examinations.` in front.

    Raises:
        ConfigError: what is asked does not fit together, or see `read_labels`.
    """
    own = {name: column for name, column in columns.items() if not str(name).startswith(_OF_EXAMINATIONS)}
    others = {name.removeprefix(_OF_EXAMINATIONS): columns[name] for name in columns.keys() - own.keys()}
    if examinations is None:
        if others:
            raise ConfigError(f"--column {_OF_EXAMINATIONS}...: needs --examinations, got none; name that table")
        return read_labels(labels, own, level), None
    examined = read_labels(examinations, others, level)
    if examined.level == "slice":
        raise ConfigError(
            "--examinations: must be a table of series, studies or patients, got one of slices; name the column of "
            "their ids, such as --column examinations.study=Study, or say `prepare --level study`"
        )
    if examined.roles is not None:
        raise ConfigError("--examinations: roles must be those of slices, got a column role; remove it")
    return read_labels(labels, own, "slice"), examined


def check_by_slice(labels: LabelTable, examined: LabelTable | None) -> None:
    """Refuse roles by slice where there are examinations.

    Raises:
        ConfigError: there are.
    """
    if labels.level != "slice" or examined is not None:
        raise ConfigError("--split slice: an examination must have one role, got labels of examinations; leave it out")


def settle_examinations(
    rows: pa.Table, reasons: NDArray[np.object_], labels: LabelTable, pseudonyms: Pseudonyms
) -> NDArray[np.int64]:
    """Join slices with the only table there is: the label row of each, -1 without one.

    Gives `reasons` to those that cannot be used.

    Raises:
        ConfigError: none is in the table, or see `find_examinations`.
    """
    places = find_examinations(labels, rows, pseudonyms)
    good = reasons == ""
    known = np.flatnonzero(good & (places >= 0))
    if good.any() and not len(known):
        raise ConfigError(
            f"labels: ids of the table must be those of a {labels.level} of the files, got none in common; give the "
            "table of these files, or the --level that it has"
        )
    reasons[good & (places < 0)] = "label_missing"
    reasons[known] = labels.reasons[places[known]]
    torn = partners(places[known], _patients(rows, known)) > 1
    reasons[known[torn]] = "patient_conflict"
    return places


def find_examinations(labels: LabelTable, rows: pa.Table, pseudonyms: Pseudonyms) -> NDArray[np.int64]:
    """The row of the table that each slice belongs to, -1 without one.

    Raises:
        ConfigError: a folder of the table holds two studies, a study has two folders, or one of a name is not alone.
    """
    if labels.rule == "path":
        places = find_folders(labels, rows["file"].to_pylist())
        studies = rows["study"].to_numpy(zero_copy_only=False).astype(object)
        known = np.array([bool(study) for study in studies], bool) & (places >= 0)
        _check_folders(labels, places[known], studies[known].astype(str))
        return np.where(known, places, -1)
    ids = pseudonyms.names(cast("Kind", labels.level), labels.slice_ids.to_pylist())
    found = pc.index_in(rows[labels.level].combine_chunks(), value_set=pa.array(ids, pa.string()))
    return np.asarray(pc.fill_null(found, -1), np.int64)


def find_folders(labels: LabelTable, files: Sequence[str]) -> NDArray[np.int64]:
    """The row of the table whose folder each file lies in, by its path, else by its name.

    Raises:
        ConfigError: two folders have a name that the table has.
    """
    row_of = {name.replace("\\", "/").removeprefix("./").strip("/"): row
              for row, name in enumerate(labels.slice_ids.to_pylist())}  # fmt: skip
    folders = {parent for folder in {str(PurePosixPath(file).parent) for file in files}
               for parent in (folder, *map(str, PurePosixPath(folder).parents))}  # fmt: skip
    folders.discard(".")
    named = {folder: row_of[folder] for folder in folders if folder in row_of}
    if not named:
        named = {folder: row_of[name] for folder in folders if (name := PurePosixPath(folder).name) in row_of}
        for row in (rows := sorted(named.values())):
            if rows.count(row) > 1:
                first, second = sorted(folder for folder in named if named[folder] == row)[:2]
                raise ConfigError(
                    f"labels: a folder must be the only one of its name, got {first} and {second}; give their paths"
                )
    inner = {folder: next((named[parent] for parent in (folder, *map(str, PurePosixPath(folder).parents))
                           if parent in named), -1) for folder in folders}  # fmt: skip
    return np.array([inner.get(str(PurePosixPath(file).parent), -1) for file in files], np.int64)


def _check_folders(labels: LabelTable, places: NDArray[np.int64], studies: NDArray[np.str_]) -> None:
    """A label of a folder is one of a study only if they are the same."""
    pairs = sorted({*zip(places.tolist(), studies.tolist(), strict=True)})
    for part, rule in ((0, "hold one study, got two in"), (1, "hold a whole study, got one that is also elsewhere in")):
        seen: set[object] = set()
        for pair in pairs:
            if pair[part] in seen:
                name = labels.slice_ids[pair[0]].as_py()
                raise ConfigError(f"labels: a folder of the table must {rule} {name}; name series or studies instead")
            seen.add(pair[part])


@dataclass(frozen=True)
class Examinations:
    """What is known of examinations of accepted slices.

    Attributes:
        level: what they are.
        table: a row for each with slices and a label. `examination` is the pseudonym that slices.parquet has as
            `series`, `study` or `patient`; then `patient`, `role`, how many accepted `slices`, the labels, and
            `contradiction`: `slice_positive` where it is negative and a slice of it positive, `slices_negative` where
            it is positive and all of its slices are negative.
        of_slices: int8 `[slices, 6]`: the labels of the examination of each slice, -1 where one is not known.
        unmatched: how many of the table have no accepted slice.
        torn: how many have slices of several patients, and are of none.
    """

    level: Level
    table: pa.Table
    of_slices: NDArray[np.int8]
    unmatched: int
    torn: int = 0

    @property
    def positives(self) -> int:
        return int(pc.sum(pc.equal(self.table["any"], 1)).as_py() or 0)

    @property
    def contradictions(self) -> dict[str, int]:
        """How many there are of each kind."""
        found = Counter(self.table["contradiction"].to_pylist())
        return {kind: found[kind] for kind in _CONTRADICTIONS if found[kind]}

    def notes(self, of_slices: bool) -> list[str]:
        """What there is to say; `of_slices` if slices have labels of their own."""
        count = len(self.table)
        said = [f"{count} labels are of a {self.level}, {self.positives} with haemorrhage"]
        if self.unmatched and of_slices:
            said.append(f"{self.unmatched} labels of a {self.level} have no accepted slice, or contradict themselves")
        if self.torn:
            said.append(f"{self.torn} labels of a {self.level} are left out: its slices are of several patients")
        for kind, number in self.contradictions.items():
            named = self.table.filter(pc.equal(self.table["contradiction"], kind))["examination"].to_pylist()
            more = ", ..." if len(named) > _NAMED else ""
            said.append(f"{number} contradict their slices, {_CONTRADICTIONS[kind]}: {', '.join(named[:_NAMED])}{more}")
        return said


def gather_examinations(
    labels: LabelTable,
    accepted: pa.Table,
    places: NDArray[np.int64],
    roles: NDArray[np.object_],
    any_of_slices: NDArray[np.int8],
) -> Examinations:
    """Labels of examinations beside what is known of their slices.

    Args:
        labels: of examinations.
        accepted: slices.
        places: the row of `labels` of each slice, -1 without one.
        roles: of each slice.
        any_of_slices: `any` of each slice, -1 where it is not known.
    """
    usable = np.flatnonzero((places >= 0) & (labels.reasons[places] == ""))
    usable, torn = _of_one_patient(usable, places, _patients(accepted, usable))
    found, first, which, counts = np.unique(places[usable], return_index=True, return_inverse=True, return_counts=True)
    positive = np.bincount(which, any_of_slices[usable] == 1, len(found)) > 0
    negative = np.bincount(which, any_of_slices[usable] != 0, len(found)) == 0
    values = labels.values[found]
    says = np.full(len(found), "", object)
    says[(values[:, _ANY] == 0) & positive] = "slice_positive"
    says[(values[:, _ANY] == 1) & negative] = "slices_negative"
    here = pa.array(usable[first])
    table = pa.table(
        {
            "examination": accepted[labels.level].take(here),
            "patient": accepted["patient"].take(here),
            "role": pa.array(roles[usable[first]], pa.string()),
            "slices": pa.array(counts, pa.int32()),
            **{
                name: pa.array(values[:, label], pa.int8(), mask=values[:, label] == MISSING)
                for label, name in enumerate(LABELS)
            },
            "contradiction": pa.array(says, pa.string()),
        }
    )
    of_slices = np.full((len(accepted), len(LABELS)), MISSING, np.int8)
    of_slices[usable] = labels.values[places[usable]]
    return Examinations(labels.level, table, of_slices, len(labels) - len(found) - torn, torn)


def _patients(rows: pa.Table, some: NDArray[np.int64]) -> NDArray[np.str_]:
    return np.asarray(rows["patient"].take(pa.array(some)).to_numpy(zero_copy_only=False), np.str_)


def _of_one_patient(
    rows: NDArray[np.int64], places: NDArray[np.int64], patients: NDArray[np.str_]
) -> tuple[NDArray[np.int64], int]:
    """Those rows whose examination is of one patient alone, and how many examinations are of several."""
    torn = partners(places[rows], patients) > 1
    return rows[~torn], len(np.unique(places[rows[torn]]))
