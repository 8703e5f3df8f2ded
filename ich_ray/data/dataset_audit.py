"""Audit a prepared dataset: every listed file is a row, every row has its image and block.

Reads the files as they are, whatever is wrong with them, and names all that it finds; repairs nothing. Knows nothing of
what the pixels should be: the hashes in the manifest vouch for them.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow.compute as pc

from ich_ray.data.dataset import DatasetManifest, map_block
from ich_ray.data.series_survey import survey_series
from ich_ray.errors import ConfigError, IntegrityError
from ich_ray.progress import bar
from ich_ray.storage import (
    DatasetFiles,
    Line,
    Record,
    Text,
    is_local,
    locate,
    read_record,
    read_table,
    sha256,
    system_reason,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from ich_ray.storage import Location

__all__ = ["Check", "audit_dataset", "checked"]

I8 = "files listed = accepted + rejected + duplicate + excluded; block rows = slices; block hashes match"
# Rows of rejected.parquet that are labels and not files.
_NO_FILE = "file_missing"


class Check(Record):
    """One invariant, checked.

    Attributes:
        invariant: its name, `I1` to `I8`.
        rule: what must hold.
        state: `unchecked` if what it speaks of cannot be read from here.
        found: what was counted, in a line.
        breaches: what is wrong, each with its name.
    """

    invariant: Line
    rule: Line
    state: Literal["ok", "breach", "unchecked"]
    found: Text
    breaches: tuple[Text, ...] = ()


def checked(invariant: str, rule: str, found: str, breaches: Iterator[str] | list[str]) -> Check:
    """A check that could be made: a breach if there is any."""
    named = tuple(breaches)
    return Check(invariant=invariant, rule=rule, state="breach" if named else "ok", found=found, breaches=named)


def audit_dataset(where: Location, fingerprint: str | None = None) -> Check:
    """Check I8: reads every block once.

    Args:
        where: the dataset.
        fingerprint: which one it should be, if that is known.
    """
    try:
        files = DatasetFiles(locate(where))
        if not files.manifest.exists():
            return Check(invariant="I8", rule=I8, state="unchecked", found=f"no dataset can be read at {where}")
        manifest = read_record(files.manifest, DatasetManifest, "prepare the dataset again")
    except IntegrityError as error:
        return checked("I8", I8, "the manifest is damaged", [str(error)])
    except (
        OSError,
        ImportError,
        ValueError,
        ConfigError,
    ) as error:  # a mount, credentials, a file system nobody installed
        found = f"no dataset can be read at {where}: {type(error).__name__}"
        return Check(invariant="I8", rule=I8, state="unchecked", found=found)
    (slices, refused), unread = _tables(files, manifest)
    breaches = [*_identity(manifest, fingerprint), *_counts(manifest), *unread, *_examinations(files, manifest),
                *_compared(slices, refused, manifest),
                *_blocks(files, manifest)]  # fmt: skip
    return checked("I8", I8, _said(manifest, _surveyed(slices)), breaches)


def _said(manifest: DatasetManifest, surveyed: tuple[str, ...]) -> str:
    parts = ", ".join(f"{getattr(manifest, name)} {name}" for name in ("accepted", "rejected", "duplicate", "excluded"))
    leak = f"; {manifest.leak}" if manifest.leak else ""
    clear = "; slice ids and file names stand in the clear" if manifest.clear else ""
    series = "".join(f"; {note}" for note in surveyed)
    slabs = f"; thin series averaged to slabs of {manifest.slab_mm:g} mm" if manifest.slab_mm else ""
    return f"{manifest.listed} files: {parts}; {len(manifest.blocks)} blocks{slabs}{series}{leak}{clear}"


def _identity(manifest: DatasetManifest, fingerprint: str | None) -> Iterator[str]:
    if fingerprint is not None and manifest.fingerprint != fingerprint:
        yield f"dataset.json: fingerprint must be the search's {fingerprint}, got {manifest.fingerprint}"


def _counts(manifest: DatasetManifest) -> Iterator[str]:
    parts = manifest.accepted + manifest.rejected + manifest.duplicate + manifest.excluded
    if parts != manifest.listed:
        yield f"dataset.json: {manifest.listed} files were listed, got {parts} counted"
    rows = sum(block.rows for block in manifest.blocks)
    if rows != manifest.accepted:
        yield f"dataset.json: {manifest.accepted} slices were accepted, got {rows} rows in blocks"


def _tables(files: DatasetFiles, manifest: DatasetManifest) -> tuple[list[pa.Table | None], list[str]]:
    """slices.parquet and rejected.parquet, None where one cannot be read, and what is wrong with them as files."""
    tables: list[pa.Table | None] = [None, None]
    breaches = []
    for number, path in enumerate((files.slices, files.rejected)):
        try:
            tables[number] = read_table(path)
        except OSError as error:
            breaches.append(f"{path.name}: must be readable, got {system_reason(error)}")
        except IntegrityError as error:
            breaches.append(str(error))
        else:
            if path == files.slices and manifest.slices_sha256 not in {"", sha256(path)}:
                breaches.append(f"{path.name}: SHA-256 must equal the manifest's, got another one")
    return tables, breaches


def _examinations(files: DatasetFiles, manifest: DatasetManifest) -> Iterator[str]:
    if manifest.examinations is None:
        return
    path = files.examinations
    try:
        if sha256(path) != manifest.examinations.sha256:
            yield f"{path.name}: SHA-256 must equal the manifest's, got another one"
    except OSError as error:
        yield f"{path.name}: must be readable, got {system_reason(error)}"


def _surveyed(slices: pa.Table | None) -> tuple[str, ...]:
    """What its series look like, if the table is sound; what is wrong with it is a breach."""
    try:
        return survey_series(slices).notes if slices is not None else ()
    except (ValueError, TypeError, OverflowError, NotImplementedError):
        return ()


def _compared(slices: pa.Table | None, refused: pa.Table | None, manifest: DatasetManifest) -> Iterator[str]:
    where = "slices.parquet, rejected.parquet"
    try:
        if slices is not None:
            yield from _accepted(slices, manifest)
        if refused is not None:
            yield from _refused(refused, manifest)
        if slices is not None and refused is not None:
            yield from _twice(slices, refused)
    except KeyError as error:
        yield f"{where}: a column must be there, got none named {error}"
    except (ValueError, TypeError, OverflowError, NotImplementedError) as error:
        said = str(error).partition("\n")[0]
        yield f"{where}: columns must hold what prepare writes, got {said}"


def _accepted(slices: pa.Table, manifest: DatasetManifest) -> Iterator[str]:
    if len(slices) != manifest.accepted:
        yield f"slices.parquet: {manifest.accepted} accepted slices must be there, got {len(slices)}"
    lengths = np.array([block.rows for block in manifest.blocks], np.int64)
    blocks, rows = (slices[name].to_numpy().astype(np.int64) for name in ("block", "row"))
    inside = (blocks >= 0) & (blocks < len(lengths)) & (rows >= 0)
    inside[inside] = rows[inside] < lengths[blocks[inside]]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    images = len(np.unique(starts[blocks[inside]] + rows[inside]))
    if images != len(slices) or images != lengths.sum():
        yield f"slices.parquet: {lengths.sum()} images must have one row each, got {images} in {len(slices)} rows"
    roles = Counter(slices["role"].to_pylist())
    told = {str(role): counts.slices for role, counts in manifest.roles.items()}
    for role in sorted({*told, *map(str, roles)}):
        if roles[role] != told.get(role, 0):
            yield f"slices.parquet: {told.get(role, 0)} {role} slices must be there, got {roles[role]}"
    yield from _slabs(slices, manifest)
    if manifest.split == "slice":  # nothing is broken, but it is said
        return
    pairs = set(zip(slices["patient"].to_pylist(), slices["role"].to_pylist(), strict=True))
    for patient, count in Counter(patient for patient, _ in pairs).items():
        if count > 1:
            yield f"slices.parquet: a patient must be in one role, got {patient} in {count}"


def _slabs(slices: pa.Table, manifest: DatasetManifest) -> Iterator[str]:
    """A slice of a series that was averaged must say so by its flag, and no other."""
    held = slices["slab_mm"].to_numpy() if "slab_mm" in slices.column_names else np.zeros(len(slices))
    if others := np.count_nonzero((held != 0) & (held != np.float32(manifest.slab_mm))):
        yield f"slices.parquet: slabs must be of {manifest.slab_mm:g} mm, got {others} of another thickness"
    flagged = np.array([bool({"slab", "no_slab"} & {*flags.split(",")}) for flags in _flags(slices)], bool)
    if differing := np.count_nonzero((held != 0) != flagged):
        yield f"slices.parquet: slices of thin series must be flagged slab or no_slab, got {differing} that differ"


def _flags(slices: pa.Table) -> list[str]:
    return slices["flags"].to_pylist() if "flags" in slices.column_names else [""] * len(slices)


def _refused(refused: pa.Table, manifest: DatasetManifest) -> Iterator[str]:
    reasons = Counter(refused["reason"].to_pylist())
    for reason in sorted(reasons.keys() | manifest.reasons.keys()):
        if reasons[reason] != manifest.reasons.get(reason, 0):
            told = manifest.reasons.get(reason, 0)
            yield f"rejected.parquet: {told} rows with reason {reason} must be there, got {reasons[reason]}"
    files = len(refused) - reasons[_NO_FILE]
    told = manifest.rejected + manifest.duplicate + manifest.excluded
    if files != told:
        yield f"rejected.parquet: {told} files that were not accepted must be there, got {files}"


def _twice(slices: pa.Table, refused: pa.Table) -> Iterator[str]:
    is_file = pc.not_equal(refused["reason"], _NO_FILE)
    names = np.concatenate([slices["file"].to_numpy(), refused.filter(is_file)["file"].to_numpy()]).astype(str)
    found, times = np.unique(names, return_counts=True)
    for name in found[times > 1]:
        yield f"slices.parquet, rejected.parquet: each file must be one row, got {name} in several"


def _blocks(files: DatasetFiles, manifest: DatasetManifest) -> Iterator[str]:
    shape = (len(manifest.windows), manifest.size, manifest.size)
    with bar("audit", len(manifest.blocks), "blocks") as advance:
        for number, block in enumerate(manifest.blocks):
            try:
                path = files.root / block.file
                if sha256(path) != block.sha256:
                    yield f"{block.file}: SHA-256 must equal the manifest's, got another one"
                elif is_local(path) and (found := map_block(path).shape) != (block.rows, *shape):
                    yield f"{block.file}: {block.rows} images of {shape} must be there, got {found}"
            except IntegrityError as error:
                yield str(error)
            except FileNotFoundError:
                yield f"{block.file}: the block must be there, got none"
            except OSError as error:
                yield f"{block.file}: the block must be readable, got {system_reason(error)}"
            advance(number + 1)
