"""The headers of all inputs of `predict`, read first: each is judged by the others of its series.

What is no axial slice of a head is left out by what only its series shows, and a series unlike the training data is
flagged. Headers are read by threads here or by tasks of Ray Data; what is kept of one is some 100 bytes, and names of
slices and series only until they are numbered. A file whose header cannot be read has no series: its reason comes when
it is read.
"""

from __future__ import annotations

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ich_ray.bundle.threads import mapped_ahead
from ich_ray.bundle.training_data import SeriesLook, differences, median_step
from ich_ray.ct.plane import Judgment, judge_table
from ich_ray.ct.slabs import SeriesGeometry, known_median, slabs_around
from ich_ray.errors import Rejection
from ich_ray.statistics.aggregation import members

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from ich_ray.bundle.training_data import TrainingData
    from ich_ray.ct.dicom import SliceHeader
    from ich_ray.ct.slabs import SlabRule, Slabs

__all__ = ["Input", "SeriesTable", "Survey", "read_facts", "read_facts_ahead", "survey_inputs"]

_AT_ONCE = 512
# Reading waits for disks and networks, parsing holds Python's lock.
_THREADS = 8
_JUDGED_AT_ONCE = 1 << 16


class Input(NamedTuple):
    """A file to predict, or a frame of one.

    Attributes:
        reason: why it is refused before it is opened; empty if it is not.
        flags: of its series, with commas between.
        frame: counted from 1; 0 for a file that is one slice, and before its header is read.
    """

    file: str
    reason: str = ""
    flags: str = ""
    frame: int = 0


_VECTORS = ("x", "y", "z", "normal_x", "normal_y", "normal_z")
_LENGTHS = ("position_mm", "thickness_mm", "pixel_mm")
_FACTS = pa.schema(
    [
        ("frame", pa.int32()),
        ("known", pa.bool_()),
        ("study", pa.string()),
        ("series", pa.string()),
        ("kernel", pa.string()),
        ("slice_id", pa.string()),
        ("rows", pa.int32()),
        ("columns", pa.int32()),
        *((name, pa.float32()) for name in (*_VECTORS, *_LENGTHS)),
    ]
)
_UNKNOWN = (False, "", "", "", "", 0, 0, *(math.nan,) * 9)


def read_facts(inputs: Sequence[Input], without_preamble: bool = False) -> pa.Table:
    """What the headers of files say of their series: a row for each, or each of its frames, in order."""
    from ich_ray.ct.slice_file import read_headers  # pydicom is not needed to load a bundle

    rows: list[tuple[object, ...]] = []
    for given in inputs:
        try:
            headers = [] if given.reason else [*read_headers(given.file, without_preamble)]
        except (Rejection, MemoryError):
            headers = []
        rows += [(frame, *(_UNKNOWN if isinstance(header, Rejection) else _facts(header))) for frame, header in headers]
        rows += [] if headers else [(0, *_UNKNOWN)]
    columns = zip(zip(*rows, strict=True), _FACTS, strict=True)
    return pa.table([pa.array(column, field.type) for column, field in columns], _FACTS)


def _facts(header: SliceHeader) -> tuple[object, ...]:
    from ich_ray.ct.acquisition import clean_name

    taken, unknown = header.acquisition, (math.nan,) * 3
    names = (header.study, header.series, clean_name(taken.kernel), header.slice_id)
    place = (*(taken.position or unknown), *(taken.normal or unknown))
    return (True, *names, header.rows, header.columns, *place, taken.position_mm, taken.thickness_mm, taken.pixel_mm)


def read_facts_ahead(inputs: Sequence[Input], without_preamble: bool = False) -> Iterator[pa.Table]:
    """`read_facts` of parts of the inputs, in their order, by threads of this process."""
    parts = (inputs[start : start + _AT_ONCE] for start in range(0, len(inputs), _AT_ONCE))
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from mapped_ahead(pool, lambda part: read_facts(part, without_preamble), parts, _THREADS)


@dataclass(frozen=True)
class SeriesTable:
    """What is known of every slice, as arrays `[n]`.

    Attributes:
        frame: of its file, counted from 1; 0 for a file that is one slice, or whose header cannot be read.
        study: a number; -1 where the header cannot be read or names none.
        series: 0, 1, …; a slice without one is a series of itself. -1 where the header cannot be read.
        named: whether the header names a series.
        by_id: its turn in the order of SOPInstanceUIDs.
        positions, normals: `[n, 3]`, NaN where not known; `position_mm`, along the normal.
        sizes: rows and columns, `[n, 2]`.
        kernel: a place in `kernels`.
    """

    frame: NDArray[np.int32]
    study: NDArray[np.int32]
    series: NDArray[np.int32]
    named: NDArray[np.bool_]
    by_id: NDArray[np.int64]
    positions: NDArray[np.float32]
    normals: NDArray[np.float32]
    sizes: NDArray[np.int32]
    position_mm: NDArray[np.float32]
    thickness_mm: NDArray[np.float32]
    pixel_mm: NDArray[np.float32]
    kernel: NDArray[np.int32]
    kernels: list[str]

    @classmethod
    def of_facts(cls, tables: Iterable[pa.Table]) -> SeriesTable:
        """Of the tables of `read_facts`; what they say in texts is kept once."""
        table = pa.concat_tables([_compact(_FACTS.empty_table()), *map(_compact, tables)]).unify_dictionaries()
        (study, _), (uid, _), (kernel, kernels) = (_numbers(table[name]) for name in ("study", "series", "kernel"))
        known, named = table["known"].to_numpy(), uid >= 0
        # A series belongs to one study, which its UID need not show; slices without one are behind all others.
        most = np.int64(uid.max(initial=0)) + 1
        keys = np.where(named, study * most + uid, (study.max(initial=0) + 1) * most + np.arange(len(table)))
        series = np.full(len(table), -1, np.int32)
        _, series[known] = np.unique(keys[known], return_inverse=True)
        vectors = np.column_stack([table[name].to_numpy() for name in _VECTORS])
        return cls(
            frame=table["frame"].to_numpy(),
            study=study,
            series=series,
            named=named,
            by_id=_turns(table["slice_id"]),
            positions=vectors[:, :3],
            normals=vectors[:, 3:],
            sizes=np.column_stack([table[name].to_numpy() for name in ("rows", "columns")]),
            **{name: table[name].to_numpy() for name in _LENGTHS},
            kernel=kernel,
            kernels=kernels,
        )

    def __len__(self) -> int:
        return len(self.series)

    def inputs(self, files: Sequence[Input]) -> list[Input]:
        """The slices of the files, in order."""
        places = np.cumsum(self.frame <= 1) - 1  # each file has one such row
        frames = zip(places.tolist(), self.frame.tolist(), strict=True)
        return [files[place]._replace(frame=frame) if frame else files[place] for place, frame in frames]

    def judged(self) -> list[Judgment]:
        """What each slice's series says against it; judged some series at a time, as that takes memory."""
        found = np.full(len(self), Judgment(), object)
        series = [each for each in self.members() if self.named[each[0]]]
        part = np.cumsum([len(each) for each in series]) // _JUDGED_AT_ONCE
        for number in np.unique(part):
            rows = np.concatenate([series[place] for place in np.flatnonzero(part == number)])
            vectors = self.positions[rows].astype(np.float64), self.normals[rows].astype(np.float64)
            found[rows] = judge_table(self.series[rows].astype(np.int64), *vectors, self.sizes[rows].astype(np.int64))
        return list(found)

    def members(self) -> list[NDArray[np.int64]]:
        """The inputs of each series, by its number, in their order."""
        known = np.flatnonzero(self.series >= 0)
        return [known[each] for each in members(self.series[known])]

    def slabs(self, kept: NDArray[np.bool_], rule: SlabRule) -> Slabs | None:
        """The slabs around the slices that are kept, of series that are finer than a rule; None if none is."""
        geometry = SeriesGeometry(
            series=np.where(kept, self.series, -1).astype(np.int64),
            places_mm=self.position_mm.astype(np.float64),
            thickness_mm=self.thickness_mm.astype(np.float64),
            corners=self.positions.astype(np.float64),
            normals=self.normals.astype(np.float64),
            sizes=self.sizes.astype(np.int64),
            pixel_mm=self.pixel_mm.astype(np.float64),
            ranks=self.by_id,
        )
        found = slabs_around(geometry, rule)
        return found if found.finer.any() else None

    def look(self, slices: NDArray[np.int64], slabs: Slabs | None = None) -> SeriesLook:
        """How the slices of a series were taken, or made."""
        rows, columns = self.sizes[slices[0]]
        averaged = None if slabs is None or not slabs.finer[slices].any() else slabs.rule
        return SeriesLook(
            thickness_mm=known_median(self.thickness_mm[slices]) if averaged is None else averaged.thickness_mm,
            slice_spacing_mm=median_step(self.position_mm[slices]) if averaged is None else averaged.spacing_mm,
            pixel_spacing_mm=known_median(self.pixel_mm[slices]),
            kernel=next((self.kernels[place] for place in self.kernel[slices] if place >= 0), ""),
            matrix=f"{rows}x{columns}",
        )


def _compact(table: pa.Table) -> pa.Table:
    for place, field in enumerate(_FACTS):
        if pa.types.is_string(field.type) and field.name != "slice_id":
            table = table.set_column(place, field.name, table[field.name].dictionary_encode())
    return table


def _turns(names: pa.ChunkedArray) -> NDArray[np.int64]:
    """The turn of each in their sorted order, of equal ones in that of the inputs."""
    return np.argsort(pc.sort_indices(names).to_numpy())


def _numbers(names: pa.ChunkedArray) -> tuple[NDArray[np.int32], list[str]]:
    """A place in the list of names for each; -1 for the empty one."""
    held = names.chunk(0).dictionary.to_pylist()
    places = np.concatenate([chunk.indices.to_numpy() for chunk in names.chunks])
    places[places == (held.index("") if "" in held else -1)] = -1
    return places, held


@dataclass(frozen=True)
class Survey:
    """What is to be read, and what is said before.

    Attributes:
        inputs: those given, a frame at a time, with the reasons and flags of their series.
        notes: lines for people.
        table: of the inputs.
        slabs: around the slices of series finer than the training data, by its `slab_rule`; None if there are none.
    """

    inputs: list[Input]
    notes: tuple[str, ...]
    table: SeriesTable
    slabs: Slabs | None = None


def survey_inputs(
    inputs: Sequence[Input], facts: Iterable[pa.Table], training: TrainingData | None, average: bool = True
) -> Survey:
    """Judge the inputs by their series, and the series by the training data of the bundle.

    Args:
        inputs: files.
        facts: of `read_facts`, in the order of the inputs.
        training: of the bundle's card.
        average: make slabs of series that are finer than the training data.
    """
    table = SeriesTable.of_facts(facts)
    judged = table.judged()
    kept = np.array([not judgment.reason for judgment in judged], bool)
    unlike = _Unlike()
    rule = training.slab_rule if training is not None and average else None
    slabs = None if rule is None else table.slabs(kept, rule)
    for slices in table.members():
        if training is not None and kept[slices].any():
            look = table.look(slices[kept[slices]], slabs)
            unlike.add(table, slices, differences(training, look))
    far = unlike.flags
    found = [
        _judged(given, judgment, far.get(series, ()))
        for given, judgment, series in zip(table.inputs(inputs), judged, table.series.tolist(), strict=True)
    ]
    notes = filter(None, [_untold(training, average), _averaged(table, slabs), unlike.note])
    return Survey(found, tuple(notes), table, slabs)


def _averaged(table: SeriesTable, slabs: Slabs | None) -> str:
    """How many series are averaged; empty if none is."""
    if slabs is None:
        return ""
    series, rule = table.series[table.series >= 0], slabs.rule
    return (
        f"{len(np.unique(table.series[slabs.finer]))} of {len(np.unique(series))} series are finer than the training "
        f"data: their slices are averaged to slabs of {rule.thickness_mm:g} mm, with neighbors at "
        f"{rule.spacing_mm:g} mm; with --no-slabs they are not"
    )


def _judged(given: Input, judgment: Judgment, far: Iterable[str]) -> Input:
    if given.reason or not (judgment.reason or judgment.flags or far):
        return given
    return given._replace(reason=judgment.reason, flags=",".join(sorted({*judgment.flags, *far})))


def _untold(training: TrainingData | None, average: bool) -> str:
    """What cannot be compared with the training data; empty if all can."""
    undone = "not flagged, nor averaged where it is thinner" if average else "not flagged"
    if training is None:
        return (
            f"the card of the bundle does not say how the slices that trained it were taken: what is unlike them is "
            f"{undone}; prepare the dataset again and retrain"
        )
    if not training.unknown:
        return ""
    if training.slab_rule is not None:
        undone = "not flagged"
    # Nothing to do about it: such headers as those of the RSNA set have neither thickness nor kernel.
    return f"the training data of the bundle do not say {', '.join(training.unknown)}: what is unlike them is {undone}"


class _Unlike:
    """Studies far from the training data.

    Attributes:
        flags: of each series that is far, by its number.
        studies: in what each study is far, in words.
    """

    def __init__(self) -> None:
        self.flags: dict[int, tuple[str, ...]] = {}
        self.studies: dict[tuple[str, int], dict[str, str]] = {}

    def add(self, table: SeriesTable, slices: NDArray[np.int64], far: dict[str, str]) -> None:
        """Add a series."""
        series, study = int(table.series[slices[0]]), int(table.study[slices[0]])
        key = ("study", study) if study >= 0 else ("series", series)  # one without a study is a study of its own
        self.studies[key] = far | self.studies.get(key, {})
        if far:
            self.flags[series] = tuple(far)

    @property
    def note(self) -> str:
        """How many studies are far, with an example of each way; empty if none is."""
        counts = Counter(flag for far in self.studies.values() for flag in far)
        if not counts:
            return ""
        examples = {flag: words for far in [*self.studies.values()][::-1] for flag, words in far.items()}
        ways = "; ".join(f"{flag} {count} ({examples[flag]})" for flag, count in sorted(counts.items()))
        far = sum(map(bool, self.studies.values()))
        return f"{far} of {len(self.studies)} studies are unlike the training data: {ways}"
