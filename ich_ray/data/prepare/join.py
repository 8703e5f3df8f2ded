"""Join the rows of all chunks with the label table: accepted slices, labels, roles, folds.

Plain tables in memory: knows nothing of Ray, and reads a file again only to tell a duplicate from a conflict. Every row
leaves with a reason or accepted, none is lost.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ich_ray.ct.dicom import EXCLUSIONS
from ich_ray.ct.plane import KEPT, judge_table
from ich_ray.data.dataset import RoleCounts
from ich_ray.data.prepare.examinations import Examinations, find_examinations, gather_examinations, settle_examinations
from ich_ray.data.prepare.label_match import file_keys, settle_labels
from ich_ray.data.prepare.readers import MISSING
from ich_ray.data.roles import assign_folds, assign_roles, check_roles
from ich_ray.data.series_survey import number_series
from ich_ray.errors import RoleError
from ich_ray.statistics.aggregation import partners
from ich_ray.vocabulary import LABELS, ROLES, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from ich_ray.ct.windowing import WindowSpec
    from ich_ray.data.prepare.label_table import LabelTable
    from ich_ray.data.prepare.pseudonyms import Pseudonyms
    from ich_ray.vocabulary import Split

__all__ = ["Assembly", "assemble", "fingerprint"]

_ANY = LABELS.index("any")


@dataclass(frozen=True)
class Assembly:
    """The fate of every file and frame, and everything about the accepted slices but their blocks.

    Attributes:
        accepted: rows of schema `chunks.ROWS`, by file and frame.
        values: int8 `[accepted, 6]`, -1 where a subtype is not known.
        roles: `[accepted]`.
        folds: int8 `[accepted]`.
        refused: file, frame, slice_id, reason and detail of all that is not accepted, then of labels without a file.
        unmatched: how many labels have no file; the last rows of `refused`, reason `file_missing`, file empty.
        unfound: how many more go by an accession number that no file has; they are not in `refused`.
        examinations: labels of studies and the like; None where there are none.
    """

    accepted: pa.Table
    values: NDArray[np.int8]
    roles: NDArray[np.object_]
    folds: NDArray[np.int8]
    refused: pa.Table
    unmatched: int
    unfound: int = 0
    examinations: Examinations | None = None

    @property
    def reasons(self) -> dict[str, int]:
        """Rows of `refused` by reason, most frequent first."""
        return dict(Counter(self.refused["reason"].to_pylist()).most_common())

    @property
    def duplicate(self) -> int:
        return self.reasons.get("duplicate", 0)

    @property
    def excluded(self) -> int:
        return sum(self.reasons.get(reason, 0) for reason in EXCLUSIONS)

    @property
    def rejected(self) -> int:
        return len(self.refused) - self.duplicate - self.excluded - self.unmatched

    def role_counts(self) -> dict[Role, RoleCounts]:
        patients, positive = self.accepted["patient"].to_numpy(zero_copy_only=False), self.values[:, _ANY] == 1
        return {
            role: RoleCounts(
                slices=int(here.sum()), patients=len(set(patients[here])), positives=int((here & positive).sum())
            )
            for role, here in ((role, self.roles == role) for role in ROLES)
        }


def assemble(
    rows: pa.Table,
    labels: LabelTable,
    *,
    pseudonyms: Pseudonyms,
    seed: int,
    digest: Callable[[str, int], str],
    split: Split = "patient",
    examined: LabelTable | None = None,
) -> Assembly:
    """Settle duplicates, conflicts, series, labels, roles and folds.

    Args:
        rows: one per slice or refused file, of schema `chunks.ROWS`.
        labels: the label table, of slices or of examinations.
        pseudonyms: with the key that the rows were made with.
        seed: of the roles.
        digest: of the pixel words of a file and frame; called only where one slice_id stands in several.
        split: what roles and folds are drawn by; `slice` puts one patient, and equal pixels, into several roles.
        examined: a label table of examinations beside one of slices.

    Raises:
        ConfigError: no slice is in the label table, or an id names two.
        RoleError: roles are impossible, or equal pixels stand in two of them.
    """
    rows = rows.sort_by([("file", "ascending"), ("frame", "ascending")])
    reasons = rows["reason"].to_numpy(zero_copy_only=False).astype(object)
    details = rows["detail"].to_numpy(zero_copy_only=False).astype(object)
    _settle_repeats(rows, reasons, digest)
    _settle_patients(rows, reasons, details)
    rows = _settle_series(rows, reasons, details)
    if labels.level == "slice":
        places = settle_labels(rows, reasons, labels)
    else:
        places, examined = settle_examinations(rows, reasons, labels, pseudonyms), labels
    kept = np.flatnonzero(reasons == "")
    refused = np.flatnonzero(reasons != "")
    # A file that could not be read has no id; by the name of its file, at least, its label is not without a file.
    of_refused = rows["file"].combine_chunks().take(pa.array(refused))
    by_name = [labels.find(file_keys(of_refused, rule)) for rule in ("name", "stem")]
    unmatched = np.setdiff1d(np.arange(len(labels)), np.concatenate([places, *by_name]))
    accepted, told = rows.take(kept), labels.values[places[kept]]
    values = told if labels.level == "slice" else np.full_like(told, MISSING)
    try:
        if split == "slice":
            roles, folds = _divide_slices(accepted, told, labels, seed)
        else:
            roles, folds = _divide(accepted, told, labels, places[kept], (pseudonyms, seed))
    except RoleError as error:
        if not len(refused):
            raise
        why = ", ".join(f"{reason} {count}" for reason, count in Counter(reasons[refused]).most_common(4))
        raise RoleError(f"{error}; {len(refused)} of {len(rows)} files were not accepted ({why})") from None
    without_file = labels.slice_ids.take(pa.array(unmatched))
    secret = pc.is_in(without_file, value_set=pa.array(sorted(labels.unfound), pa.string()))
    without_file = without_file.filter(pc.invert(secret))
    lacking = len(without_file)
    no_file = pa.array([""] * lacking, pa.string())
    not_kept = rows.take(refused)
    files, frames, slice_ids = (not_kept[name].combine_chunks() for name in ("file", "frame", "slice_id"))
    table = pa.table(
        {
            "file": pa.concat_arrays([files, no_file]),
            "frame": pa.concat_arrays([frames, pa.array([0] * lacking, pa.int32())]),
            "slice_id": pa.concat_arrays([pc.fill_null(slice_ids, ""), without_file]),
            "reason": pa.array([*reasons[refused], *["file_missing"] * lacking], pa.string()),
            "detail": pa.array([*details[refused], *["a label without a file"] * lacking], pa.string()),
        }
    )
    examinations = None
    if examined is not None:
        of_kept = places[kept] if examined is labels else find_examinations(examined, accepted, pseudonyms)
        examinations = gather_examinations(examined, accepted, of_kept, roles, values[:, _ANY])
    flagged = _flag_shared_pixels(accepted, roles, split)
    return Assembly(flagged, values, roles, folds, table, lacking, len(unmatched) - lacking, examinations)


def _column(rows: pa.Table, name: str) -> NDArray[np.object_]:
    return np.asarray(rows[name].to_numpy(zero_copy_only=False), object)


def _settle_repeats(rows: pa.Table, reasons: NDArray[np.object_], digest: Callable[[str, int], str]) -> None:
    """One slice_id in several files: one is kept if all hold the same pixels of the same patient, else none."""
    good = np.flatnonzero(reasons == "")
    ids, inverse, counts = np.unique(_column(rows, "slice_id")[good].astype(str), return_inverse=True,
                                     return_counts=True)  # fmt: skip
    repeated = good[counts[inverse] > 1]
    groups: dict[str, list[int]] = {}
    for row, name in zip(repeated, ids[inverse[counts[inverse] > 1]], strict=True):
        groups.setdefault(name, []).append(row)
    files, frames, patients, pixels = (_column(rows, name) for name in ("file", "frame", "patient", "pixels"))
    for members in groups.values():
        same = len({(patients[row], pixels[row]) for row in members}) == 1
        if same and len({digest(files[row], frames[row]) for row in members}) == 1:
            reasons[members[1:]] = "duplicate"
        else:
            reasons[members] = "uid_conflict"


def _settle_patients(rows: pa.Table, reasons: NDArray[np.object_], details: NDArray[np.object_]) -> None:
    """A study under two patients cannot be given to either."""
    good = np.flatnonzero(reasons == "")
    studies, patients = _column(rows, "study")[good].astype(str), _column(rows, "patient")[good].astype(str)
    torn = good[(partners(studies, patients) > 1) & (studies != "")]
    reasons[torn] = "patient_conflict"
    details[torn] = "the study stands under two patients"


def _settle_series(rows: pa.Table, reasons: NDArray[np.object_], details: NDArray[np.object_]) -> pa.Table:
    """Exclude what only its series shows to be no axial slice; the rows with the flags that a series gives."""
    good = np.flatnonzero(reasons == "")
    of_good = rows.take(good)
    judged = judge_table(
        number_series(of_good),
        _vectors(of_good, "corner_mm"),
        _vectors(of_good, "normal"),
        np.stack([of_good[name].to_numpy().astype(np.int64) for name in ("rows", "columns")], axis=1),
    )
    flags = _column(rows, "flags")
    for row, found in zip(good, judged, strict=True):
        if found is not KEPT:
            reasons[row], details[row] = found.reason, found.detail
            flags[row] = _with_flags(flags[row], *found.flags)
    return rows.set_column(rows.schema.get_field_index("flags"), "flags", pa.array(flags, pa.string()))


def _vectors(rows: pa.Table, name: str) -> NDArray[np.float64]:
    """A column of three numbers, `[rows, 3]`."""
    return np.asarray(rows[name].combine_chunks().flatten().to_numpy(), np.float64).reshape(-1, 3)


def _with_flags(text: str, *flags: str) -> str:
    return ",".join(sorted({*filter(None, text.split(",")), *flags}))


def _divide(
    accepted: pa.Table,
    values: NDArray[np.int8],
    labels: LabelTable,
    places: NDArray[np.int64],
    source: tuple[Pseudonyms, int],
) -> tuple[NDArray[np.object_], NDArray[np.int8]]:
    """Roles and folds of the accepted slices: the table's own roles, or drawn from the patients' tokens."""
    pseudonyms, seed = source
    names, inverse = np.unique(_column(accepted, "patient").astype(str), return_inverse=True)
    masked = np.empty(len(names), object)
    masked[inverse] = _column(accepted, "token")
    tokens = np.array([pseudonyms.token(mask, name) for mask, name in zip(masked, names, strict=True)])
    tokens = tokens[inverse] if len(names) else np.array([], str)
    positive = values[:, _ANY]
    if labels.roles is None:
        roles = assign_roles(tokens, positive, seed)
    else:
        roles = labels.roles[places]
        check_roles(names[inverse], positive, roles)
    return roles, assign_folds(tokens, positive, roles, seed)


def _divide_slices(
    accepted: pa.Table, values: NDArray[np.int8], labels: LabelTable, seed: int
) -> tuple[NDArray[np.object_], NDArray[np.int8]]:
    """Roles and folds as if each slice were a patient of its own: leaky, and known to be."""
    if labels.roles is not None:
        raise RoleError("--split slice: it draws the roles, but the label table has its own; remove one of the two")
    names, positive = _column(accepted, "slice_id"), values[:, _ANY]
    roles = assign_roles(names, positive, seed)
    return roles, assign_folds(names, positive, roles, seed)


def _flag_shared_pixels(accepted: pa.Table, roles: NDArray[np.object_], split: Split) -> pa.Table:
    """Flag images that stand under two patients; near-empty slices, and those in which nothing shows, may be alike.

    Raises:
        RoleError: such an image is in two roles that were drawn by patient, so that a model could be tested on what
            it was trained on.
    """
    flags, patients = _column(accepted, "flags"), _column(accepted, "patient").astype(str)
    full = np.flatnonzero(~np.array(["near_empty" in flag or "blank" in flag for flag in flags], bool))
    images = _column(accepted, "pixels")[full].astype(str)
    for image in np.unique(images[partners(images, patients[full]) > 1]):
        rows = full[images == image]
        if split == "patient" and len(set(roles[rows])) > 1:
            who, where = (" and ".join(sorted(set(names[rows]))) for names in (patients, roles))
            raise RoleError(
                f"roles: equal pixels must not stand in two roles, got one image of {who} in {where}; remove one, or "
                "give both one role"
            )
        for row in rows:
            flags[row] = _with_flags(flags[row], "pixels_shared")
    return accepted.set_column(accepted.schema.get_field_index("flags"), "flags", pa.array(flags, pa.string()))


def fingerprint(assembly: Assembly, windows: Sequence[WindowSpec], size: int, slab_mm: float = 0) -> str:
    """What the dataset holds, whatever the order of the work and the key of the pseudonyms."""
    settings = [[window.model_dump() for window in windows], size, *[slab_mm] * (slab_mm > 0)]
    digest = hashlib.sha256(json.dumps(settings).encode())
    order = np.asarray(pc.sort_indices(assembly.accepted["slice_id"]))
    names, pixels = _column(assembly.accepted, "slice_id"), _column(assembly.accepted, "pixels")
    for row in order:
        line = (names[row], pixels[row], assembly.values[row].tolist(), assembly.roles[row], int(assembly.folds[row]))
        digest.update(repr(line).encode())
    if assembly.examinations is not None:
        digest.update(assembly.examinations.of_slices[order].tobytes())  # pseudonyms depend on the key
    return digest.hexdigest()[:32]
