from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn import metrics

from ich_ray.assess.paired_changes import FIGURES
from ich_ray.model.sequence_networks import SequenceNetwork, build_sequence_network
from ich_ray.model.sequence_parameters import SequenceParameters
from ich_ray.refit.adaptation_figures import changed_figures
from ich_ray.refit.adaptation_training import adapted_parameters, budget_of, fit_to_labels, scaled_loss
from ich_ray.training.sequence_batches import sequence_logits
from tests.sequences import FEATURES, make_series, without_slice_labels

CPU = torch.device("cpu")


@pytest.fixture
def network() -> SequenceNetwork:
    torch.manual_seed(0)
    return build_sequence_network(SequenceParameters(hidden=8, projection=8, study_weight=0), FEATURES, 2)


@pytest.mark.parametrize(("series", "shown"), [(10, 4_000), (500, 10_000), (100_000, 200_000)])
def test_the_budget_is_some_passes_within_bounds(series: int, shown: int) -> None:
    assert budget_of(series) == shown


def test_rates_are_those_of_an_adaptation_and_the_rest_is_the_draw(network: SequenceNetwork) -> None:
    whole, head = (adapted_parameters(network.drawn, study_alone) for study_alone in (False, True))
    assert (whole.learning_rate, head.learning_rate, whole.study_weight) == (3e-4, 3e-3, 0.25)
    assert whole.hidden == network.drawn.hidden == 8


def test_scale_and_shift_of_logits_are_no_loss() -> None:
    random = np.random.default_rng(0)
    targets = (random.random(200) < 0.4).astype(np.float32)
    logits = (targets + random.normal(0, 1, 200)).astype(np.float32)[:, None]
    assert scaled_loss(targets, 3 * logits - 7) == pytest.approx(scaled_loss(targets, logits), abs=1e-6)
    assert scaled_loss(targets, logits) < metrics.log_loss(targets, expit(logits[:, 0]))
    assert np.isnan(scaled_loss(np.full(3, np.nan, np.float32), logits[:3]))


def test_what_is_kept_is_the_best_report_and_the_start_is_not_touched(
    network: SequenceNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ich_ray.refit.adaptation_training.budget_of", lambda _: 400)
    begun = {name: value.clone() for name, value in network.state_dict().items()}
    train, validation = (without_slice_labels(make_series(30, seed=seed)) for seed in (1, 2))
    own = np.zeros((len(validation.targets), 2), np.float32)
    found = fit_to_labels(network, train, validation, own, study_alone=True, device=CPU)
    assert len(found.losses) == 21
    assert found.best == 20 * int(np.argmin(found.losses))
    assert all(torch.equal(value, begun[name]) for name, value in network.state_dict().items())
    network.load_state_dict(found.weights)
    study = sequence_logits(network, validation.features, validation.order).study
    truth = validation.study_targets[:, -1]
    assert scaled_loss(truth, study[:, -1:]) == pytest.approx(min(found.losses), abs=1e-5)


def test_figures_of_a_change_are_cross_fitted_and_paired() -> None:
    random = np.random.default_rng(0)
    targets = np.append((np.arange(400) % 2).astype(np.float32), np.nan)
    before, after = (
        np.append(share * targets[:400] + random.normal(0, 1, 400), 0).astype(np.float32)[:, None] for share in (1, 3)
    )
    patients = np.array([f"p{number // 4}" for number in range(401)], object)
    found = changed_figures(targets, before, after, patients, "study_")
    assert [*found] == [f"study_{name}" for name in FIGURES]
    auc = found["study_roc_auc"]
    assert auc.before == pytest.approx(metrics.roc_auc_score(targets[:400], before[:400, 0]), abs=0.01)
    assert auc.low is not None
    assert auc.low > 0.1
    assert auc.difference == pytest.approx(auc.after - auc.before)
    same = changed_figures(targets, before, 2 * before, patients)["log_loss"]
    assert same.difference == pytest.approx(0, abs=1e-5)
    assert changed_figures(targets[:4], before[:4], after[:4], patients[:4]) == {}, "one patient is no two"
