"""Limits of a space that a network must keep before it is trained: size, memory, time a slice.

Knows neither networks nor devices: `Refuses` is asked of a draw, and constraint_check.py answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ich_ray.model.hyperparameters import Hyperparameters

__all__ = ["Constraints", "Refusal", "Refuses"]


def _number(written: Any) -> Any:
    """`30e6`, which YAML takes for a text."""
    try:
        return float(written) if isinstance(written, str | int) and not isinstance(written, bool) else written
    except (ValueError, OverflowError):
        return written


_Limit = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]


class Constraints(BaseModel):
    """What no trial may exceed; None for no limit.

    Attributes:
        max_ms_per_slice: milliseconds that the network takes for a slice on the device of the trials.
        max_parameters: weights and biases of the network.
        max_gpu_gb: gigabytes (10^9 bytes) of a trial's tensors, counted as `--plan` does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    max_ms_per_slice: _Limit | None = None
    max_parameters: _Limit | None = None
    max_gpu_gb: _Limit | None = None

    def __bool__(self) -> bool:
        return any(limit is not None for _, limit in self)

    def __str__(self) -> str:
        return ", ".join(f"{name} {limit:,.10g}" for name, limit in self if limit is not None)


class Refusal(NamedTuple):
    """Why a draw is not trained: the first limit that it exceeds, and by which share of it."""

    constraint: str
    excess: float


Refuses = Callable[[Hyperparameters], Refusal | None]
