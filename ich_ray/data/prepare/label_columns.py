"""Which columns of a label table say what: a column, one that says the opposite, or several readers.

`any: hemorrhage`, `any: not No_Hemorrhage`, `any: [R1:ICH, R2:ICH]`: the left side is `id`, `role`, a label or what
else a row may be about; names on the right are those of the header, in any case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ich_ray.errors import ConfigError, LabelError, first_line, nearest
from ich_ray.storage import Location, locate
from ich_ray.storage.strict_yaml import parse_yaml
from ich_ray.vocabulary import LABELS, Level

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from upath import UPath

__all__ = ["ColumnMap", "MappedColumns", "Reading", "map_columns", "read_columns"]

# What is asked, as it is written: a column, or the columns of several readers.
ColumnMap = dict[str, "str | list[str]"]
# What a row may be about beside a slice, the finest first, and the columns that say so. Folders and accession numbers
# are of studies.
_EXAMINATIONS = {
    "series": "seriesinstanceuid",
    "study": "studyinstanceuid",
    "folder": "folder",
    "accession": "accessionnumber",
    "patient": "patientid",
}
_OF_STUDIES = ("folder", "accession")
_SLICES = ("id", "slice_id", "sopinstanceuid")
_TEXTS = ("id", "role", *_EXAMINATIONS)
_NOT = "not "


@dataclass(frozen=True)
class Reading:
    """A column with answers, 1 for yes; `negated` where 1 means no."""

    column: str
    negated: bool = False


@dataclass(frozen=True)
class MappedColumns:
    """A header in our words.

    Attributes:
        names: the columns in their order, `id` being the one that says what a row is about.
        readings: the columns of each label, more than one where several readers answered.
        mapped: the labels that were asked for, and not recognized by the names of their columns.
        level: what a row is about.
        by_folder, by_accession: whether its `id` is a folder, or an accession number.
    """

    names: list[str]
    readings: dict[str, tuple[Reading, ...]]
    mapped: frozenset[str]
    level: Level = "slice"
    by_folder: bool = False
    by_accession: bool = False


def read_columns(flags: Sequence[str], file: Location | None) -> ColumnMap:
    """What `--column NAME=COLUMN` and the file of `--columns` ask for.

    Raises:
        ConfigError: a flag or the file has another form, or a name is mapped twice.
    """
    found: dict[str, Any] = {} if file is None else _read_yaml(locate(file))
    for flag in flags:
        name, equals, column = (part.strip() for part in flag.partition("="))
        if not (name and equals and column):
            raise ConfigError(f"--column: must be NAME=COLUMN, got {flag!r}; write such as any=hemorrhage")
        if name in found:
            raise ConfigError(f"--column {name}: must be given once, got it twice; separate readers by commas")
        found[name] = column
    return found


def _read_yaml(path: UPath) -> dict[str, Any]:
    try:
        source = parse_yaml(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: --columns must be a readable YAML file, got {first_line(error)}") from None
    if not isinstance(source, dict):
        raise ConfigError(f"{path}: --columns must be a mapping such as `any: hemorrhage`, got something else")
    return source


def map_columns(
    path: UPath, header: Sequence[str], columns: Mapping[str, Any], level: Level | None = None
) -> MappedColumns:
    """Find what is asked for in a header; labels that are not are recognized by their own names.

    Args:
        path: of the table, for the messages.
        header: in lower case.
        columns: what is asked for.
        level: what a row is about, told from the columns if not given.

    Raises:
        ConfigError: a name or a value is not one that can be mapped.
        LabelError: a column is not there.
    """
    known: tuple[str, ...] = (*_TEXTS, *LABELS)
    asked_for: dict[str, str] = {}
    readings: dict[str, tuple[Reading, ...]] = {name: (Reading(name),) for name in LABELS if name in header}
    for name, asked in columns.items():
        if name not in known:
            raise ConfigError(
                f"--column {name}: must be one of {', '.join(known)}, got {name!r}{nearest(str(name), known)}"
            )
        found = tuple(_reading(path, header, name, text) for text in _parts(name, asked, header))
        if name in LABELS:
            readings[name] = found
        elif len(found) > 1 or found[0].negated:
            raise ConfigError(f"--column {name}: must be one column as it is, got {asked!r}")
        else:
            asked_for[name] = found[0].column
    kind, key = _key(header, asked_for, level)
    if level == "slice" and not key and (about := [name for name in _EXAMINATIONS.values() if name in header]):
        raise LabelError(
            f"{path}: a row must be about a slice (`id`, `slice_id` or SOPInstanceUID), got {about[0]}; what holds for "
            "an examination holds for none of its slices alone: no network of slices can learn from it"
        )
    renamed = {key: "id"} if key else {}
    if "role" in asked_for:
        renamed[asked_for["role"]] = "role"
    # A column that has the name of another one now is not read.
    hidden = {name: f"\0{name}" for name in (*renamed.values(), *(["slice_id"] if key else [])) if name not in renamed}
    names = {**hidden, **renamed}
    return MappedColumns(
        [names.get(column, column) for column in header],
        {label: tuple(Reading(names.get(one.column, one.column), one.negated) for one in found)
         for label, found in readings.items()},
        frozenset(columns) & {*LABELS},
        "study" if kind in _OF_STUDIES else cast("Level", kind),
        kind == "folder",
        kind == "accession",
    )  # fmt: skip


def _key(header: Sequence[str], asked: Mapping[str, str], level: Level | None) -> tuple[str, str]:
    """What a row is about (a folder or accession number may be it), and the column that names it: empty if none does.

    A column that names slices makes a row one of a slice, unless another was asked for; else the finest column does.
    """
    of_slices = asked.get("id") or next((name for name in _SLICES if name in header), "")
    there = {kind: asked.get(kind) or (column if column in header else "") for kind, column in _EXAMINATIONS.items()}
    if level == "slice":
        return "slice", of_slices
    if level is not None:
        named = ("study", *_OF_STUDIES) if level == "study" else (level,)
        kind = next((kind for kind in named if there[kind]), level)
        return kind, there[kind] or of_slices
    kinds = [kind for kind in _EXAMINATIONS if kind in asked] or [kind for kind, column in there.items() if column]
    if "id" in asked or not kinds or (of_slices and not {*_EXAMINATIONS} & {*asked}):
        return "slice", of_slices
    return kinds[0], there[kinds[0]]


def _parts(name: str, asked: Any, header: Sequence[str]) -> list[str]:
    """The columns of one reader or of several: a list, or a text with commas that is no column itself."""
    if isinstance(asked, str):
        asked = [asked] if asked.strip().lower() in header else asked.split(",")
    if not isinstance(asked, list) or not asked or not all(isinstance(text, str) and text.strip() for text in asked):
        raise ConfigError(f"--column {name}: must be a column or a list of columns, got {asked!r}; quote what is text")
    if len({text.strip().lower() for text in asked}) < len(asked):
        raise ConfigError(f"--column {name}: each reader must be a column, got one twice; name each once")
    return [text.strip() for text in asked]


def _reading(path: UPath, header: Sequence[str], name: str, text: str) -> Reading:
    column = text.lower()
    if column in header:
        return Reading(column)
    negated = column.startswith(_NOT)
    column = column.removeprefix(_NOT).strip()
    if column not in header:
        raise LabelError(
            f"{path}: --column {name}: a column of the table must be named, got {column!r}{nearest(column, header)}; "
            f"there are {', '.join(header)[:200]}"
        )
    return Reading(column, negated)
