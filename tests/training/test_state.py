"""What a checkpoint that somebody else may have written must be before anything goes on from it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from ich_ray.errors import ConfigError, IntegrityError
from ich_ray.model.pretrained_weights import read_weights
from ich_ray.training.state import TrainingState

TENSORS = {"weights.a": torch.arange(6.0).reshape(2, 3), "optimizer.0.step": torch.tensor(3.0)}
NUMBERS = {"images_seen": 8, "elapsed_s": 1.5, "plan": {"seed": 1}}
LAYOUT = {"a": (torch.float32, (2, 3))}


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    TrainingState(TENSORS, NUMBERS).save(tmp_path / "a.safetensors")
    found = TrainingState.load(tmp_path / "a.safetensors", LAYOUT)
    assert found.numbers == NUMBERS
    assert torch.equal(found.part("weights")["a"], TENSORS["weights.a"])


@pytest.mark.parametrize(
    "layout",
    [{}, {"b": LAYOUT["a"]}, {**LAYOUT, "b": LAYOUT["a"]}, {"a": (torch.float32, (3, 2))},
     {"a": (torch.float64, (2, 3))}],
)  # fmt: skip
def test_its_weights_are_those_of_the_network(tmp_path: Path, layout: Any) -> None:
    TrainingState(TENSORS, NUMBERS).save(tmp_path / "a.safetensors")
    with pytest.raises(IntegrityError, match=r"a\.safetensors: a training state must be there, whole, got ValueError"):
        TrainingState.load(tmp_path / "a.safetensors", layout)


@pytest.mark.parametrize(
    "average", [{"b": torch.ones(2, 3)}, {"a": torch.ones(2, 4)}, {"a": torch.ones(2, 3).double()}]
)
def test_its_average_is_of_the_same_network(tmp_path: Path, average: dict[str, torch.Tensor]) -> None:
    """It is what a bundle gets."""
    tensors = {**TENSORS, **{f"average.{name}": value for name, value in average.items()}}
    TrainingState(tensors, NUMBERS).save(tmp_path / "a.safetensors")
    with pytest.raises(IntegrityError, match="got ValueError: averaged weights of another network; go on from"):
        TrainingState.load(tmp_path / "a.safetensors", LAYOUT)


@pytest.mark.parametrize(
    "numbers",
    [
        "",
        "[]",
        "1" * 5000,
        "[" * 100_000,
        json.dumps({**NUMBERS, "images_seen": -1}),
        json.dumps({**NUMBERS, "images_seen": 1.5}),
        json.dumps({**NUMBERS, "images_seen": True}),
        json.dumps({**NUMBERS, "elapsed_s": float("nan")}),
        json.dumps({**NUMBERS, "elapsed_s": 10**400}),
        json.dumps({**NUMBERS, "elapsed_s": "long"}),
        json.dumps({**NUMBERS, "plan": None}),
        json.dumps({"images_seen": 1, "elapsed_s": 1.0}),
    ],
    ids=lambda text: text[:60],
)
def test_its_numbers_are_numbers(tmp_path: Path, numbers: str) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(save(TENSORS, metadata={"numbers": numbers}))
    with pytest.raises(IntegrityError, match=r"a\.safetensors: a training state must be there, whole, got"):
        TrainingState.load(file)


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(IntegrityError, match=r"pipe\.safetensors: must be a file, got something else"):
        TrainingState.load(tmp_path / "pipe.safetensors")
    with pytest.raises(ConfigError, match=r"a safetensors file must be given, got '.*pipe\.safetensors'"):
        read_weights(str(tmp_path / "pipe.safetensors"))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_weights_to_start_from_are_finite(tmp_path: Path, number: float) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(save({"b": torch.ones(2), "a": torch.tensor([0.0, number])}))
    with pytest.raises(IntegrityError, match=r"a\.safetensors: weights must be finite, got others in a; fetch it"):
        read_weights(str(file))
