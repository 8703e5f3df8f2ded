from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from ich_ray.assess.cross_fitting import cross_fitted
from ich_ray.assess.ensemble_gain import format_ensemble_gain, measure_ensemble
from ich_ray.bundle.bundle import Bundle
from ich_ray.bundle.card import EnsembleFigure, EnsembleGain
from ich_ray.bundle.logit_scaling import fit_scaling
from ich_ray.bundle.members import Member
from ich_ray.data.dataset import PreparedDataset, SliceSet
from ich_ray.trial_records import WeightsNote
from tests.bundle.test_ensemble import CARD, network
from tests.searched import PARAMETERS


def test_the_ensemble_is_set_beside_its_first_network(dataset: PreparedDataset) -> None:
    first, second = network(0), network(1)
    card = CARD.model_copy(update={"parameters": PARAMETERS, "image_shape": dataset.image_shape})
    unsaved = WeightsNote(file="model.safetensors", sha256="0" * 64)
    member = Member(trial=1, seed=1, parameters=PARAMETERS, shifts=(0.0,), weights=unsaved)
    bundle = Bundle(first, card.model_copy(update={"members": (member,)}), others=[second])
    slices = SliceSet(dataset, np.flatnonzero(dataset.column("role") != "test"))
    gain = measure_ensemble(bundle, slices, bundle.slice_logits(slices), "temperature", 0.0)
    assert gain is not None
    assert (gain.networks, gain.folds) == (2, 5)
    labels, logits = slices.labels.astype(float), bundle.slice_logits(slices)
    fit = partial(fit_scaling, "temperature", prior_shift=0.0)
    probabilities = cross_fitted(labels, logits, slices.patients, 5, fit)
    expected = sklearn_metrics.roc_auc_score(slices.labels, probabilities)
    assert gain.roc_auc.ensemble == pytest.approx(expected)
    assert gain.roc_auc.difference == pytest.approx(gain.roc_auc.ensemble - gain.roc_auc.single)
    assert gain.roc_auc.low is not None
    assert gain.ensemble_ms > 0
    assert gain.single_ms > 0


def test_one_bleeding_patient_tells_nothing(dataset: PreparedDataset) -> None:
    held = dataset.role("train")
    bleeding = held.patients[held.labels == 1][0]
    rows = held.rows[(held.patients == bleeding) | (held.labels == 0)]
    few = SliceSet(dataset, rows[~np.isin(dataset.column("patient")[rows], held.patients[held.labels == 1])])
    few = SliceSet(dataset, np.union1d(few.rows, held.rows[held.patients == bleeding]))
    bundle = Bundle(network(0), CARD)
    assert measure_ensemble(bundle, few, np.zeros(len(few), np.float32), "temperature", 0.0) is None


def test_a_gain_is_told_on_a_line_with_its_cost() -> None:
    figure = EnsembleFigure(single=0.8, ensemble=0.85, difference=0.05, low=0.01, high=0.09)
    gain = EnsembleGain(
        networks=3, folds=5, log_loss=figure, average_precision=figure, roc_auc=figure, single_ms=1.5, ensemble_ms=4.5
    )
    said = format_ensemble_gain(gain)
    assert "average precision 0.8000 -> 0.8500 (+0.0500, +0.0100 to +0.0900)" in said
    assert said.endswith("1.5 -> 4.5 ms a slice")
