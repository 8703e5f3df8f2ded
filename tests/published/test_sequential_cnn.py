from __future__ import annotations

import pytest
import torch
from torch import nn

from ich_ray.errors import ConfigError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network

M10 = {"architecture": "stacked_cnn", "convolutions": "6/3,3/2,3/2", "filters": 64, "padding": "valid",
       "input_batch_norm": True, "dense": 64, "dense_layers": 2, "dropout": 0.0}  # fmt: skip


def weights_of(size: int, **changes: object) -> int:
    with torch.device("meta"):
        network = build_network(Hyperparameters.model_validate({**M10, **changes}), (1, size, size))
    return sum(weight.numel() for weight in network.parameters())


def test_m10_has_the_weights_of_its_description() -> None:
    # 512 -> 507 -> 169 -> 167 -> 83 -> 81 -> 40 pixels a side; normalization, three convolutions, three layers.
    assert weights_of(512) == 2 + 2368 + 36928 + 36928 + (64 * 40 * 40 * 64 + 64) + (64 * 64 + 64) + 65


def test_m1_is_dense_alone() -> None:
    assert weights_of(512, convolutions="none", dense=32, dense_layers=1) == 2 + (512 * 512 * 32 + 32) + 33


def test_same_padding_keeps_the_sides() -> None:
    assert weights_of(16, convolutions="3/2,3/2", padding="same", dense=0) == 2 + 640 + 36928 + 64 * 4 * 4 + 1


def test_dropout_stands_where_m9_has_it() -> None:
    parameters = Hyperparameters.model_validate(
        {**M10, "convolutions": "3/2", "dropout_before_pool": 0.1, "dropout_after_pool": 0.2, "dropout_dense": 0.5}
    )
    body = build_network(parameters, (1, 32, 32)).body
    block, head = (body.get_submodule(path) for path in ("blocks.block1", "head"))
    kinds = [type(layer).__name__ for layer in block.children()]
    assert kinds == ["Conv2d", "ReLU", "Dropout", "MaxPool2d", "Dropout"]
    rates = [layer.p for layer in [*block.children(), *head.children()] if isinstance(layer, nn.Dropout)]
    assert rates == [0.1, 0.2, 0.5, 0.5, 0.0]


def test_frozen_below_the_head() -> None:
    network = build_network(Hyperparameters.model_validate({**M10, "unfreeze_from": "block3"}), (1, 64, 64))
    trained = {name.split(".")[1:3][-1] for name, weight in network.named_parameters() if weight.requires_grad}
    assert trained == {"block3", "1", "3", "6"}


def test_what_leaves_no_pixel_or_too_many_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match="a pixel must be left after each block, got none after 6/3, block 1"):
        build_network(Hyperparameters.model_validate(M10), (1, 7, 7))
    with pytest.raises(ConfigError, match="dense: at most"):
        weights_of(1024, convolutions="none", dense=4096)
