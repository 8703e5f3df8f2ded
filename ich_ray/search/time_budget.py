"""Wall-clock and accelerator-hour limits of a search."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from ich_ray.errors import ConfigError
from ich_ray.search.ledger import Verdict

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """After them no trial is started any more, and the running ones stop at their next report.

    Attributes:
        hours: from `began`, for this run of the driver; None for no limit.
        gpu_hours: of all trials since the search began, those of earlier drivers included; None for no limit.
    """

    hours: float | None = None
    gpu_hours: float | None = None
    began: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        for flag, limit in (("--hours", self.hours), ("--gpu-hours", self.gpu_hours)):
            if limit is not None and not limit > 0:
                raise ConfigError(f"{flag}: must be above 0, got {limit}; leave it out for no limit")

    @property
    def deadline(self) -> float:
        """UNIX time in seconds; infinite without `hours`."""
        return math.inf if self.hours is None else self.began + self.hours * 3600

    def check(self, gpus: float) -> None:
        """Refuse a limit that nothing can reach, given what a trial holds."""
        if self.gpu_hours is not None and not gpus:
            raise ConfigError(
                "--gpu-hours: has a meaning only where trials hold GPUs, got 0 GPU a trial; use --hours, or give "
                "--gpus-per-trial on a machine that has some"
            )

    def exhausted(self, used_gpu_s: float) -> Verdict | None:
        """How a trial ends that is stopped now, after so many accelerator seconds; None while there is time."""
        if time.time() >= self.deadline:
            return Verdict("pruned", "hours", "the search's --hours were over")
        if self.gpu_hours is not None and used_gpu_s >= self.gpu_hours * 3600:
            return Verdict("pruned", "gpu_hours", "the search's --gpu-hours were used up")
        return None
