"""The optimizer of a draw, and its state as tensors by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from ich_ray.model.fields import OptimizationFields

__all__ = ["build_optimizer", "optimizer_tensors", "restore_optimizer"]


def build_optimizer(
    parameters: OptimizationFields, weights: list[nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer of these weights, fused on an accelerator."""
    groups: list[dict[str, Any]] = [{"params": weights}] if parameters.decay_norms else _norms_apart(weights)
    rate, decay, fused = parameters.learning_rate, parameters.weight_decay, device.type == "cuda"
    if parameters.optimizer == "sgd":
        nesterov = parameters.momentum > 0
        return torch.optim.SGD(groups, rate, parameters.momentum, weight_decay=decay, nesterov=nesterov, fused=fused)
    kind = torch.optim.Adam if parameters.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, rate, weight_decay=decay, fused=fused)


def _norms_apart(weights: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Weights that decay, and the scales and shifts that do not: those of one axis, which norms and biases have."""
    flat = [weight for weight in weights if weight.ndim <= 1]
    decaying: dict[str, Any] = {"params": [weight for weight in weights if weight.ndim > 1]}
    groups = [decaying, {"params": flat, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Its state as `<index of the weight>.<key>`, not copied; weights are counted group after group."""
    return {
        f"{index}.{key}": value
        for index, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give an optimizer the state that `optimizer_tensors` told of one for the same weights."""
    weights: list[torch.Tensor] = [weight for group in optimizer.param_groups for weight in group["params"]]
    per_weight: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        per_weight.setdefault(int(index), {})[key] = _laid_out_as(weights[int(index)], value)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": per_weight})


def _laid_out_as(weight: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A copy in the memory layout of the weight that it is for: fused optimizers go through both in memory order."""
    if value.shape != weight.shape:
        return value.clone()
    return torch.empty_like(weight, dtype=value.dtype, device=value.device).copy_(value)
