from __future__ import annotations

import pytest
import torch
from torch import nn

from ich_ray.model import pace
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.pace import EAGER, FIXED, Mode, choose, measure, pace_for, usual_pace, with_compilation
from ich_ray.model.parallel import ALONE, Shard

PLAIN, HALF, BOTH = Mode(), Mode(bfloat16=True), Mode(True, True)
COMPILED = Mode(True, True, True)
IMAGES = torch.zeros(4, 3, 8, 8)


@pytest.mark.parametrize(
    ("rates", "images", "compile_s", "chosen"),
    [
        ({PLAIN: 1000, HALF: 2000, BOTH: 3000}, 100_000, 30, BOTH),
        ({PLAIN: 1000, HALF: 900}, 100_000, 30, PLAIN),  # a small network may lose by casting
        ({PLAIN: 1000, HALF: 1000}, 100_000, 30, PLAIN),  # the simplest of equals
        # 450,000 images: 450 s against 30 + 360 s; 100,000: 100 s against 110 s; 150,000: 150 s against 150 s
        ({HALF: 1000, COMPILED: 1250}, 450_000, 30, COMPILED),
        ({HALF: 1000, COMPILED: 1250}, 100_000, 30, HALF),
        ({HALF: 1000, COMPILED: 1250}, 150_000, 30, HALF),
        ({HALF: 1000, COMPILED: 1250}, 100_000, 0, COMPILED),  # compiled already
        ({HALF: 1000, COMPILED: 990}, 10**9, 30, HALF),
        ({HALF: 1000, COMPILED: 990}, 0, 0, HALF),
    ],
)
def test_what_ends_soonest_is_chosen(rates: dict[Mode, float], images: int, compile_s: float, chosen: Mode) -> None:
    assert choose(rates, images, compile_s) == chosen


def test_only_the_fastest_mode_may_be_compiled() -> None:
    assert with_compilation({HALF: 1000, BOTH: 2000}, gain=1.5) == {HALF: 1000, BOTH: 2000, COMPILED: 3000}


def test_modes_are_named() -> None:
    assert [str(mode) for mode in (*EAGER, COMPILED)] == [
        "float32",
        "float32 channels_last",
        "bfloat16",
        "bfloat16 channels_last",
        "bfloat16 channels_last compiled",
    ]


def test_nothing_is_timed_on_a_cpu() -> None:
    network = nn.Linear(2, 1)
    found = usual_pace(network)
    assert (found.mode, found.rates, found.forward) == (FIXED, {}, network)
    assert str(FIXED) == "float32"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 1))


@pytest.mark.parametrize("mode", EAGER, ids=str)
def test_a_mode_computes_the_same_network(mode: Mode) -> None:
    usual, images = network(), torch.rand(4, 3, 8, 8)
    other = mode.laid_out(network())
    with mode.precision(torch.device("cpu")):
        found = other(images)
    torch.testing.assert_close(found.float(), usual(images), atol=0.02, rtol=0.02)
    assert found.dtype == (torch.bfloat16 if mode.bfloat16 else torch.float32)
    assert other[0].weight.is_contiguous(memory_format=torch.channels_last) is mode.channels_last  # type: ignore[index, union-attr]
    assert measure(other, images, mode) > 0


def test_a_mode_without_room_has_no_rate() -> None:
    def full(_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert measure(full, IMAGES, PLAIN) == 0


def test_draws_that_differ_in_rates_alone_are_of_one_speed() -> None:
    """A space draws dropout and rates from ranges: timed for each draw, no draw would ever be timed twice."""
    drawn = Hyperparameters(dropout=0.31, learning_rate=1e-3, decay=0.1)
    assert drawn.of_speed == Hyperparameters(dropout=0.32, learning_rate=1e-4, decay=0.2, optimizer="sgd").of_speed
    assert drawn.of_speed != Hyperparameters(dropout=0).of_speed
    assert drawn.of_speed != Hyperparameters(filters=17).of_speed
    assert drawn.of_speed != Hyperparameters(unfreeze_from="head").of_speed


class Clock:
    """Rates by mode instead of measured ones, and what was compiled."""

    def __init__(self, patch: pytest.MonkeyPatch, rates: dict[Mode, float], compiled: float) -> None:
        self.rates, self.compiled, self.compilations = rates, compiled, 0
        patch.setattr(pace, "_rates", {})
        patch.setattr(pace, "_compile_s", {})
        patch.setattr(pace, "measure", self.measure)
        patch.setattr(torch, "compile", self.compile)

    def measure(self, forward: nn.Module, images: torch.Tensor, mode: Mode) -> float:
        forward(images)
        return self.compiled if mode.compiled else self.rates.get(mode, 0.0)

    def compile(self, network: nn.Module, dynamic: bool) -> nn.Module:
        assert dynamic is False
        self.compilations += 1
        return network


EAGER_RATES = {PLAIN: 500.0, HALF: 800.0, BOTH: 1000.0}


@pytest.mark.parametrize(
    ("images_left", "compiled", "mode", "compilations"),
    [
        (100_000, 2000.0, BOTH, 0),  # too short to try
        (1_000_000, 2000.0, COMPILED, 1),
        (1_000_000, 900.0, BOTH, 1),  # tried, and not worth it
        (1_000_000, 0.0, BOTH, 1),  # tried, and out of memory
    ],
)
def test_compiling_is_tried_once_where_it_may_pay(
    monkeypatch: pytest.MonkeyPatch, images_left: int, compiled: float, mode: Mode, compilations: int
) -> None:
    clock, one = Clock(monkeypatch, EAGER_RATES, compiled), network()
    before = {name: value.clone() for name, value in one.state_dict().items()}
    found = pace_for(one, IMAGES, "one", images_left=images_left, shard=ALONE)
    assert (found.mode, clock.compilations) == (mode, compilations)
    assert found.rates["bfloat16 channels_last"] == 1000
    assert ("bfloat16 channels_last compiled" in found.rates) is (compilations == 1 and compiled > 0)
    for name, value in one.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert one[0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index, union-attr]
    assert found.logits(IMAGES).shape == (4, 1)


def test_what_compiles_to_too_much_memory_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, EAGER_RATES, 0.0)
    found = [pace_for(network(), IMAGES, "one", images_left=1_000_000, shard=ALONE).mode for _ in range(2)]
    assert (found, clock.compilations) == ([BOTH, BOTH], 1)


def test_where_nothing_can_be_compiled_training_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile raises at the first batch where a machine has no C compiler."""
    clock = Clock(monkeypatch, EAGER_RATES, 2000.0)

    def uncompilable(_: nn.Module, dynamic: bool) -> nn.Module:
        def raising(_: torch.Tensor) -> torch.Tensor:
            clock.compilations += 1
            raise RuntimeError("no working C compiler found")

        return raising  # type: ignore[return-value]

    monkeypatch.setattr(torch, "compile", uncompilable)
    for _ in range(2):
        found = pace_for(network(), IMAGES, "one", images_left=1_000_000, shard=ALONE)
        assert (found.mode, clock.compilations) == (BOTH, 1)
        assert found.logits(IMAGES).shape == (4, 1)


def test_a_batch_that_is_cut_short_is_not_compiled_for() -> None:
    seen: list[str] = []
    whole, cut = (lambda images, name=name: (seen.append(name), images)[1] for name in ("compiled", "eager"))
    found = pace.Pace(PLAIN, {}, whole, cut, 4)  # type: ignore[arg-type]
    found.logits(IMAGES)
    found.logits(IMAGES[:3])
    assert seen == ["compiled", "eager"]


def test_several_processes_choose_together_and_do_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, EAGER_RATES, 10_000.0)
    others = torch.tensor([0.0, 0.0, 900.0, 100.0])  # in the order of EAGER
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda own: own.add_(others))
    found = pace_for(network(), IMAGES, "two", images_left=10**9, shard=Shard(0, 2))
    assert (found.mode, clock.compilations) == (HALF, 0)
    assert found.rates == {"float32": 500.0, "bfloat16": 1700.0, "bfloat16 channels_last": 1100.0}


def test_where_nothing_fits_training_will_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, {}, 0.0)
    assert pace_for(network(), IMAGES, "big", images_left=100, shard=ALONE).mode == FIXED
