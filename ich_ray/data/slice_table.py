"""Validate slices.parquet before it is used: columns of their types, a row per slice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ich_ray.ct.head_box import HEAD_BOX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["GEOMETRY", "VIEW", "check_columns", "places_of"]

# How a slice was taken; datasets of version 0.1.0 have none of these. A number that is not known is NaN.
GEOMETRY = ("spacing_mm", "thickness_mm", "tilt_deg", "kernel")
# What an image shows: the side of the square that it is padded to, and where the head lies in it. Datasets of 0.1.0 and
# of its first successors have none of these.
VIEW = ("side_mm", *HEAD_BOX)

_NEEDED = ("any", "block", "patient", "role", "row")
_TEXT = {"slice_id", "file", "patient", "study", "series", "role", "flags", "representation", "kernel"}
_NUMBERS = {"position_mm", "slab_mm", "spacing_mm", "thickness_mm", "tilt_deg", *VIEW}
_INTEGERS = {"block", "row", "fold"}


def check_columns(table: pa.Table, labels: Sequence[str], roles: Sequence[str], labeled: bool = True) -> None:
    """Refuse a table that cannot be one of slices. Columns beyond the known ones may be there.

    Slices that are not `labeled` may lack `any`.

    Raises:
        ValueError: a column that everything needs is missing or has a null, or one has another type or other values.
    """
    names = table.column_names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"one column {twice[0]} must be there, got several")
    if missing := sorted({*_NEEDED} - {*names}):
        raise ValueError(f"a column {missing[0]} must be there, got none")
    for name in names:
        kind, nulls = table.schema.field(name).type, table[name].null_count
        wanted = _wanted(name, labels)
        if wanted and not _holds(kind, wanted):
            raise ValueError(f"the column {name} must hold {wanted}, got {str(kind)[:80]}")
        if nulls and (name in _NEEDED or name in _INTEGERS) and (labeled or name != "any"):
            raise ValueError(f"the column {name} must have a value in each row, got {nulls} nulls")
    for name in {*labels} & {*names}:
        if not _within(table[name], (0, 1)):
            raise ValueError(f"the column {name} must hold 0 and 1, got others")
    if not _within(table["role"], roles):
        raise ValueError(f"the column role must hold {', '.join(roles)}, got others")


def _wanted(name: str, labels: Sequence[str]) -> str:
    if name in _TEXT:
        return "text"
    if name in _NUMBERS:
        return "numbers"
    return "integers" if name in _INTEGERS or name in labels else ""


def _holds(kind: pa.DataType, wanted: str) -> bool:
    if wanted == "text":
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
    return bool(pa.types.is_integer(kind) or (wanted == "numbers" and pa.types.is_floating(kind)))


def _within(column: pa.ChunkedArray, allowed: Sequence[object]) -> bool:
    return {*pc.unique(column).to_pylist()} <= {None, *allowed}


def places_of(table: pa.Table, lengths: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The block and row of each slice, each row of blocks of these `lengths` used once.

    Addresses are then valid.

    Raises:
        ValueError: a slice lies in no block, or two in one place.
    """
    if sum(lengths) != len(table):  # first: what a manifest says of lengths may fit no array
        raise ValueError(f"each slice must lie in a block, got {len(table)} slices for {sum(lengths)} images")
    blocks, rows = (table[name].to_numpy().astype(np.int64) for name in ("block", "row"))
    held = np.array(lengths, np.int64)
    inside = (blocks >= 0) & (blocks < len(held)) & (rows >= 0)
    if not inside.all() or (rows >= held[blocks]).any():
        raise ValueError("each slice must lie in a block, got one outside")
    taken = np.zeros(len(table), bool)
    taken[(np.cumsum(held) - held)[blocks] + rows] = True
    if not taken.all():
        raise ValueError("each slice must lie in a block, got two in one place")
    return blocks, rows
