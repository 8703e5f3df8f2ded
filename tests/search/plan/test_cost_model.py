from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network
from ich_ray.search.plan import cost_model
from ich_ray.search.plan.cost_model import (
    Memory,
    Speed,
    TrialMemory,
    earlier_speed,
    estimate_memory,
    first_draws,
    measured_speed,
    trial_memory,
)
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.trial_records import Report, TrialResult
from tests.prepared import make_dataset

SPACE = {
    "name": "tiny",
    "budget": {"images": 900, "report_every": 100, "first_rung": 100},
    "parameters": {
        "architecture": {"fixed": "plain_cnn"},
        "blocks": {"int": [1, 3]},
        "filters": {"fixed": 2},
        "batch_size": {"choice": [8, 16]},
        "dropout": {"uniform": [0.0, 0.6]},
        "learning_rate": {"loguniform": [1e-4, 1e-2]},
    },
    "points": [{"blocks": 2, "batch_size": 8, "dropout": 0.125, "learning_rate": 0.001}, {"blocks": 3}],
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_dataset(tmp_path_factory.mktemp("estimate") / "data", patients=40)


@pytest.mark.parametrize(
    ("optimizer", "momentum", "states"), [("adam", 0.9, 2), ("adamw", 0.9, 2), ("sgd", 0.9, 1), ("sgd", 0.0, 0)]
)
def test_memory_is_counted_by_hand(optimizer: Any, momentum: float, states: int) -> None:
    parameters = Hyperparameters(
        filters=2, blocks=1, dense=0, batch_size=64, optimizer=optimizer, momentum=momentum, dropout=0.5
    )
    found = trial_memory(parameters, (3, 32, 32))
    # Convolution 2 x 3 x 3 x 3, batch normalization 2 + 2, linear 4 + 1; then running mean, variance, count, and
    # the normalization of three channels.
    trained = 4 * (54 + 4 + 5)
    assert found.weights == trained + 4 * (2 + 2) + 8 + 4 * (3 + 3)
    assert found.training == trained * (1 + states)
    assert found.saving == 3 * (found.weights + trained * states)
    pixels, maps, pooled = 3 * 32 * 32 * 4, 2 * 32 * 32 * 4, 2 * 16 * 16 * 4
    # Kept: the pixels, both maps around batch normalization and rectifier, the pooled map and its indices, the maxima,
    # the four features that the last layer takes and their dropout mask.
    each = pixels + 2 * maps + pooled + 2 * pooled + 2 * 4 + 4 * 4 + 4
    assert found.activations == pytest.approx(64 * each, rel=1e-3)
    # A batch of 128 validation slices: bytes, pixels before and after normalization, maps before and after theirs.
    assert found.validated == pytest.approx(128 * (pixels / 4 + 2 * pixels + 2 * maps), rel=1e-3)
    assert found.total == found.weights + found.training + max(found.activations, found.validated)
    averaged = trial_memory(parameters.model_copy(update={"ema": 0.99}), (3, 32, 32))
    assert averaged.total == found.total + found.weights


@pytest.mark.parametrize(
    "parameters",
    [
        Hyperparameters(filters=4, batch_size=6),
        Hyperparameters(architecture="resnet18", unfreeze_from="layer3", batch_size=4),
    ],
)
def test_memory_is_what_a_real_forward_pass_keeps(parameters: Hyperparameters) -> None:
    network, kept = build_network(parameters, (3, 64, 64)), {}
    own = {tensor.untyped_storage().data_ptr() for tensor in [*network.parameters(), *network.buffers()]}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network(torch.zeros((parameters.batch_size, 3, 64, 64), dtype=torch.uint8))
    del logits
    real = sum(size for address, size in kept.items() if address not in own)
    assert trial_memory(parameters, (3, 64, 64)).activations == pytest.approx(real, rel=0.03)


@pytest.mark.parametrize(
    ("changes", "floats"),
    [
        ({}, 0),
        ({"resolution": 32}, 0),
        ({"augment": 1.0}, 3 * 32 * 32 + 2 * 4 * 32 * 32),
        ({"resolution": 16}, 3 * 32 * 32 + 2 * 4 * 16 * 16),
    ],
    ids=str,
)
def test_memory_of_images_that_are_changed(changes: dict[str, float], floats: int) -> None:
    """In float32 as prepared, averaged and changed, and the two coordinates of each pixel."""
    small = Hyperparameters(filters=2, blocks=1, dense=0, batch_size=8)
    plain, found = (trial_memory(each, (3, 32, 32)) for each in (small, small.model_copy(update=changes)))
    assert found.resampled == 8 * 4 * floats
    assert found.total == found.weights + found.training + max(found.activations + found.resampled, found.validated)
    assert found.activations == trial_memory(small, (3, 16, 16)).activations or changes.get("resolution") != 16
    assert (found.weights, found.training) == (plain.weights, plain.training)
    # Small batches take less than those of validation, which are as prepared until the network reduces them.
    assert "a batch of validation" in str(Memory((found,)))
    larger = trial_memory(small.model_copy(update={**changes, "batch_size": 512}), (3, 32, 32))
    assert ("augmented images" in str(Memory((larger,)))) == (floats > 0)
    assert found.validated == larger.validated


@pytest.mark.parametrize(("windows", "channels"), [("same", 9), ("first", 5)])
def test_memory_and_speed_know_neighbors(windows: str, channels: int) -> None:
    small = Hyperparameters(filters=2, blocks=1, dense=0, batch_size=8, augment=1.0)
    seeing = small.model_copy(update={"neighbors": 1, "neighbor_windows": windows})
    plain, found = (trial_memory(each, (3, 32, 32)) for each in (small, seeing))
    assert found.resampled == 8 * 4 * (channels * 32 * 32 + 2 * (channels + 1) * 32 * 32)
    # The pixels that the first convolution keeps.
    assert found.activations - plain.activations == pytest.approx(8 * 4 * (channels - 3) * 32 * 32, rel=1e-2)
    assert seeing.of_speed != small.of_speed


def test_the_points_are_drawn_first_and_nothing_is_fetched() -> None:
    source = {**SPACE, "parameters": {**SPACE["parameters"], "weights": {"fixed": "of_plain_cnn.safetensors"}}}  # type: ignore[dict-item]
    draws = first_draws(parse_space(source, "x.yaml"), 5)
    assert len(draws) == 5
    assert (draws[0].blocks, draws[0].batch_size, draws[0].dropout) == (2, 8, 0.125)
    assert draws[1].blocks == 3
    assert {draw.weights for draw in draws} == {"none"}


def test_of_a_grid_only_its_trials_are_drawn() -> None:
    parameters = {"blocks": {"choice": [1, 2]}, "batch_size": {"choice": [8, 16]}}
    space = parse_space({**SPACE, "sampler": "grid", "parameters": parameters, "points": []}, "x.yaml")
    draws = first_draws(space, 24)
    assert sorted((draw.blocks, draw.batch_size) for draw in draws) == [(1, 8), (1, 16), (2, 8), (2, 16)]


def test_memory_of_a_space_says_its_largest_draw_and_those_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    space = parse_space(SPACE, "x.yaml")
    found = estimate_memory(space, (3, 4, 4), draws=8)
    assert found.misfits >= 1
    assert len(found.trials) + found.misfits == 8
    assert (
        f"{found.misfits} of 8 draws do not fit the images: blocks: each block halves the image, 3 are too many"
        in str(found)
    )
    monkeypatch.setattr(cost_model, "_COUNT_S", 0)
    assert len(estimate_memory(space, (3, 32, 32), draws=8).trials) == 1

    def trial(mib: int, batch_size: int) -> TrialMemory:
        return TrialMemory(Hyperparameters(batch_size=batch_size), mib << 20, 2 * mib << 20, 3 * mib << 20)

    assert str(Memory((trial(10, 32), trial(1, 8), trial(2, 16)))) == (
        "12 MiB a trial usually, 60 at most (plain_cnn batch_size=32 optimizer=adam: weights 10, gradients and "
        "optimizer 20, activations 30); counted in float32 for 3 draws, without PyTorch's own; up to 70 MiB more of "
        "the host while a state is saved"
    )


def test_speed_is_measured_where_the_trials_would_train(
    dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost_model, "_MEASURE_S", 0)
    monkeypatch.setattr(cost_model, "_MEASURE_EACH_S", 0)
    space, threads = parse_space(SPACE, "x.yaml"), torch.get_num_threads()
    found = measured_speed(space, dataset, 1, 0)
    assert found.seconds_per_image is not None
    assert 1e-7 < found.seconds_per_image < 1
    assert found.source == "a single plain_cnn measured here for a moment"
    monkeypatch.setattr(cost_model, "_MEASURE_S", 60)
    several = measured_speed(space, dataset, 1, 0)
    assert several.seconds_per_image is not None
    found_rates = re.fullmatch(r"(\d) networks measured here for a moment: ([\d,]+) to ([\d,]+)", several.source)
    assert found_rates is not None
    assert 2 <= int(found_rates[1]) <= 6
    slow, fast = (int(rate.replace(",", "")) for rate in found_rates.groups()[1:])
    assert slow - 1 <= 1 / several.seconds_per_image <= fast + 1
    assert torch.get_num_threads() == threads
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert measured_speed(space, dataset, 1, 1).describe(100, 1) == (
        "unknown: trials train on GPUs and this machine has none; plan on one that has"
    )


def test_draws_that_do_not_fit_are_not_measured(dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> float:
        raise ConfigError("x")

    monkeypatch.setattr(cost_model, "seconds_per_image", refuse)
    assert measured_speed(parse_space(SPACE, "x.yaml"), dataset, 1, 0) == Speed(None, "no draw fits the images")


def test_an_earlier_search_says_its_mean_speed(tmp_path: Path) -> None:
    def search(*ends: tuple[int, float]) -> Any:
        trials = [
            TrialResult(number=index, parameters={}, reports=(Report(images_seen=n, metrics={}, elapsed_s=s, time=0),))
            for index, (n, s) in enumerate(ends)
        ]
        return SimpleNamespace(trials=[*trials, TrialResult(number=9, parameters={})], files=SimpleNamespace(root="/s"))

    assert earlier_speed([search(), search((100, 2.0), (300, 6.0))]) == Speed(0.02, "as 2 trials of /s trained")
    assert earlier_speed([search()]) is None
    assert Speed(0.02, "x").describe(1_000_000, 4) == "about 1.4 hours at 50 images/s a trial (x)"
    assert Speed(0.02, "x").describe(100_000, 4) == "about 8.3 minutes at 50 images/s a trial (x)"
    assert Speed(0.02, "x").describe(1_000, 4) == "about 5 seconds at 50 images/s a trial (x)"
    assert Speed(0.02, "x").describe(100_000_000, 4) == "about 139 hours at 50 images/s a trial (x)"


def test_a_network_that_shrinks_its_images_too_far_is_no_fit() -> None:
    with pytest.raises(ConfigError, match="images must be large enough for densenet121"):
        trial_memory(Hyperparameters(architecture="densenet121", resolution=8), (3, 64, 64))
