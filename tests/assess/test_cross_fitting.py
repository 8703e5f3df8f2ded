from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from ich_ray.assess.cross_fitting import cross_fitted, fold_count
from ich_ray.bundle.logit_scaling import fit_scaling
from ich_ray.data.dataset import PreparedDataset, SliceSet
from ich_ray.data.roles import assign_folds


@pytest.mark.parametrize(
    ("labels", "patients", "folds"),
    [
        ([1, 1, 0, 0, 0], "aabcd", 1),
        ([1, 0, 1, 0, 0], "aabbc", 2),
        ([1, 0] * 7, "aabbccddeeffgg", 5),
        ([0, 0], "ab", 0),
    ],
)
def test_as_many_folds_as_patients_of_the_rarer_kind_and_at_most_five(
    labels: list[int], patients: str, folds: int
) -> None:
    assert fold_count(np.array(labels, np.float64), np.array(list(patients), object)) == folds


def test_nobody_is_measured_by_a_scaling_that_was_fitted_on_them(dataset: PreparedDataset) -> None:
    slices = SliceSet(dataset, np.arange(len(dataset)))
    logits = (slices.labels * 2.0 - 1 + np.random.default_rng(0).normal(0, 2, len(slices))).astype(np.float32)
    fit = partial(fit_scaling, "platt", prior_shift=0.5)
    found = cross_fitted(slices.labels.astype(float), logits, slices.patients, 3, fit)
    fold = assign_folds(slices.patients, slices.labels, np.full(len(slices), "calibration", object), 0, 3)
    assert {*fold.tolist()} == {0, 1, 2}
    for number in range(3):
        held = fold == number
        assert not {*slices.patients[held]} & {*slices.patients[~held]}
        scaling = fit_scaling("platt", slices.labels[~held].astype(float), logits[~held], 0.5)
        assert found[held] == pytest.approx(scaling(logits[held]))
