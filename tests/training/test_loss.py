"""Weighted cross-entropy, and what the weights do to the probabilities."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ich_ray.errors import ConfigError
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
@pytest.mark.parametrize("columns", [(), (1,)], ids=["[n]", "[n, 1]"])
@pytest.mark.parametrize("outputs", [(), (1,)], ids=["logits [n]", "logits [n, 1]"])
def test_one_label_costs_what_pytorch_says_to_the_last_bit(
    loss: str, columns: tuple[int, ...], outputs: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    targets, index = (torch.rand(501) < 0.3).float(), torch.randperm(501)[:67]
    w0, w1 = class_weights(loss, int(targets.sum()), int((1 - targets).sum()))
    flat = torch.randn(67).requires_grad_()
    weights = (w0 + (w1 - w0) * targets)[index]
    expected = binary_cross_entropy_with_logits(flat, targets[index], weights, reduction="sum")
    expected.backward()
    logits = flat.detach().reshape(67, *outputs).requires_grad_()
    found = CrossEntropy(loss, targets.reshape(501, *columns))(logits, index)
    found.backward()
    assert torch.equal(found, expected)
    assert flat.grad is not None
    assert logits.grad is not None
    assert torch.equal(logits.grad.flatten(), flat.grad)


def test_labels_are_summed_and_an_unknown_one_costs_nothing() -> None:
    # of the first label 1 of 4 is positive, of the second 1 of 2, as two are unknown: w = 2/3 and 2; 1 and 1
    targets = torch.tensor([[1, NAN], [0, 1], [0, 0], [0, NAN]])
    loss = CrossEntropy("weighted", targets)
    logits = torch.zeros(3, 2, requires_grad=True)
    found = loss(logits, torch.tensor([0, 1, 3]))
    assert found.item() == pytest.approx(math.log(2) * (2 + (2 / 3 + 1) + 2 / 3))
    found.backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[-1, 0], [pytest.approx(1 / 3), -0.5], [pytest.approx(1 / 3), 0]]
    assert loss.shifts == (pytest.approx(math.log(1 / 3)), 0.0)


def test_a_label_that_is_known_of_one_class_only_is_refused() -> None:
    with pytest.raises(ConfigError, match="got 2 with and 0 without"):
        CrossEntropy("weighted", torch.tensor([[1.0, 1], [0, NAN], [0, 1]]))
