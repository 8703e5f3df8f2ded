"""Which slice a row of the label table means: by SOPInstanceUID, else by path or file name.

One rule holds for a whole table: UIDs where any matches, else that kind of name by which most ids match. It is settled
before anything is decoded: names from the listing, UIDs from the headers of a sample. What is unmatched under that rule
has no file, whatever another rule would say of it. Frames go by `#frame` behind the name of their file.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ich_ray.ct.slice_file import read_headers
from ich_ray.data.prepare.accession_numbers import by_study
from ich_ray.data.prepare.examinations import find_folders
from ich_ray.errors import ConfigError, Rejection
from ich_ray.vocabulary import MATCH_RULES, MatchRule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from upath import UPath

    from ich_ray.ct.dicom import SliceHeader
    from ich_ray.data.prepare.label_table import LabelTable

__all__ = ["check_one_way", "file_keys", "find_labels", "settle_labels", "settle_rule", "share_labels"]

_KEYWORDS = {
    "series": "SeriesInstanceUID",
    "study": "StudyInstanceUID",
    "patient": "PatientID",
    "accession": "AccessionNumber",
}
_BY_NAME = get_args(MatchRule)[1:]
_SUFFIX = r"\.[^./]*[^0-9./][^./]*$"  # `.dcm`; the last number of a UID is none
_FRAME = r"#[0-9]+$"
# Of files whose names are ids: is that only because they are called after their UIDs?
_NAMED = 32
# A sample draws one file from each of equal parts of the list. If L of n files have a label, s samples miss them all
# with a probability of at most exp(-s L / n), however they lie: the product of 1 - p over the parts, whose p add up to
# s L / n. At 20 expected matches that is 2e-9; below, a table is not judged. A tenth of all files labeled takes 200.
_EXPECTED = 20
_FEWEST, _MOST = 200, 4000
_THREADS = 16


def file_keys(files: pa.Array, rule: MatchRule) -> pa.Array:
    """What an id must be to name each file."""
    if rule in {"name", "stem"}:
        files = pc.replace_substring_regex(files, r"^.*/", "")
    return pc.replace_substring_regex(files, _SUFFIX, "") if rule in {"path_stem", "stem"} else files


def find_labels(labels: LabelTable, rows: pa.Table, rule: MatchRule | None = None) -> NDArray[np.int64]:
    """The row of the table for each slice, -1 without one, by the rule of the table or by another.

    Args:
        labels: the table.
        rows: with `file`, `frame` and `slice_id`.
        rule: that of the table, if not given.
    """
    rule = rule or labels.rule
    if rule == "uid":
        return labels.find(rows["slice_id"].combine_chunks())
    keys, frame = file_keys(rows["file"].combine_chunks(), rule), rows["frame"].combine_chunks()
    frames = pc.binary_join_element_wise(keys, pc.cast(frame, pa.string()), "#")
    return labels.find(pc.if_else(pc.greater(frame, 0), frames, keys))


def check_one_way(labels: LabelTable, rows: pa.Table) -> None:
    """Refuse an id that is the SOPInstanceUID of one slice and the name of another.

    Raises:
        ConfigError: which, and both files.
    """
    known = rows.filter(pc.not_equal(pc.fill_null(rows["slice_id"], ""), ""))
    by_uid = find_labels(labels, known, "uid")
    for rule in _BY_NAME:
        by_name = find_labels(labels, known, rule)
        both = by_name[(by_name == by_uid) & (by_name >= 0)]
        torn = (by_name >= 0) & np.isin(by_name, by_uid) & ~np.isin(by_name, both)
        if torn.any():
            row = int(np.argmax(torn))
            other = int(np.argmax(by_uid == by_name[row]))
            files = known["file"].take([other, row]).to_pylist()
            raise ConfigError(
                f"labels: an id must name one slice, got {labels.slice_ids[by_name[row]].as_py()!r}, the "
                f"{MATCH_RULES['uid']} of {files[0]} and the {MATCH_RULES[rule]} of {files[1]}; correct the table or "
                "the names"
            )


def share_labels(rows: pa.Table, reasons: NDArray[np.object_], labels: LabelTable, places: NDArray[np.int64]) -> None:
    """Let the label of a duplicate count for the file that is kept in its place.

    A SOPInstanceUID would. Names tell the two apart, so that their labels may differ: then the slice cannot be used.
    """
    twice = np.flatnonzero((reasons == "duplicate") & (places >= 0))
    if labels.rule == "uid" or not len(twice):
        return
    ids = rows["slice_id"].to_pylist()
    kept = {ids[row]: row for row in np.flatnonzero(reasons == "")}
    for row in twice:
        first = kept.get(ids[row], row)
        if places[first] < 0:
            places[first] = places[row]
        elif not np.array_equal(labels.values[places[first]], labels.values[places[row]]):
            reasons[first] = "label_conflict"


def settle_labels(rows: pa.Table, reasons: NDArray[np.object_], labels: LabelTable) -> NDArray[np.int64]:
    """Join by the rule of the table: the label row of each file, -1 without one.

    Gives `reasons` to those that cannot be used.

    Raises:
        ConfigError: no slice is in the table, or an id names two.
    """
    places = find_labels(labels, rows)
    good = reasons == ""
    if good.any() and (places < 0).all():
        row = int(np.argmax(good))
        raise labels.mismatch_error(rows["slice_id"][row].as_py(), rows["file"][row].as_py())
    check_one_way(labels, rows)
    share_labels(rows, reasons, labels, places)
    good = reasons == ""
    reasons[good & (places < 0)] = "label_missing"
    known = np.flatnonzero(good & (places >= 0))
    reasons[known] = labels.reasons[places[known]]
    return places


def settle_rule(labels: LabelTable, root: UPath, files: Sequence[str], without_preamble: bool) -> LabelTable:
    """The table with the rule that its ids follow, settled in seconds, whatever the number of files.

    Raises:
        ConfigError: no id matches any file, or one that counts matches two; nothing was decoded.
    """
    if labels.level != "slice":
        _check_examinations(labels, root, files, without_preamble)
        return by_study(labels, root, files, without_preamble) if labels.by_accession else labels
    names = pa.array(files, pa.string())
    named, hits = _named(labels, root, names)
    rng = np.random.default_rng(0)
    sample = _sample(len(files), len(labels), rng)
    looked_at = [*rng.permutation(hits)[:_NAMED], *(sample if named is None else sample[:_FEWEST])]
    headers = _unlike(labels, "slice_id", {place: root / files[place] for place in looked_at}, without_preamble)
    if headers is None:
        return labels
    if named is not None:
        _check_one_file(named, names)
        return named
    if headers:
        _check_level(labels, headers)
        if _is_enough(len(sample), len(files), len(labels)):
            place, header = min(headers, key=lambda one: one[0])
            raise labels.mismatch_error(header.slice_id, files[place])
    return labels


def _sample(files: int, labels: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """One place of each of so many equal parts of the list as make `_EXPECTED` matches of a good table."""
    wanted = min(files, max(_FEWEST, min(_MOST, -(-_EXPECTED * files // labels))))
    edges = np.linspace(0, files, wanted + 1)
    drawn = edges[:-1] + rng.random(wanted) * np.diff(edges) if wanted < files else edges[:-1]
    return rng.permutation(np.minimum(drawn.astype(np.int64), files - 1))


def _is_enough(sample: int, files: int, labels: int) -> bool:
    """Whether a good table would have matched one of the sample."""
    return sample == files or sample * min(labels / files, 1) >= _EXPECTED


def _unlike(
    labels: LabelTable, column: str, looked_at: dict[int, UPath], without_preamble: bool
) -> list[tuple[int, SliceHeader]] | None:
    """The headers of some files with their places; None if one is in the table, and no more are read then."""
    headers: list[tuple[int, SliceHeader]] = []
    places = list(looked_at)
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(places), 2 * _THREADS):
            here = places[start : start + 2 * _THREADS]
            read = pool.map(_headers, [looked_at[place] for place in here], [without_preamble] * len(here))
            found = [(int(place), header) for place, each in zip(here, read, strict=True) for header in each]
            if (labels.find(_column(found, column)) >= 0).any():
                return None
            headers += found
    return headers


def _check_examinations(labels: LabelTable, root: UPath, files: Sequence[str], without_preamble: bool) -> None:
    """Refuse a table of other examinations. It says nothing of identifiers that headers have.

    Raises:
        ConfigError: no file belongs to one.
    """
    key = "accession" if labels.by_accession else labels.level
    keyword = "folders" if labels.rule == "path" else _KEYWORDS[key]
    if labels.rule == "path":
        alien = bool((find_folders(labels, files) < 0).all())
    else:
        sample = _sample(len(files), len(labels), np.random.default_rng(0))
        places = {int(place): root / files[place] for place in sample}
        headers = _unlike(labels, key, places, without_preamble)
        alien = bool(headers) and _is_enough(len(sample), len(files), len(labels))
    if alien:
        raise ConfigError(
            f"labels: ids of the table must be {keyword} of the files, got none in common; give the table of these "
            "files, or the --level that it has"
        )


def _headers(file: UPath, without_preamble: bool) -> list[SliceHeader]:
    try:
        return [header for _, header in read_headers(file, without_preamble) if not isinstance(header, Rejection)]
    except Rejection:
        return []


def _column(headers: Sequence[tuple[int, SliceHeader]], name: str) -> pa.Array:
    return pa.array([getattr(header, name) for _, header in headers], pa.string())


def _named(labels: LabelTable, root: UPath, files: pa.Array) -> tuple[LabelTable | None, NDArray[np.int64]]:
    """The table under the rule by which most ids name a file, and the places of those files; the first of equal ones.

    Not the first that fits at all: of a table of file names it would find those at the top of the folder as paths.
    """
    best, hits, most = None, np.array([], np.int64), 0
    for rule in _BY_NAME:
        ids = _paths(labels.slice_ids, root, files) if rule in {"path", "path_stem"} else labels.slice_ids
        keys, files_of_ids = file_keys(files, rule), pc.replace_substring_regex(ids, _FRAME, "")
        count = pc.sum(pc.or_(pc.is_in(ids, keys), pc.is_in(files_of_ids, keys))).as_py() or 0
        if count > most:
            most, best = count, replace(labels, slice_ids=ids, rule=rule)
            hits = np.flatnonzero(pc.is_in(keys, _with_files_of_frames(ids)))
    return best, hits


def _paths(ids: pa.Array, root: UPath, files: pa.Array) -> pa.Array:
    """Ids as paths below the folder: those of Windows, those from `./`, from the root or from the folder itself."""
    paths = pc.replace_substring_regex(pc.replace_substring(ids, "\\", "/"), r"^(\./)+", "")
    home = root.resolve()
    inside = not home.name or pc.any(pc.starts_with(files, f"{home.name}/")).as_py()
    for prefix in (str(root), str(home), *[home.name] * (not inside)):
        cut = pc.utf8_slice_codeunits(paths, len(prefix.rstrip("/")) + 1)
        paths = pc.if_else(pc.starts_with(paths, f"{prefix.rstrip('/')}/"), cut, paths)
    return paths if pc.count_distinct(paths).as_py() == len(ids) else ids


def _with_files_of_frames(ids: pa.Array) -> pa.Array:
    return pc.unique(pa.concat_arrays([ids, pc.replace_substring_regex(ids, _FRAME, "")]))


def _check_one_file(labels: LabelTable, files: pa.Array) -> None:
    """Refuse an id that names two files.

    Raises:
        ConfigError: which, and two of them.
    """
    keys = file_keys(files, labels.rule)
    meant = pc.is_in(keys, _with_files_of_frames(labels.slice_ids))
    keys, files = keys.filter(meant), files.filter(meant)
    encoded = np.asarray(keys.dictionary_encode().indices)
    twice = np.bincount(encoded)[encoded] > 1
    if twice.any():
        key = keys[int(np.argmax(twice))]
        first, second = files.filter(pc.equal(keys, key)).to_pylist()[:2]
        raise ConfigError(
            f"labels: an id must name one file, got {key.as_py()!r}, the {MATCH_RULES[labels.rule]} of {first} and of "
            f"{second}; give paths below the folder, or SOPInstanceUIDs"
        )


def _check_level(labels: LabelTable, headers: Sequence[tuple[int, SliceHeader]]) -> None:
    """Refuse ids of series, studies or patients: few as they are, a sample of slices could not tell.

    Raises:
        ConfigError: whose ids they are.
    """
    for key, keyword in _KEYWORDS.items():
        if (labels.find(_column(headers, key)) >= 0).any():
            level, flag = ("study", "--column accession=id") if key == "accession" else (key, f"--level {key}")
            raise ConfigError(
                f"labels: ids of the table must name slices, got the {keyword} of files: what holds for a {level} "
                f"holds for none of its slices alone; give a row a slice, or {flag}"
            )
