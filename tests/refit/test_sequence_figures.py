from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from ich_ray.refit import sequence_figures
from ich_ray.refit.sequence_figures import WAYS, ReadSlices, compared, cross_fitted, fit_blends, fit_weights

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
        study_targets=(series % 3 == 0).astype(np.float32),
        answering=np.ones(len(series), bool),
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


def test_patients_are_never_measured_by_what_they_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    real = sequence_figures._answers

    def spied(fitted_on: ReadSlices, read: ReadSlices) -> object:
        assert not {*fitted_on.patients} & {*read.patients}
        assert len(fitted_on.patients) + len(read.patients) == SERIES * SLICES
        measured.extend(read.patients)
        return real(fitted_on, read)

    monkeypatch.setattr(sequence_figures, "_answers", spied)
    assert cross_fitted(read(4))["none"]["roc_auc"]
    assert sorted(measured) == sorted(read(4).patients), "each once"


def test_logits_that_say_nothing_do_not_mislead_where_patients_are_few() -> None:
    """Ranked with the biases of their folds they would: ROC AUC 0.38 to 0.45 over 150 such draws."""

    def noise(seed: int) -> ReadSlices:
        few = read(seed).at(read(seed).series < 30)
        random = np.random.default_rng(seed)
        own, sequence, head = (random.normal(mean, 1, few.own.shape).astype(np.float32) for mean in (-3, 1, 0))
        return replace(few, own=own, sequence=sequence, head=head[few.series * SLICES])

    found = [cross_fitted(noise(seed)) for seed in range(30)]
    means = [np.mean([figures[way][name] or 0 for figures in found]) for way in WAYS
             for name in ("roc_auc", "study_roc_auc")]  # fmt: skip
    assert np.mean(means) == pytest.approx(0.5, abs=0.03)
    assert means == pytest.approx([0.5] * 6, abs=0.07)


def test_a_study_is_judged_by_the_series_that_answers_and_by_its_own_label() -> None:
    one, other = read(1), read(2)
    plain = compared(one, other)
    # A second series of each study, in front of it, of which the network and the model say the wrong thing, loudly.
    wrong = replace(
        other,
        own=np.where(other.series[:, None] % 3 == 0, -99, 99).astype(np.float32) * np.ones((1, 2), np.float32),
        head=-9 * other.head,
        series=other.series + SERIES,
        answering=np.zeros(len(other.series), bool),
    )
    names = [field.name for field in fields(ReadSlices)]
    both = ReadSlices(**{name: np.concatenate([getattr(wrong, name), getattr(other, name)]) for name in names})
    found = compared(one, both)
    for way in WAYS:
        assert {name: value for name, value in found[way].items() if name.startswith("study_")} == pytest.approx(
            {name: value for name, value in plain[way].items() if name.startswith("study_")}
        )
    assert found["none"]["roc_auc"] != plain["none"]["roc_auc"], "slices of all series count"
    turned = compared(one, replace(both, study_targets=1 - both.study_targets))
    assert turned["sequence"]["study_roc_auc"] == pytest.approx(1 - (found["sequence"]["study_roc_auc"] or 0))


def test_slices_without_a_study_and_studies_without_a_label_have_no_study_figures() -> None:
    one, other = read(1), read(2)
    apart = other.series >= 60
    left_out = (replace(other, studies=np.where(apart, -1, other.studies)),
                replace(other, study_targets=np.where(apart, np.nan, other.study_targets)))  # fmt: skip
    expected = compared(one, other.at(~apart))
    for some in left_out:
        for way in WAYS:
            found = compared(one, some)[way]
            assert found["study_log_loss"] == pytest.approx(expected[way]["study_log_loss"])
            assert found["study_average_precision"] == expected[way]["study_average_precision"]
    nobody = replace(other, study_targets=np.full(len(other.studies), np.nan, np.float32))
    assert compared(nobody, nobody)["sequence"]["study_roc_auc"] is None
    assert compared(nobody, nobody)["sequence"]["roc_auc"] is not None


def test_figures_that_are_not_defined_are_none_and_too_few_patients_are_not_parted() -> None:
    positive = read(6).at(read(6).targets[:, -1] == 1)
    assert compared(read(7), positive)["none"]["roc_auc"] is None
    assert cross_fitted(positive) == {}
