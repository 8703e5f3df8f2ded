"""Weighted cross-entropy, and what the weights do to the probabilities."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ich_ray.errors import ConfigError
from ich_ray.model.fields import OptimizationFields
from ich_ray.training.loss import CrossEntropy, class_weights, prior_shift

NAN = math.nan


def test_class_weights_have_mean_one() -> None:
    assert class_weights("weighted", 25, 75) == (pytest.approx(2 / 3), 2.0)
    assert class_weights("unweighted", 25, 75) == (1.0, 1.0)
    assert prior_shift("weighted", 25, 75) == pytest.approx(math.log(1 / 3))
    assert prior_shift("unweighted", 25, 75) == 0
    with pytest.raises(ConfigError, match="got 0 with and 10 without"):
        class_weights("weighted", 0, 10)


@pytest.mark.parametrize("loss", ["weighted", "unweighted"])
@pytest.mark.parametrize("outputs", [(), (1,)], ids=["logits [n]", "logits [n, 1]"])
def test_one_label_costs_what_pytorch_says_to_the_last_bit(
    loss: Literal["weighted", "unweighted"], outputs: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    targets, index = (torch.rand(501) < 0.3).float(), torch.randperm(501)[:67]
    w0, w1 = class_weights(loss, int(targets.sum()), int((1 - targets).sum()))
    flat = torch.randn(67).requires_grad_()
    weights = (w0 + (w1 - w0) * targets)[index]
    expected = binary_cross_entropy_with_logits(flat, targets[index], weights, reduction="sum")
    expected.backward()
    logits = flat.detach().reshape(67, *outputs).requires_grad_()
    found = CrossEntropy(OptimizationFields(loss=loss), targets[:, None])(logits, index)
    found.backward()
    assert torch.equal(found, expected)
    assert flat.grad is not None
    assert logits.grad is not None
    assert torch.equal(logits.grad.flatten(), flat.grad)


def test_a_slice_costs_the_mean_over_its_known_labels_and_any_counts_twice() -> None:
    # of the first label 1 of 2 is positive, as two are unknown; of `any` 1 of 4: w = 1 and 1; 2/3 and 2
    targets = torch.tensor([[NAN, 1], [1, 0], [0, 0], [NAN, 0]])
    loss = CrossEntropy(OptimizationFields(), targets)
    logits = torch.zeros(3, 2, requires_grad=True)
    found = loss(logits, torch.tensor([0, 1, 3]))
    assert found.item() == pytest.approx(math.log(2) * (2 + (1 + 2 * 2 / 3) / 3 + 2 / 3))
    found.backward()
    assert logits.grad is not None
    expected = [[0, -1], [-1 / 2 / 3, 2 / 3 * 2 / 3 / 2], [0, 1 / 3]]
    assert logits.grad.tolist() == [[pytest.approx(value) for value in row] for row in expected]
    assert loss.shifts == (0.0, pytest.approx(math.log(1 / 3)))


@pytest.mark.parametrize(("any_weight", "share"), [(1.0, 1 / 6), (2.0, 2 / 7), (5.0, 1 / 2)])
def test_the_weight_of_any_is_its_share_among_six(any_weight: float, share: float) -> None:
    targets = torch.tensor([[1.0] * 6, [0.0] * 6])
    loss = CrossEntropy(OptimizationFields(loss="unweighted", any_weight=any_weight), targets)
    surely_wrong = torch.tensor([[100.0] * 5 + [-1.0]])
    assert loss(surely_wrong, torch.tensor([0])).item() == pytest.approx(math.log(1 + math.e) * share)


def test_a_subtype_of_one_class_has_nothing_to_balance_and_any_is_refused() -> None:
    loss = CrossEntropy(OptimizationFields(), torch.tensor([[0.0, NAN, 1], [0, NAN, 0], [0, NAN, 0]]))
    assert loss.shifts == (0.0, 0.0, pytest.approx(math.log(1 / 2)))
    with pytest.raises(ConfigError, match="got 2 with and 0 without"):
        CrossEntropy(OptimizationFields(), torch.tensor([[1.0, 1], [0, 1]]))
