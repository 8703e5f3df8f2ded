"""Who is trained on and who is not: roles and folds by patient, stratified, seeded.

Knows patients by a name and whether they bleed; a patient is positive if any of their slices is. Patients are ordered
by a hash of seed and name, so the result does not depend on the order of the files, and nobody can tune it by renaming
them. Knows nothing of files.
"""

from __future__ import annotations

import hashlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from ich_ray.errors import RoleError
from ich_ray.vocabulary import ROLES, Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["DEFAULT_FRACTIONS", "FOLDS", "assign_folds", "assign_roles", "check_roles"]

# Validation ranks trials and must be large; calibration fits three numbers; test must give intervals one can read.
DEFAULT_FRACTIONS: Mapping[Role, float] = MappingProxyType(
    {"train": 0.6, "validation": 0.15, "calibration": 0.125, "test": 0.125}
)
FOLDS = 5


def assign_roles(
    patients: NDArray[Any], positive: NDArray[Any], seed: int, fractions: Mapping[Role, float] = DEFAULT_FRACTIONS
) -> NDArray[np.object_]:
    """The role of each slice; all slices of a patient share one.

    Positive and negative patients are divided separately, in the given fractions as exactly as whole patients allow,
    with at least one of each kind per role.

    Args:
        patients: names `[n]`, one per slice.
        positive: whether the slice is positive `[n]`.
        seed: another seed divides otherwise.
        fractions: of the patients, per role, adding up to 1.

    Returns:
        `[n]` of `train`, `validation`, `calibration` or `test`.

    Raises:
        RoleError: there are too few positive or negative patients to have one in each role.
    """
    names, of_slice, bleeds = _by_patient(patients, positive)
    roles = np.empty(len(names), object)
    for kind in (True, False):
        members = _shuffled(names, np.flatnonzero(bleeds == kind), f"roles:{seed}")
        wanted = [role for role in ROLES if fractions[role] > 0]
        if len(members) < len(wanted):
            raise RoleError(
                f"roles: each of {', '.join(wanted)} needs a patient {'with' if kind else 'without'} a positive slice, "
                f"got {len(members)} for {len(wanted)} roles; add patients"
            )
        counts = _shares(len(members), [fractions[role] for role in wanted])
        roles[members] = np.repeat(np.array(wanted, object), counts)
    return roles[of_slice]


def assign_folds(
    patients: NDArray[Any], positive: NDArray[Any], roles: NDArray[Any], seed: int, folds: int = FOLDS
) -> NDArray[np.int8]:
    """Assign each slice a fold 0..folds-1, by patient.

    Folds are equal within each role and kind of patient as far as they go.
    """
    names, of_slice, bleeds = _by_patient(patients, positive)
    role_of = np.empty(len(names), object)
    role_of[of_slice] = roles
    fold = np.empty(len(names), np.int8)
    for role in ROLES:
        # One row of positives, then negatives: remainders of both kinds then do not pile up in the same folds.
        parts = [_shuffled(names, np.flatnonzero((role_of == role) & (bleeds == kind)), f"folds:{seed}")
                 for kind in (True, False)]  # fmt: skip
        members = np.concatenate(parts)
        fold[members] = np.arange(len(members)) % folds
    return fold[of_slice]


def check_roles(patients: NDArray[Any], positive: NDArray[Any], roles: NDArray[Any]) -> None:
    """Hold for roles that came with the labels what `assign_roles` guarantees.

    Raises:
        RoleError: a patient in two roles, or a role without a positive or without a negative patient.
    """
    names, of_slice, bleeds = _by_patient(patients, positive)
    role_of = np.empty(len(names), object)
    role_of[of_slice] = roles
    torn = np.unique(of_slice[role_of[of_slice] != roles])
    if len(torn):
        raise RoleError(
            f"roles: a patient must be in one role, got {len(torn)} in two, such as {names[torn[0]]}; correct the "
            "role column"
        )
    for role in ROLES:
        here = role_of == role
        with_positive, without = int((here & bleeds).sum()), int((here & ~bleeds).sum())
        if not with_positive or not without:
            raise RoleError(
                f"roles: {role} needs patients with and without a positive slice, got {with_positive} with and "
                f"{without} without; add patients or correct the role column"
            )


def _by_patient(
    patients: NDArray[Any], positive: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.bool_]]:
    """Distinct names, the place of each slice's patient among them, and which patients are positive."""
    names, of_slice = np.unique(np.asarray(patients).astype(str), return_inverse=True)
    return names, of_slice, np.bincount(of_slice, np.asarray(positive) == 1, len(names)) > 0


def _shuffled(names: NDArray[Any], members: NDArray[np.int64], key: str) -> NDArray[np.int64]:
    """`members` in the order of the keyed hashes of their names."""
    digests = [hashlib.blake2b(names[member].encode(), key=key.encode()[:64]).digest() for member in members]
    return members[sorted(range(len(members)), key=digests.__getitem__)]


def _shares(count: int, fractions: list[float]) -> list[int]:
    """`count` divided by largest remainders, at least 1 for each."""
    exact = np.array(fractions) / sum(fractions) * count
    shares = np.maximum(np.floor(exact).astype(int), 1)
    while shares.sum() < count:
        shares[np.argmax(exact - shares)] += 1
    while shares.sum() > count:
        shares[np.argmax(np.where(shares > 1, shares - exact, -np.inf))] -= 1
    return [int(share) for share in shares]
