from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ich_ray.data.series_order import ordered_series
from ich_ray.errors import ConfigError
from ich_ray.model.sequence_parameters import SequenceParameters
from ich_ray.training.sequence_batches import PlaceFeatures
from ich_ray.training.sequence_loss import SequenceLoss
from ich_ray.training.sequence_set import SequenceSet

CPU = torch.device("cpu")
NAN = math.nan


def given(targets: list[list[float]], study: list[list[float]], series: list[int], places: list[float]) -> SequenceSet:
    return SequenceSet(
        features=np.zeros((len(targets), 1), np.float16),
        order=ordered_series(np.array(series), np.array(places)),
        targets=np.array(targets, np.float32),
        study_targets=np.array(study, np.float32),
        studies=np.arange(len(study)),
        patients=np.array(["p"] * len(targets), object),
        labels=("subdural", "any"),
        fingerprint="",
    )


def loss_of(told: SequenceSet, logit: float, study_logit: float, **more: float) -> float:
    parameters = SequenceParameters.model_validate({"any_weight": 3.0, "study_weight": 0.5, **more})
    loss, places = SequenceLoss(parameters, told, CPU), PlaceFeatures(told.features, told.order, CPU)
    which = np.arange(len(told))
    batch = places.take(which)
    slices = torch.full((*batch.mask.shape, 2), logit)
    return float(loss(slices, torch.full((len(told), 2), study_logit), batch, torch.from_numpy(which)))


def test_a_series_counts_as_one_however_many_slices_it_has() -> None:
    told = given([[0, 1], [0, 0], [0, 0], [0, 0]], [[0, 1], [0, 0]], [0, 0, 0, 1], [0, 5, 10, 0])
    positive, negative = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    of_subdural, of_any = 2 * negative, 3 * ((positive + 2 * negative) / 3 + negative)
    assert loss_of(told, 2.0, 0.0, study_weight=0.0) == pytest.approx((of_subdural + of_any) / 8 * 2)
    assert loss_of(told, 2.0, 0.0) == pytest.approx((of_subdural + of_any) / 8 * 2 + 0.5 * 2 * math.log(2))


def test_labels_that_are_not_known_count_nothing() -> None:
    places = [0.0, 5, 0]
    all_known = given([[0, 1], [0, 0], [0, 0]], [[NAN, 1], [NAN, 0]], [0, 0, 1], places)
    unknown = given([[NAN, 1], [0, 0], [NAN, 0]], [[NAN, 1], [NAN, 0]], [0, 0, 1], places)
    positive, negative = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert loss_of(all_known, 2.0, 0.0, study_weight=0.0) == pytest.approx(
        (2 * negative + 3 * (positive + negative) / 2 + 3 * negative) / 8 * 2
    )
    assert loss_of(unknown, 2.0, 0.0, study_weight=0.0) == pytest.approx(
        (negative + 3 * (positive + negative) / 2 + 3 * negative) / 7 * 2
    )
    assert loss_of(unknown, 0.0, 2.0, study_weight=1.0) == pytest.approx(2 * math.log(2) + positive + negative)


def test_slices_at_one_place_each_have_their_label() -> None:
    told = given([[0, 1], [0, 0], [0, 0]], [[0, 1]], [0, 0, 0], [5, 5, 5])
    assert len(told.order.places_mm) == 1
    positive, negative = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    expected = (negative + 3 * (positive + 2 * negative) / 3) / 4
    assert loss_of(told, 2.0, 0.0, study_weight=0.0) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("targets", "study", "said"),
    [
        ([[0.0, 0.0], [0, 0]], [[0.0, 0.0]], "slices 0 with and 2 without and examinations 0 with and 1 without"),
        ([[1.0, 1.0], [1, 1]], [[NAN, NAN]], "slices 2 with and 0 without and examinations 0 with and 0 without"),
    ],
)
def test_labels_of_one_class_are_refused(targets: list[list[float]], study: list[list[float]], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        loss_of(given(targets, study, [0, 0], [0, 5]), 0.0, 0.0)
