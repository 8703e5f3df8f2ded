"""reproduction.json: what the published systems and ours reached on the same slices."""

from __future__ import annotations

from typing import Literal

from ich_ray.published.full_size import PlannedStage
from ich_ray.published.system_results import System
from ich_ray.storage import Address, Count, JsonValue, Line, Record, Seconds, Time

__all__ = ["Reproduction"]


class Reproduction(Record):
    """reproduction.json: everything that the page shows and that was not published.

    Attributes:
        synthetic: the images were made by the phantom.
        probed: combinations fitted by report A's probe, and how many of them diverged.
        trials_a: the trials of report A's search at one half of their outputs.
        candidates: the ten of report B, the same way.
        chosen: the number of the one that went on.
        folds: it on five folds.
        systems: on their test patients.
        planned: the same at full size.
        seconds: of this command, with stages that earlier ones had finished left out.
    """

    format: Literal[1] = 1
    scale: Literal["small", "full"]
    synthetic: bool
    weights: Address
    train: Count
    slices: Count
    patients: Count
    probed: tuple[Count, Count]
    trials_a: tuple[dict[Line, JsonValue], ...]
    candidates: tuple[dict[Line, JsonValue], ...]
    chosen: Count
    folds: tuple[dict[Line, JsonValue], ...]
    systems: tuple[System, ...]
    planned: tuple[PlannedStage, ...]
    seconds: Seconds
    created: Time
