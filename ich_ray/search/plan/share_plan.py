"""Accelerator memory that trials need, and the shares that follow for the first draws of a space.

Counts tensors through cost_model.py. Starts no Ray and asks no machine: who calls it knows the kinds of devices.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ich_ray.errors import ConfigError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.search.gpu_shares import STEPS, share_of
from ich_ray.search.plan.cost_model import estimate_memory, trial_memory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ich_ray.search.gpu_shares import DeviceKind
    from ich_ray.search.space.space import SearchSpace
    from ich_ray.trial_records import Parameter
    from ich_ray.vocabulary import Placement

__all__ = ["CONTEXT_BYTES", "Need", "SharePlan", "TrialNeeds", "needed", "plan_shares"]

# Tensors are counted; fragments of the allocator and workspaces of convolutions are not. On CPUs the count was at least
# 0.77 of what was measured.
_MARGIN = 1.3
# Of a process on an accelerator before it has any tensor: the CUDA context and the libraries' own.
CONTEXT_BYTES = 2**30


class Need(NamedTuple):
    """Bytes that a trial needs, and those of its images, which may also stay on the host."""

    bytes: float
    images: float = 0.0


def needed(tensors: int) -> float:
    """Bytes of an accelerator for a trial with so many bytes of tensors."""
    return _MARGIN * tensors + CONTEXT_BYTES


@dataclass(frozen=True)
class TrialNeeds:
    """Says what a trial needs by its parameters.

    Attributes:
        images_bytes: of the training and validation slices.
        placement: where they shall lie; they count as needed where they must be on the device.
    """

    image_shape: tuple[int, int, int]
    images_bytes: int
    placement: Placement = "auto"

    def __call__(self, parameters: Mapping[str, Parameter]) -> Need:
        try:
            tensors = trial_memory(Hyperparameters.model_validate(parameters), self.image_shape).total
        except ConfigError:  # it fails at once, wherever it is
            tensors = 0
        return self.of_tensors(tensors)

    def of_tensors(self, tensors: int) -> Need:
        if self.placement == "device":
            return Need(needed(tensors) + self.images_bytes)
        return Need(needed(tensors), 0.0 if self.placement == "host" else self.images_bytes)


@dataclass(frozen=True)
class SharePlan:
    """Which shares of devices the first draws of a space take.

    Attributes:
        kinds: of devices, the smallest first.
        needs: bytes of each draw that was counted, the least first.
    """

    kinds: tuple[DeviceKind, ...]
    needs: tuple[float, ...]

    @property
    def usual(self) -> float:
        return self.needs[len(self.needs) // 2]

    def shares(self, kind: DeviceKind) -> dict[float, int]:
        """Draws by their share of one such device; those that it does not hold are left out."""
        found = Counter(share_of(need, kind.memory) for need in self.needs)
        return {step: found[step] for step in STEPS if found[step]}

    def at_a_time(self, kind: DeviceKind) -> int:
        """Trials of the usual need on all devices of a kind together."""
        share = share_of(self.usual, kind.memory)
        return 0 if share is None else min(kind.trials, int(kind.devices / share))

    @property
    def concurrent(self) -> int:
        """Trials of the usual need at a time; one at least, on a device that may be too small."""
        return max(1, sum(self.at_a_time(kind) for kind in self.kinds))

    @property
    def too_large(self) -> int:
        """Draws that no device holds: they get a whole one of the largest."""
        return sum(need > self.kinds[-1].memory for need in self.needs)

    def __str__(self) -> str:
        lines = [
            f"  shares of a GPU: of each trial what {len(self.needs)} draws need, {_gib(self.needs[0])} to "
            f"{_gib(self.needs[-1])} GiB: {_MARGIN:g} times their tensors and {_gib(CONTEXT_BYTES)} GiB"
        ]
        for kind in self.kinds:
            told = ", ".join(f"{step:g} for {count}" for step, count in self.shares(kind).items()) or "none fits"
            usual = f"{self.at_a_time(kind)} usual trials at a time"
            lines.append(f"    {kind.devices:g} x {_gib(kind.memory)} GiB: {told} of the draws; {usual}")
        if self.too_large:
            lines.append(f"    {self.too_large} draws need more than any has, and get a whole one of the largest")
        return "\n".join(lines)

    def figures(self) -> list[dict[str, Any]]:
        """Of each kind of device, as plain values."""
        return [
            {
                "memory_bytes": int(kind.memory),
                "devices": kind.devices,
                "draws_by_share": {f"{step:g}": count for step, count in self.shares(kind).items()},
                "usual_trials_at_a_time": self.at_a_time(kind),
            }
            for kind in self.kinds
        ]


def plan_shares(space: SearchSpace, needs: TrialNeeds, kinds: Sequence[DeviceKind]) -> SharePlan:
    """The shares of the first draws.

    Raises:
        ConfigError: none of them fits the images.
    """
    found = estimate_memory(space, needs.image_shape)
    if not found.trials:
        raise ConfigError(f"--gpus-per-trial auto: a draw of the space must fit the images, got {found}; give a number")
    return SharePlan(tuple(kinds), tuple(sorted(needs.of_tensors(trial.total).bytes for trial in found.trials)))


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g}"
