"""How the steps of a training are computed on the device at hand: precision, memory layout, compilation.

On an accelerator the modes are timed on a few batches of the network in question, once a process for each architecture
and batch size, and `choose` takes the one that ends soonest. On a CPU nothing is timed and nothing chosen: float32 in
the usual layout, so that the same seed gives the same numbers whatever else the machine is doing. Knows nothing of
data, losses or optimizers.
"""

from __future__ import annotations

import copy
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping
    from contextlib import AbstractContextManager

    from ich_ray.model.parallel import Shard

__all__ = ["FIXED", "Mode", "Pace", "choose", "measure", "pace_for", "usual_pace", "with_compilation"]

# What torch.compile is taken to cost and to gain until it has been tried on this network: 20 to 40 s, and 1.1 to 1.5
# times the images a second, are usual for convolutional networks of this size.
COMPILE_S = 30.0
COMPILE_GAIN = 1.25

_WARM_STEPS, _TIMED_STEPS = 2, 5


class Mode(NamedTuple):
    """One way to compute a step."""

    bfloat16: bool = False
    channels_last: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        layout, compiled = " channels_last" * self.channels_last, " compiled" * self.compiled
        return f"{'bfloat16' if self.bfloat16 else 'float32'}{layout}{compiled}"

    def precision(self, device: torch.device) -> AbstractContextManager[Any]:
        return torch.autocast(device.type, torch.bfloat16) if self.bfloat16 else nullcontext()

    def laid_out(self, network: nn.Module) -> nn.Module:
        """The network, its weights moved into this mode's layout."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return network.to(memory_format=layout)


FIXED = Mode()
EAGER = tuple(Mode(bfloat16, channels_last) for bfloat16 in (False, True) for channels_last in (False, True))


def choose(rates: Mapping[Mode, float], images: int, compile_s: float) -> Mode:
    """The mode that has shown `images` soonest; the simplest of equals.

    Args:
        rates: images a second of those that are possible.
        images: how many are still to be shown.
        compile_s: seconds before a compiled mode shows its first.
    """
    return min(rates, key=lambda mode: (images / rates[mode] + compile_s * mode.compiled, mode))


def with_compilation(rates: Mapping[Mode, float], gain: float = COMPILE_GAIN) -> dict[Mode, float]:
    """The rates, and what the fastest of them would be if compiled."""
    fastest = max(rates, key=lambda mode: rates[mode])
    return {**rates, fastest._replace(compiled=True): gain * rates[fastest]}


def measure(forward: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, mode: Mode) -> float:
    """Images a second through forward and backward pass; 0 where they do not fit into memory."""
    try:
        for step in range(_WARM_STEPS + _TIMED_STEPS):
            if step == _WARM_STEPS:
                started = _now(images.device)
            with mode.precision(images.device):
                logits = forward(images)
            logits.float().sum().backward()  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError:
        return 0.0
    return _TIMED_STEPS * len(images) / (_now(images.device) - started)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class Pace:
    """The mode of a training, and what was measured for it.

    Attributes:
        rates: images a second by the name of the mode; empty on a CPU.
        batch: the batch size that a compiled network is for.
    """

    mode: Mode
    rates: dict[str, float]
    forward: Callable[[torch.Tensor], torch.Tensor]
    network: nn.Module
    batch: int

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Of one batch; one that was cut short is not compiled for."""
        forward = self.forward if len(images) == self.batch else self.network
        with self.mode.precision(images.device):
            return forward(images)


# By process: what has been measured, and the seconds that compiling took.
_rates: dict[Hashable, dict[Mode, float]] = {}
_compile_s: dict[Hashable, float] = {}


def usual_pace(network: nn.Module) -> Pace:
    """What is not chosen: on a CPU, and where not one step of any mode fits."""
    return Pace(FIXED, {}, network, network, 0)


def pace_for(network: nn.Module, images: torch.Tensor, what: Hashable, *, images_left: int, shard: Shard) -> Pace:
    """Choose for a network on an accelerator and bring it into that mode; its weights and buffers stay as they are.

    Args:
        network: trained afterwards.
        images: a whole batch of this process, uint8 `[n, channels, rows, columns]`.
        what: equal for networks of equal speed.
        images_left: to be shown by this process.
        shard: several processes agree on what is fastest for them together, and do not compile.
    """
    if what not in _rates:
        _rates[what] = _eager_rates(network, images, shard)
    rates = _rates[what]
    if not rates:
        return usual_pace(network)
    tried = what in _compile_s
    possible = rates if tried or shard.count > 1 else with_compilation(rates)
    mode = choose(possible, images_left, _compile_s.get(what, COMPILE_S))
    forward = mode.laid_out(network)
    if mode.compiled:
        forward = torch.compile(forward, dynamic=False)  # type: ignore[assignment]
        if not tried:
            _try_compiled(forward, network, images, mode, what)
            mode = choose(rates, images_left, 0)
    if not mode.compiled:
        forward = mode.laid_out(network)
    return Pace(mode, {str(each): rate for each, rate in rates.items()}, forward, network, len(images))


def _eager_rates(network: nn.Module, images: torch.Tensor, shard: Shard) -> dict[Mode, float]:
    copied = copy.deepcopy(network)
    rates = [measure(mode.laid_out(copied), images, mode) for mode in EAGER]
    together = shard.total(torch.tensor(rates, device=images.device)).tolist()
    return {mode: rate for mode, rate in zip(EAGER, together, strict=True) if rate > 0}


def _try_compiled(forward: nn.Module, network: nn.Module, images: torch.Tensor, mode: Mode, what: Hashable) -> None:
    """Compile and measure, for this network and for the next ones like it; what cannot be compiled has no rate."""
    before = copy.deepcopy(network.state_dict())  # batch normalization takes note of what passes
    started, _compile_s[what] = time.perf_counter(), COMPILE_S
    with suppress(Exception):  # no C compiler, a full disk, an operation that it does not know: training needs none
        measure(forward, images, mode)
        _compile_s[what] = time.perf_counter() - started
        if rate := measure(forward, images, mode):
            _rates[what][mode] = rate
    network.load_state_dict(before)
    network.zero_grad()
