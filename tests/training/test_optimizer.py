"""Which weights decay, and whose state is whose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network
from ich_ray.training.optimizer import build_optimizer, optimizer_tensors, restore_optimizer

CPU = torch.device("cpu")


def network(**given: Any) -> tuple[nn.Module, Hyperparameters]:
    torch.manual_seed(0)
    parameters = Hyperparameters(blocks=1, filters=4, dense=8, weight_decay=0.1, **given)
    return build_network(parameters, (3, 16, 16)), parameters


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_norms_and_biases_decay_only_where_they_shall(optimizer: str) -> None:
    for decay_norms, spared in (
        (True, set()),
        (False, {"body.blocks.block1.1.weight", "body.blocks.block1.1.bias", "body.head.0.bias", "body.head.3.bias"}),
    ):
        net, parameters = network(decay_norms=decay_norms, optimizer=optimizer)
        weights = dict(net.named_parameters())
        groups = build_optimizer(parameters, [*weights.values()], CPU).param_groups
        decays = {id(weight): group["weight_decay"] for group in groups for weight in group["params"]}
        assert len(decays) == len(weights)
        assert {name for name, weight in weights.items() if decays[id(weight)] == 0} == spared
        assert {decays[id(weight)] for name, weight in weights.items() if name not in spared} == {0.1}


def test_decay_moves_what_has_no_gradient_unless_it_is_spared() -> None:
    net, parameters = network(decay_norms=False, optimizer="adamw", learning_rate=0.5)
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    optimizer = build_optimizer(parameters, [*net.parameters()], CPU)
    for weight in net.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for name, weight in net.named_parameters():
        torch.testing.assert_close(weight.detach(), before[name] * (0.95 if weight.ndim > 1 else 1.0), msg=name)


@pytest.mark.parametrize("decay_norms", [True, False])
def test_a_state_comes_back_to_the_weights_that_it_was_of(decay_norms: bool) -> None:
    net, parameters = network(decay_norms=decay_norms)
    optimizers = [build_optimizer(parameters, [*net.parameters()], CPU) for _ in range(2)]
    net(torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)).sum().backward()
    optimizers[0].step()
    restore_optimizer(optimizers[1], optimizer_tensors(optimizers[0]))
    for weight in net.parameters():
        one, other = (optimizer.state[weight]["exp_avg"] for optimizer in optimizers)
        assert torch.equal(one, other)
        assert one.stride() == weight.stride() == other.stride()
