"""Labels by accession number: the study that each number is of, found in the headers.

An accession number leads a hospital to its patient at once: it is read where a table names some, matched, and neither
kept nor written, not even as a pseudonym. From then on the table is one of studies.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

import pyarrow as pa

from ich_ray import progress
from ich_ray.ct.slice_file import read_headers
from ich_ray.errors import ConfigError, Rejection

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from upath import UPath

    from ich_ray.data.prepare.label_table import LabelTable

__all__ = ["by_study"]

_THREADS, _AT_ONCE = 16, 1024


def by_study(labels: LabelTable, root: UPath, files: Sequence[str], without_preamble: bool) -> LabelTable:
    """The table with StudyInstanceUIDs in place of accession numbers.

    Numbers of no file stay as they are. Every header is read, a second time.

    Args:
        labels: whose ids are accession numbers.
        root: the folder of the files.
        files: below it.
        without_preamble: see `elements.parse`.

    Raises:
        ConfigError: a number is of two studies, or two numbers are of one.
    """
    place = {name: row for row, name in enumerate(labels.slice_ids.to_pylist())}
    studies: dict[int, set[str]] = {}
    for accession, study in _read(root, files, without_preamble):
        if study and (row := place.get(accession)) is not None:
            studies.setdefault(row, set()).add(study)
    ids = labels.slice_ids.to_pylist()
    row_of: dict[str, int] = {}
    for row, found in sorted(studies.items()):
        if len(found) > 1:
            raise ConfigError(
                f"labels: an accession number must be of one study, got one of {len(found)} (number {row + 1} of the "
                "table); name these studies by their StudyInstanceUID"
            )
        (ids[row],) = found
        if (first := row_of.setdefault(ids[row], row)) != row:
            raise ConfigError(
                f"labels: a study must have one accession number of the table, got numbers {first + 1} and {row + 1} "
                "for one; name studies by their StudyInstanceUID"
            )
    unfound = frozenset(number for number, row in place.items() if row not in studies)
    return replace(labels, slice_ids=pa.array(ids, pa.string()), unfound=unfound)


def _read(root: UPath, files: Sequence[str], without_preamble: bool) -> Iterator[tuple[str, str]]:
    """The distinct accession numbers and studies of each file that holds slices."""

    def of_file(file: str) -> set[tuple[str, str]]:
        return {*_of_headers(root / file, without_preamble)}

    with ThreadPoolExecutor(_THREADS) as pool, progress.bar("Reading headers", len(files), "files") as advance:
        for start in range(0, len(files), _AT_ONCE):
            part = files[start : start + _AT_ONCE]
            yield from chain.from_iterable(pool.map(of_file, part))
            advance(start + len(part))


def _of_headers(file: UPath, without_preamble: bool) -> Iterable[tuple[str, str]]:
    try:
        for _, header in read_headers(file, without_preamble):
            if not isinstance(header, Rejection):
                yield header.accession, header.study
    except Rejection:
        return
