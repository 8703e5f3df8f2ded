from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ich_ray.refit.sequence_figures import ReadSlices, compared, cross_fitted, fit_blends, fit_weights

SERIES, SLICES = 120, 12


def read(seed: int = 0, says: float = 3.0) -> ReadSlices:
    """Studies of one series, of which every third bleeds over five slices; the network is unsure, the model is not."""
    random = np.random.default_rng(seed)
    series = np.repeat(np.arange(SERIES), SLICES)
    step = np.tile(np.arange(SLICES), SERIES)
    bleeds = (series % 3 == 0) & (step >= 4) & (step < 9)
    rare = bleeds & (series == 0)
    targets = np.stack([rare, bleeds], 1).astype(np.float32)
    head = np.where(series % 3 == 0, says, -says) + random.normal(0, 0.5, SERIES)[series]
    return ReadSlices(
        targets=targets,
        own=(targets + random.normal(0, 1, targets.shape)).astype(np.float32),
        sequence=(says * (2 * targets - 1) + random.normal(0, 1, targets.shape)).astype(np.float32),
        head=np.stack([head, head], 1).astype(np.float32),
        series=series,
        studies=series,
        places_mm=step * 5.0,
        patients=np.array([f"p{number}" for number in series], object),
    )


def test_weights_have_the_least_log_loss_and_leave_out_what_nobody_knows() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (20_000, 2))
    truth = (random.random(20_000) < 1 / (1 + np.exp(-(0.5 * logits[:, 0] + 1.5 * logits[:, 1] - 1)))).astype(float)
    found = fit_weights(truth, logits)
    assert found.weights == pytest.approx((0.5, 1.5), abs=0.07)
    assert found.bias == pytest.approx(-1, abs=0.07)
    unknown = np.append(truth, [np.nan] * 5)
    assert fit_weights(unknown, np.concatenate([logits, np.full((5, 2), 99.0)])) == found


def test_no_weight_turns_a_ranking_round() -> None:
    truth = np.array([0.0, 1.0] * 20)
    found = fit_weights(truth, -truth[:, None])
    assert found.weights == (1.0,), "and none makes all slices equal"
    assert found.bias == pytest.approx(0.5, abs=0.01)


def test_few_patients_fit_a_bias_alone_so_that_slices_keep_their_order() -> None:
    few = read().at(read().series < 15)  # five of them bleed
    own, of_any = fit_blends(few)
    assert own.weights == of_any.weights == (0.5, 0.5)
    both = np.stack([few.own, few.sequence], 2)[:, -1]
    mean = 1 / (1 + np.exp(-of_any(both)))
    assert mean.mean() == pytest.approx(few.targets[:, -1].mean(), abs=0.02)


def test_a_label_that_few_patients_have_is_weighed_as_any() -> None:
    rare, of_any = fit_blends(read())
    assert rare == of_any
    often = read()
    often.targets[:, 0] = often.targets[:, 1]
    own, _ = fit_blends(often)
    assert own != of_any


def test_neighbors_help_and_a_model_that_knows_helps_more() -> None:
    of_studies = ("study_average_precision", "study_roc_auc")
    for figures, more in ((compared(read(1), read(2)), of_studies), (cross_fitted(read(3)), ())):
        for metric in ("average_precision", "roc_auc", *more):
            none, smoothing, sequence = (figures[way][metric] or 0 for way in ("none", "smoothing", "sequence"))
            assert none < smoothing < sequence
        assert (figures["sequence"]["log_loss"] or 0) < (figures["smoothing"]["log_loss"] or 0)


def test_patients_are_never_measured_by_what_they_fitted() -> None:
    one = read(4)
    noise = np.random.default_rng(5).normal(0, 1, one.own.shape).astype(np.float32)
    worthless = cross_fitted(replace(one, own=noise, sequence=noise, head=noise))
    assert all((figures["roc_auc"] or 0) < 0.55 for figures in worthless.values())


def test_figures_that_are_not_defined_are_none_and_too_few_patients_are_not_parted() -> None:
    positive = read(6).at(read(6).targets[:, -1] == 1)
    assert compared(read(7), positive)["none"]["roc_auc"] is None
    assert cross_fitted(positive) == {}
