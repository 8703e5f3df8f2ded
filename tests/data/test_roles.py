"""Roles and folds: by patient, stratified, seeded, and the same in every order."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_ray.data.roles import assign_folds, assign_roles, check_roles
from ich_ray.errors import RoleError
from ich_ray.vocabulary import ROLES


def cohort(positive: int, negative: int, slices: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Patients by name, and which slices are positive: the last slice of each positive patient."""
    patients = np.repeat([f"p{number}" for number in range(positive + negative)], slices)
    labels = np.zeros(len(patients), int)
    labels[slices - 1 : positive * slices : slices] = 1
    return patients, labels


def kinds(patients: np.ndarray, positive: np.ndarray, roles: np.ndarray) -> Counter[tuple[str, bool]]:
    bleeding = set(patients[positive == 1])
    return Counter(
        (role, patient in bleeding) for patient, role in {*zip(patients.tolist(), roles.tolist(), strict=True)}
    )


def test_fractions_hold_in_both_kinds_of_patients() -> None:
    patients, positive = cohort(40, 160)
    assert kinds(patients, positive, assign_roles(patients, positive, seed=0)) == {
        ("train", True): 24, ("validation", True): 6, ("calibration", True): 5, ("test", True): 5,
        ("train", False): 96, ("validation", False): 24, ("calibration", False): 20, ("test", False): 20,
    }  # fmt: skip


def test_the_result_is_known() -> None:
    patients, positive = cohort(4, 4, slices=1)
    assert assign_roles(patients, positive, seed=0).tolist() == [
        "test", "calibration", "validation", "train", "validation", "train", "test", "calibration",
    ]  # fmt: skip


def test_another_seed_divides_otherwise() -> None:
    patients, positive = cohort(40, 160)
    assert (assign_roles(patients, positive, seed=0) != assign_roles(patients, positive, seed=1)).any()


@given(st.integers(4, 20), st.integers(4, 30), st.integers(1, 4), st.integers(0, 5), st.randoms())
def test_laws(positive: int, negative: int, slices: int, seed: int, random: np.random.Generator) -> None:
    patients, labels = cohort(positive, negative, slices)
    roles = assign_roles(patients, labels, seed)
    check_roles(patients, labels, roles)  # one role a patient, both kinds in each role
    order = list(range(len(patients)))
    random.shuffle(order)
    assert assign_roles(patients[order], labels[order], seed).tolist() == roles[order].tolist()
    folds = assign_folds(patients, labels, roles, seed)
    assert assign_folds(patients[order], labels[order], roles[order], seed).tolist() == folds[order].tolist()
    assert set(folds) <= set(range(5))
    for patient in set(patients):
        assert len(set(folds[patients == patient])) == 1
    for role in ROLES:
        sizes = np.bincount(folds[roles == role], minlength=5) / slices
        assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        (3, 10, "needs a patient with a positive slice, got 3 for 4 roles"),
        (10, 3, "needs a patient without a positive slice, got 3 for 4 roles"),
        (0, 10, "got 0 for 4 roles"),
    ],
)
def test_too_few_patients_are_named(positive: int, negative: int, message: str) -> None:
    with pytest.raises(RoleError, match=message):
        assign_roles(*cohort(positive, negative), seed=0)


def test_given_roles_are_checked() -> None:
    patients, positive = cohort(4, 4)
    roles = assign_roles(patients, positive, seed=0)
    check_roles(patients, positive, roles)
    torn = roles.copy()
    torn[0] = "train" if torn[0] != "train" else "test"
    with pytest.raises(RoleError, match="a patient must be in one role, got 1 in two, such as p0"):
        check_roles(patients, positive, torn)
    with pytest.raises(RoleError, match=r"validation needs patients with and without .* got 0 with and 0 without"):
        check_roles(patients, positive, np.full(len(patients), "train", object))
