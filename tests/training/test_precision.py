"""One precision by device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from ich_ray.training.precision import autocast, precision_of, precision_on

if TYPE_CHECKING:
    from ich_ray.vocabulary import Precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("capability", "precision"),
    [
        ((0, 0), "float32"),
        ((7, 0), "float32"),  # V100
        ((7, 5), "float32"),  # T4
        ((8, 0), "bfloat16 channels_last"),  # A100
        ((8, 9), "bfloat16 channels_last"),  # L4
        ((9, 0), "bfloat16 channels_last"),  # H100
        ((12, 0), "bfloat16 channels_last"),
    ],
)
def test_the_rule(capability: tuple[int, int], precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert precision_of(capability) == precision
    assert precision_on(GPU) == precision


@pytest.mark.parametrize("wanted", ["float32", "bfloat16 channels_last"])
def test_what_a_search_has_written_down_goes_before_the_device(
    wanted: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: pytest.fail("nobody need ask"))
    assert precision_on(GPU, wanted) == wanted
    assert precision_on(CPU, wanted) == "float32"


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bfloat16 channels_last", torch.bfloat16)]
)
def test_a_precision_is_that_of_a_convolution(precision: Precision, dtype: torch.dtype) -> None:
    with autocast(precision, CPU):
        assert torch.nn.Conv2d(3, 4, 3)(torch.rand(2, 3, 8, 8)).dtype == dtype
